"""Uniform plans: the same scheme for every layer, with the exceptions that a model needs, each with its reason.

In a uniform plan of any integer format, the embedding and the output head get 8 bits (`_Picker._scheme_for`). Under a
budget, `Search.best` in fitting/search.py chooses among the formats of fitting/candidates.py.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from zeropoint.algorithms import load, part_options, parts, resolve
from zeropoint.artifact.layout import Layout, stored_nbytes
from zeropoint.checkpoint import Checkpoint, ParameterInfo
from zeropoint.dtypes import BY_FORMAT
from zeropoint.errors import UsageError
from zeropoint.tensors import torch_dtype
from zeropoint.values.plan import Choice, Plan
from zeropoint.values.scheme import Activation, Granularity, Scheme, parse
from zeropoint.views import Kept, LayerView

#: A layer with fewer rows or columns than this (a gate, a scoring head) is kept: quantizing it would save nothing.
MIN_SIDE = 8


@dataclass(frozen=True, slots=True)
class Limits:
    """The formats that another runtime supports.

    - `runtime`: the runtime's name, for the reasons in the plan;
    - `refusals(name, scheme)`: returns the reasons why the runtime does not support a weight in a scheme, or nothing;
    - `free`: the kinds of views for which the user named no format. Such a view stays unquantized if the runtime does
      not support its default format.
    """

    runtime: str
    refusals: Callable[[str, Scheme], Sequence[str]]
    free: frozenset[str] = frozenset()


def uniform_plan(
    checkpoint: Checkpoint,
    scheme_or_format: Scheme | str,
    *,
    embedding: Scheme | str | None = None,
    lm_head: Scheme | str | None = None,
    keep: Sequence[str] = (),
    algorithm: str = "rtn",
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    limits: Limits | None = None,
) -> Plan:
    """Return a plan with one scheme for all layers, and int8 per channel for the embedding and the output head.

    `scheme_or_format` is a preset (such as `int8`), a float format (such as `fp16`) or any scheme. `embedding` and
    `lm_head` replace the int8 default of those two; "keep" leaves the weight as it is. A tied pair is one weight:
    `lm_head` decides, or `embedding` if `lm_head` is None. `keep` holds fnmatch patterns: a parameter is kept if a
    pattern matches its name, its module's name or the name of one of its views. If a scheme's groups do not divide a
    layer's columns, the layer gets the nearest scheme whose groups do, and the layer's reason says so. With `limits`,
    it gets the nearest of these schemes that the other runtime supports, or the nearest of all if the runtime supports
    none. (A view whose kind is in `limits.free` stays unquantized instead.) The plan's `nbytes` is exact.

    Raises `SchemeError` for a scheme that cannot be parsed. Raises `UsageError` for a wrong algorithm or option, a
    `keep` pattern that matches nothing, and `embedding` or `lm_head` beside a float format.
    """
    scheme, algorithm, canonical_options = check_formats(
        scheme_or_format, embedding=embedding, lm_head=lm_head, algorithm=algorithm, options=options
    )
    label = scheme_or_format if isinstance(scheme_or_format, str) else str(scheme)
    infos = {info.name: info for info in checkpoint.parameters() if info.tied_to is None}
    kept_parameters = _kept_parameters(keep, checkpoint)
    if scheme.is_float:
        choices = {
            info.name: _cast(info, scheme, is_kept=info.name in kept_parameters) for info in infos.values()
        }
    else:
        pick = _Picker(
            scheme,
            _override(embedding),
            _override(lm_head),
            layout_of(checkpoint),
            algorithm,
            canonical_options,
            limits,
        )
        choices = _integer_choices(checkpoint, pick, kept_parameters)
    return Plan(choices, plan_nbytes(checkpoint, choices), label, seed)


def check_formats(
    scheme_or_format: Scheme | str,
    *,
    embedding: Scheme | str | None = None,
    lm_head: Scheme | str | None = None,
    algorithm: str = "rtn",
    options: Mapping[str, Any] | None = None,
) -> tuple[Scheme, str, dict[str, Any]]:
    """Return the scheme, and the canonical algorithm with its options. Needs no model.

    Raises what `uniform_plan` raises, except for `keep`: patterns can be compared only with a model's names.
    """
    scheme = parse(scheme_or_format) if isinstance(scheme_or_format, str) else scheme_or_format
    for own_format in (embedding, lm_head):
        _override(own_format)
    if scheme.is_float and (embedding is not None or lm_head is not None):
        raise UsageError(
            f"{scheme} applies to every parameter: it takes no separate embedding or lm_head format"
        )
    algorithm, canonical_options = resolve(algorithm, options or {}, scheme)
    part_options(algorithm, canonical_options)
    return scheme, algorithm, canonical_options


def layout_of(checkpoint: Checkpoint) -> Layout:
    """Return the facts that an artifact stores beside the plan.

    These are the tied names, and the names of embeddings, of transposed weights, of experts, and of weights in modules
    that also have a buffer.
    """
    views, _ = checkpoint.views()
    return Layout(
        tied={info.name: info.tied_to for info in checkpoint.parameters() if info.tied_to is not None},
        embeddings=tuple(view.name for view in views if view.kind == "embedding"),
        transposed=tuple(view.name for view in views if view.transposed),
        experts=tuple(view.name for view in views if view.kind == "expert"),
        # modules with a buffer of their own beside the weight, such as Gemma's scaled embedding
        buffered=tuple(
            v.name for v in views if list(checkpoint.model.get_submodule(v.module).buffers(recurse=False))
        ),
    )


def plan_nbytes(checkpoint: Checkpoint, choices: Mapping[str, Choice]) -> int:
    """Return the exact bytes of an artifact's tensors. Raises `UsageError` if `choices` are another model's."""
    layout = layout_of(checkpoint)
    shapes = {view.name: view.shape for view in checkpoint.views()[0]}
    infos = {info.name: info for info in checkpoint.parameters()}
    return sum(
        choice_nbytes(name, choice, infos.get(name), shapes.get(name), layout)
        for name, choice in choices.items()
    )


def choice_nbytes(
    name: str, choice: Choice, info: ParameterInfo | None, shape: tuple[int, int] | None, layout: Layout
) -> int:
    """Return the bytes in the artifact of one weight, its scales and zero points included.

    `info` describes the parameter `name`, or is None if there is no such parameter. `shape` is `(out, in)` of the view
    `name`, or None if there is no such view. Raises `UsageError` if `shape` is None and the scheme has integer codes,
    or if `info` is None and the weight is kept or has a float format.
    """
    if choice.scheme is not None and not choice.scheme.is_float:
        if shape is None:
            raise UsageError(f"the plan quantizes {name}, which is not a quantizable weight of this model")
        return stored_nbytes(name, choice.scheme, shape, layout)
    if info is None:
        raise UsageError(f"the plan names {name}, which this model does not have")
    if choice.scheme is not None and info.dtype.is_floating_point:
        return info.numel * choice.scheme.bits // 8
    return info.nbytes


class _Picker:
    """The rules that give each view its choice: default scheme, overrides for embedding and head, and exceptions."""

    def __init__(
        self,
        scheme: Scheme,
        embedding: Scheme | str | None,
        lm_head: Scheme | str | None,
        layout: Layout,
        algorithm: str,
        options: Mapping[str, Any],
        limits: Limits | None,
    ) -> None:
        self.limits = limits
        self.scheme = scheme
        self.embedding = embedding
        self.lm_head = lm_head
        self.tied = set(layout.tied.values())
        self.algorithm = algorithm
        self.options = options
        # The embedding and the output head lie outside the transformer blocks, so algorithms with a Hessian, a fold or
        # block tuning cannot quantize them. (The embedding is a lookup: it has no matrix product and so no Hessian.)
        by_kind = parts(algorithm)
        self.in_blocks_only = "hessian" in load(by_kind["quantize"]).NEEDS or not by_kind.keys().isdisjoint(
            ("fold", "quantize_block")
        )

    def choose(self, view: LayerView) -> Choice:
        """Return the choice for one view."""
        scheme, why = self._scheme_for(view)
        if isinstance(scheme, str):
            return Choice(None, self.algorithm, {}, f"{view.kind} kept {self._by_whom(view.kind)}")
        if min(view.shape) < MIN_SIDE:
            rows, columns = view.shape
            return Choice(
                None, self.algorithm, {}, f"only {rows}x{columns}: too small to be worth quantizing"
            )
        fitting, note = fit_groups(scheme, view.shape[1])
        if self.limits is not None and (refusals := self.limits.refusals(view.name, fitting)):
            if view.kind in self.limits.free:
                why = f"{view.kind} kept {self._by_whom(view.kind)}: {refusals[0]}"
                return Choice(None, self.algorithm, {}, why)
            taken = (
                pair
                for pair in groupings(scheme, view.shape[1])
                if not self.limits.refusals(view.name, pair[0])
            )
            fitting, note = next(taken, (fitting, note))
        reason = "; ".join(part for part in (why, note) if part)
        reason = reason or f"{view.kind}: the plan's format"
        if self.in_blocks_only and view.kind in ("embedding", "lm_head"):
            return Choice(fitting, *self._outside_blocks(), reason)
        return Choice(fitting, self.algorithm, dict(self.options), reason)

    def _outside_blocks(self) -> tuple[str, dict[str, Any]]:
        """Return the algorithm and options of a weight outside the blocks: `rtn`, and whole-model algorithms if any."""
        by_kind = parts(self.algorithm)
        whole_model = [name for kind in ("rotate", "tune_model") if (name := by_kind.get(kind)) is not None]
        if not whole_model:
            return "rtn", {}
        options = {name: self.options[name] for name in whole_model if name in self.options}
        return "+".join(["rtn", *whole_model]), options

    def _by_whom(self, kind: str) -> str:
        """Return "for RUNTIME" or "as asked": who chose the format of a view of this kind."""
        return f"for {self.limits.runtime}" if self.limits and kind in self.limits.free else "as asked"

    def _scheme_for(self, view: LayerView) -> tuple[Scheme | str, str]:
        """Return a scheme or "keep" for one view, and the reason ("" for the plan's own scheme)."""
        is_tied = view.name in self.tied
        if view.kind == "embedding" and not is_tied:
            if self.embedding is not None:
                override = self.embedding
                return (
                    override if isinstance(override, str) else override.without_activation()
                ), f"embedding, {self._by_whom('embedding')}"
            return _per_channel(self.scheme, None), "a lookup table: one scale per token's row"
        if view.kind == "lm_head" or is_tied:
            head = self.lm_head if self.lm_head is not None else (self.embedding if is_tied else None)
            if head is not None:
                return head, f"output head, {self._by_whom(view.kind)}"
            name = "embedding and output head, tied" if is_tied else "output head"
            return _per_channel(
                self.scheme, _head_activation(self.scheme)
            ), f"{name}: 8 bits, because its errors reach every token"
        return self.scheme, ""


def _per_channel(scheme: Scheme, activation: Activation | None) -> Scheme:
    """Return the symmetric 8-bit scheme with one scale per row, in the scale type of `scheme`."""
    return Scheme(8, "channel", 0, True, scheme.plain_scale_dtype, activation)


def _head_activation(scheme: Scheme) -> Activation | None:
    """Return the output head's activation format: that of `scheme`, but 8-bit activations always get groups.

    Their groups have 64 channels, or as many as the activation groups of `scheme` if those are larger. Smaller groups
    are not needed beside 8-bit weights.
    """
    if scheme.activation is None or scheme.activation.bits == 16:
        return scheme.activation
    return Activation(8, max(64, scheme.activation.group_size))


def fit_groups(scheme: Scheme, columns: int) -> tuple[Scheme, str]:
    """Return the nearest scheme whose groups divide `columns`, and a note of what changed ("" if nothing did).

    A group size becomes the largest multiple of 8 that divides `columns` and is not larger than before. If there is
    none, the weight gets one scale per row, and the activation one scale per token.
    """
    return next(groupings(scheme, columns))


def groupings(scheme: Scheme, columns: int) -> Iterator[tuple[Scheme, str]]:
    """Yield the schemes whose groups divide `columns`, the nearest first, each with the note of `fit_groups`.

    If the scheme's own groups divide `columns`, or it has no groups, only that scheme is yielded.
    """
    activation, activation_note = _fit_activation(scheme.activation, columns)
    if scheme.granularity != "group" or columns % scheme.group_size == 0:
        yield replace(scheme, activation=activation), activation_note
        return
    problem = f"groups of {scheme.group_size} do not divide {columns} inputs"
    for size in _groups(scheme.group_size, columns):
        note = f"{problem}: {f'g{size}' if size else 'per channel'}"
        # two-level scales need several groups
        scale_dtype = scheme.scale_dtype if size else scheme.plain_scale_dtype
        granularity: Granularity = "group" if size else "channel"
        fitted = replace(
            scheme, granularity=granularity, group_size=size, scale_dtype=scale_dtype, activation=activation
        )
        yield fitted, "; ".join(part for part in (note, activation_note) if part)


def _fit_activation(activation: Activation | None, columns: int) -> tuple[Activation | None, str]:
    """Return the nearest activation format whose groups divide `columns`, and a note that names the change."""
    if activation is None or not activation.group_size or columns % activation.group_size == 0:
        return activation, ""
    size = _groups(activation.group_size, columns)[0]
    return Activation(8, size), (
        f"activation groups of {activation.group_size} do not divide {columns} inputs: "
        f"{f'groups of {size}' if size else 'one scale per token'}"
    )


def _groups(size: int, columns: int) -> list[int]:
    """Return the multiples of 8 that divide `columns` and are at most `size`, largest first, and 0 for no groups."""
    return [*(n for n in range(size - size % 8, 7, -8) if columns % n == 0), 0]


def _integer_choices(
    checkpoint: Checkpoint, pick: _Picker, kept_parameters: Container[str]
) -> dict[str, Choice]:
    """Return the choice for every weight of the model, in the order of the model's parameters."""
    views, kept = checkpoint.views()
    choices: dict[str, Choice] = {}
    order = {info.name: index for index, info in enumerate(checkpoint.parameters())}
    items: list[LayerView | Kept] = sorted(
        [*views, *kept], key=lambda item: order[item.parameter if isinstance(item, LayerView) else item.name]
    )
    for item in items:
        if isinstance(item, Kept):
            choices[item.name] = Choice(None, pick.algorithm, {}, item.reason)
        elif item.parameter in kept_parameters:
            # A stack of experts is one parameter, so a pattern that matches one expert keeps the whole stack.
            choices[item.parameter] = Choice(None, pick.algorithm, {}, "kept as asked")
        else:
            choice = pick.choose(item)
            choices[item.parameter if choice.scheme is None else item.name] = choice
    return choices


def _cast(info: ParameterInfo, scheme: Scheme, *, is_kept: bool) -> Choice:
    """Return the choice for one parameter under a float scheme."""
    if is_kept:
        return Choice(None, "rtn", {}, "kept as asked")
    if not info.dtype.is_floating_point:
        return Choice(None, "rtn", {}, "not floating point")
    if info.dtype == torch_dtype(BY_FORMAT[str(scheme)]):
        return Choice(None, "rtn", {}, f"{scheme} already")
    return Choice(scheme, "rtn", {}, "cast")


def _kept_parameters(keep: Iterable[str], checkpoint: Checkpoint) -> frozenset[str]:
    """Return the parameters that a `keep` pattern matches by the name of parameter, module or view.

    Raises `UsageError` for a pattern that matches nothing, which would keep nothing and go unnoticed.
    """
    views, others = checkpoint.views()
    names: dict[str, set[str]] = {}  # by parameter
    for view in views:
        names.setdefault(view.parameter, set()).update((view.name, view.parameter, view.module))
    for other in others:
        names[other.name] = {other.name, other.name.rpartition(".")[0]}

    def matching(pattern: str) -> set[str]:
        return {name for name, own in names.items() if any(fnmatchcase(each, pattern) for each in own)}

    kept: set[str] = set()
    for pattern in keep:
        matches = matching(pattern)
        if not matches:
            wider = f"*{pattern}*"
            hint = f" (did you mean {wider!r}?)" if matching(wider) else ""
            raise UsageError(
                f"keep pattern {pattern!r} matches no parameter of this model{hint}: "
                f"its names are like {min(names)}"
            )
        kept |= matches
    return frozenset(kept)


def _override(text: Scheme | str | None) -> Scheme | str | None:
    """Return an override as a scheme or as "keep"; None means the default. The name of a float format means "keep"."""
    if text is None or isinstance(text, Scheme) or text == "keep":
        return text
    scheme = parse(text)
    return "keep" if scheme.is_float else scheme
