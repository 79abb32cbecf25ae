"""What a user asks `quantize` for: a plan, or a format and an algorithm from which the plan is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from zeropoint.checkpoint import Checkpoint
from zeropoint.errors import UsageError
from zeropoint.planning import check_formats, uniform_plan
from zeropoint.quantization import auto
from zeropoint.quantization.for_target import Target, check_plan, plan_for, scheme_for
from zeropoint.quantization.to_artifact import source_config
from zeropoint.values.plan import Plan
from zeropoint.values.scheme import Scheme

#: The format of a request that names none.
DEFAULT_FORMAT = "int8"
#: The fields that choose formats and algorithms, which a plan has chosen already.
_CHOSEN_BY_PLAN = (
    "format", "algorithm", "options", "keep", "embedding", "lm_head", "seed", "time_budget",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Request:
    """The arguments that choose each weight's format and algorithm; None and empty fields were not given.

    `calibration_tokens` tokens of text are read; 0 means no calibration. `target` is the runtime that the
    artifact is made for: it chooses formats that the user does not name, and checks the plan.
    `spelling` returns an argument's name as the user writes it.

    Raises `UsageError` or `SchemeError` if a name is unknown or two arguments contradict each other. No model is needed
    for that, so callers make the request before they open the model.
    """

    plan: Plan | None = None
    format: str | None = None
    algorithm: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    keep: Sequence[str] = ()
    embedding: str | None = None
    lm_head: str | None = None
    seed: int | None = None
    time_budget: float | None = None
    calibration_tokens: int | None = None
    resume: bool = False
    target: Target | None = None
    spelling: Callable[[str], str] = str

    def __post_init__(self) -> None:
        if self.plan is not None:
            beside = [
                self.spelling(name)
                for name in _CHOSEN_BY_PLAN
                if getattr(self, name) not in (None, (), [], {})
            ]
            if beside:
                raise UsageError(
                    f"a plan names the format and algorithm of every weight: leave out {', '.join(beside)}, or the plan"
                )
            return
        is_auto = self.algorithm == auto.NAME
        if self.time_budget is not None and not is_auto:
            raise UsageError(f"a time budget needs the algorithm auto: {self.spelling('algorithm')} auto")
        if is_auto and self.options:
            raise UsageError("auto takes no options: name an algorithm to give it options")
        if is_auto:
            auto.refuse_resume(self.resume)
        check_formats(
            self._format({}),
            embedding=self.embedding,
            lm_head=self.lm_head,
            algorithm="rtn" if is_auto else self.algorithm or "rtn",
            options=self.options,
        )

    def resolve(self, checkpoint: Checkpoint) -> tuple[Plan, int | None, str]:
        """Return the plan, the number of calibration tokens, and why `auto` chose its algorithm ("" without `auto`).

        0 tokens means no calibration; None means the default number if an algorithm needs calibration. Raises
        `UnsupportedError` if the artifact of the plan cannot be exported to the target.
        """
        if self.plan is not None:
            if self.target is not None:
                check_plan(self.target, checkpoint, self.plan)
            return self.plan, self.calibration_tokens, ""
        algorithm, options, tokens, why = self.algorithm or "rtn", self.options, self.calibration_tokens, ""
        format: Scheme | str = self._format({} if self.target is None else source_config(checkpoint))
        if self.target is not None:  # before `auto` measures: no algorithm changes a scheme
            check_plan(self.target, checkpoint, self._plan(checkpoint, format, "rtn", {}))
        if algorithm == auto.NAME:
            picked = auto.pick(
                checkpoint, str(format), self.time_budget or auto.DEFAULT_BUDGET, tokens=tokens
            )
            algorithm, options, tokens, why = picked.algorithm, picked.options, picked.tokens, picked.reason
        return self._plan(checkpoint, format, algorithm, options), tokens, why

    def _format(self, config: Mapping[str, Any]) -> Scheme | str:
        """Return the format asked for, or the default. A target chooses it for the model with this config.json."""
        if self.target is not None:
            return scheme_for(self.target, self.format, config)
        return self.format or DEFAULT_FORMAT

    def _plan(
        self, checkpoint: Checkpoint, format: Scheme | str, algorithm: str, options: Mapping[str, Any]
    ) -> Plan:
        """Return the plan of this request with an algorithm."""
        arguments: dict[str, Any] = {
            "embedding": self.embedding, "lm_head": self.lm_head, "keep": self.keep, "algorithm": algorithm,
            "options": options, "seed": self.seed or 0,
        }  # fmt: skip
        if isinstance(format, Scheme) and self.target is not None:
            return plan_for(self.target, checkpoint, format, **arguments)
        return uniform_plan(checkpoint, format, **arguments)
