"""The text is split so that the gate's part has no say in any decision."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.support.tiny import make_checkpoint
from zeropoint.errors import UsageError
from zeropoint.evaluate import check
from zeropoint.evaluate.quality.windows import EvaluationText, default_text
from zeropoint.fitting import Settings
from zeropoint.fitting.cache import Cache
from zeropoint.fitting.planner import SHARES, split
from zeropoint.values.budget import Budget

#: The package has a function of the same name.
fit_module = import_module("zeropoint.fitting.fit")
QUICK: dict[str, Any] = {"tokens": 300, "gate_tokens": 600, "evaluations": 2, "threads": 1}


def text_of(*documents: str) -> EvaluationText:
    return EvaluationText(documents, "a text")


def test_each_document_is_in_one_part_and_each_part_has_its_share() -> None:
    text = default_text()
    parts = split(text)
    taken = [document for part in parts for document in part.documents]
    assert sorted(taken) == sorted(set(text.documents))
    sizes = [sum(map(len, part.documents)) for part in parts]
    for size, share in zip(sizes, SHARES.values(), strict=True):
        assert size / sum(sizes) == pytest.approx(share / sum(SHARES.values()), rel=0.15)
    assert [part.documents for part in split(text)] == [part.documents for part in parts]


@pytest.mark.parametrize(
    "documents",
    [
        ("one",),
        ("one", "two"),
        ("one", "one", "one", "one"),
        ("one", "two", " one\n", "two "),
        ("one two", "one\ttwo", "one  two", "three"),
    ],
)
def test_a_document_that_stands_twice_is_one(documents: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="at least three"):
        split(text_of(*documents))


def test_repeated_documents_are_not_in_two_parts() -> None:
    parts = split(text_of(*[f"document {number % 5}" for number in range(40)]))
    taken = [document for part in parts for document in part.documents]
    assert len(taken) == len(set(taken)) == 5


def test_what_calibration_observes_is_left_out() -> None:
    documents = [f"document {number}" for number in range(9)]
    parts = split(text_of(*documents), seen=[" document 3", "document 8\n"])
    taken = {document for part in parts for document in part.documents}
    assert taken == set(documents) - {"document 3", "document 8"}
    with pytest.raises(UsageError, match="outside the calibration text"):
        split(text_of(*documents), seen=documents[:7])


def test_one_long_document_does_not_starve_the_others() -> None:
    parts = split(text_of("x" * 10_000, *[f"document {number} " * 9 for number in range(30)]))
    assert all(part.documents for part in parts)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama_tied", tmp_path_factory.mktemp("split") / "model")


class Watched:
    """`check`, which remembers the texts and may be told what to find."""

    def __init__(self, factors: list[float]) -> None:
        self.texts: list[str] = []
        self.tasks: list[Any] = []
        self._factors = factors

    def __call__(self, artifact: str, against: str, *, text: str, max_kl: float, **given: Any) -> Any:
        """The bound is moved by the next of the factors, and the verdict made of what was found."""
        self.texts.append(Path(text).read_text())
        self.tasks.append(given.get("tasks"))
        factor = self._factors.pop(0)
        return check(artifact, against, text=text, max_kl=max_kl * factor, **given)


@pytest.mark.parametrize(
    ("factors", "met"),
    [([100, 100], True), ([100, 1e-4], False), ([1e-2, 100, 100], True), ([1e-2, 1e-2, 1e-2, 100], True)],
    ids=["at once", "the gate fails", "one trial fails", "all trials fail"],
)
def test_the_gate_is_asked_once_and_last(
    factors: list[float], met: bool, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched, count = Watched(list(factors)), len(factors)
    monkeypatch.setattr(fit_module, "check", watched)
    settings = Settings(**QUICK, cache=tmp_path / "cache")
    found = fit_module.fit(model, tmp_path / "out", Budget(max_kl=0.02), settings, lambda *_: None)
    *trials, gate = watched.texts
    assert len(set(trials)) == 1
    assert 1 <= len(trials) < count or len(watched.texts) == count
    assert not set(gate.split("\n\n\n")) & set(trials[0].split("\n\n\n"))
    assert found.verdict is not None
    assert found.verdict.passed is met
    assert "documents for the gate" in found.verdict.text
    planning, trial, judged = split(default_text())
    assert trials[0].split("\n\n\n")[0].strip() == trial.documents[0].strip()
    assert gate.split("\n\n\n")[0].strip() == judged.documents[0].strip()
    assert planning.documents[0] not in gate + trials[0]


def test_what_is_kept_for_the_next_plan_is_not_the_gates(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two runs whose gates differ as much as can be, the same is remembered."""
    kept = []
    for name, factor in (("passes", 100.0), ("fails", 1e-4)):
        written: list[float] = []
        monkeypatch.setattr(fit_module, "check", Watched([100.0, factor]))
        real = Cache.write
        with monkeypatch.context() as patch:
            patch.setattr(
                Cache,
                "write",
                lambda self, key, known, real=real, written=written: (
                    written.append(known.margin),
                    real(self, key, known),
                )[1],
            )
            settings = Settings(**QUICK, cache=tmp_path / name)
            fit_module.fit(model, tmp_path / f"out-{name}", Budget(max_kl=0.02), settings, lambda *_: None)
        kept.append(written[-1])
    assert kept[0] == kept[1]


def test_without_a_bound_on_the_loss_there_is_nothing_to_try(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched([1.0])
    monkeypatch.setattr(fit_module, "check", watched)
    settings = Settings(**QUICK, cache=tmp_path / "cache")
    found = fit_module.fit(model, tmp_path / "out", Budget(max_memory=75_000), settings, lambda *_: None)
    assert len(watched.texts) == 1
    assert found.verdict is not None
