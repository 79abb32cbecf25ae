"""Once through the real runtime and a real artifact, in one measuring process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from zeropoint.checkpoint import open_checkpoint
from zeropoint.evaluate import check
from zeropoint.planning import uniform_plan
from zeropoint.quantization import quantize_checkpoint


def test_an_int8_artifact_is_close_to_its_model(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path, text_file: str
) -> None:
    source = tiny_checkpoint("llama_tied")
    checkpoint = open_checkpoint(str(source))
    quantize_checkpoint(checkpoint, tmp_path / "int8", plan=uniform_plan(checkpoint, "int8"))
    verdict = check(str(tmp_path / "int8"), str(source), text=text_file, tokens=400, context=64, threads=1)
    assert verdict.passed, verdict.sentences()
    assert 0 < verdict.bounds[0].value < 0.01
    assert verdict.bounds[0].bound == 0.03
    assert verdict.scored_tokens >= 400
