"""The promises on the real model, measured end to end through the command line.

The figures this release promises; `docs/formats.md` has what was measured.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import forked
from zeropoint import quantize
from zeropoint.cli.main import main

pytestmark = pytest.mark.reference_model
TEXT = Path(__file__).parents[1] / "examples" / "data" / "eval.txt"
TOKENS = "4096"
#: `compare` also measures speed. No test here checks the speed, so few tokens are timed: torch is slow at BF16 on
#: processors without BF16 instructions. One thread, because another process of pytest-xdist runs tests meanwhile.
QUICK = (
    "--threads",
    "1",
    "--repeats",
    "3",
    "--new-tokens",
    "8",
    "--prompt-tokens",
    "64",
    "--prompt",
    "Hello",
)


@pytest.fixture(scope="module")
def measured(
    reference_model: Path,
    reference_artifact: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("real")
    # What "plain" means: min-max, weights only, embedding and head as they were.
    quantize(
        reference_model,
        out / "plain4",
        format="int4:g32:asym:bf16",
        options={"search": False},
        keep=["*embed_tokens*"],
    )
    report = out / "report.json"
    names = list(map(str, (reference_artifact("int8"), reference_artifact("int4"), out / "plain4")))
    options = [
        "--text",
        str(TEXT),
        "--tokens",
        TOKENS,
        "--json",
        str(report),
        "--html",
        str(out / "report.html"),
    ]
    with forked.new_processes():
        assert main(["compare", str(reference_model), *names, *options, *QUICK]) == 0
    return dict(json.loads(report.read_text()))


@pytest.fixture(scope="module")
def value(measured: dict[str, Any], reference_model: Path) -> Callable[[str, str], float]:
    def find(model: str, metric: str) -> float:
        name = reference_model.resolve().name if model == "reference" else model
        found = [m["value"] for m in measured["measurements"] if (m["model"], m["metric"]) == (name, metric)]
        assert len(found) == 1, (name, metric, found)
        return float(found[0])

    return find


def test_int8_keeps_the_model(value: Callable[[str, str], float]) -> None:
    assert value("int8", "kl_divergence") <= 0.015
    assert value("int8", "top1_agreement") >= 0.93


def test_int4_beats_plain_rounding(value: Callable[[str, str], float]) -> None:
    """Although it also quantizes the embedding, the head and the activations."""
    assert value("int4", "kl_divergence") < value("plain4", "kl_divergence")


def test_artifacts_are_small(value: Callable[[str, str], float]) -> None:
    source = value("reference", "weights_bytes")
    assert value("int8", "weights_bytes") <= 0.52 * source
    assert value("int4", "weights_bytes") <= 0.34 * source


def test_resident_weights_follow_the_artifact(value: Callable[[str, str], float]) -> None:
    """What loading adds to a process that has imported everything, against the BF16 model's share."""
    source = value("reference", "resident_increase_bytes")
    assert value("int8", "resident_increase_bytes") <= 0.6 * source
    assert value("int4", "resident_increase_bytes") <= 0.4 * source
