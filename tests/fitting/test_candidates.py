"""Groups, and mixes of formats: they cost what they say and compute what artifacts do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.fitting.conftest import candidates_of, silent
from tests.support.tiny import make_checkpoint
from zeropoint.checkpoint import open_checkpoint
from zeropoint.errors import UsageError
from zeropoint.evaluate.quality.token_scores import measure_quality
from zeropoint.evaluate.quality.windows import Windows
from zeropoint.fitting.candidates import WIDE, Candidates, groups_of, read_record
from zeropoint.fitting.loss import LossMeter
from zeropoint.fitting.speed import Seconds, measure_seconds, measured_again
from zeropoint.quantization import quantize_checkpoint
from zeropoint.runtime.native.runner import NativeRunner


def test_layers_that_read_one_input_are_one_group(candidates: Candidates) -> None:
    names = [group.name for group in candidates.groups]
    assert names[0] == "embedding"
    assert names[1:5] == ["block 0 qkv", "block 0 o", "block 0 gate_up", "block 0 down"]
    assert len(candidates.groups[1].weights) == 3
    assert sum("head" in name for name in names) == 0  # tied


@pytest.mark.parametrize("kind", ["llama_untied", "gpt2", "qwen3"])
def test_every_quantized_weight_is_in_one_group(kind: str, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(make_checkpoint(kind, tmp_path / kind))
    found = Candidates(checkpoint, read_record(checkpoint), ["int8"], algorithm="rtn", seed=0)
    grouped = [name for group in found.groups for name in group.weights]
    plan = found.plan(np.ones(len(found.groups), np.int64), [""] * len(found.groups), "x", 0)
    assert sorted(grouped) == sorted(n for n, c in plan.choices.items() if c.scheme is not None)
    assert len(groups_of(found.record)) == len(found.groups)


def test_a_plan_takes_what_the_table_says_and_runs_as_its_artifact_does(
    model: Path, candidates: Candidates, windows: np.ndarray, tmp_path: Path
) -> None:
    picks = np.arange(len(candidates.groups)) % 3
    nbytes, fixed = candidates.nbytes()
    plan = candidates.plan(picks, ["why"] * len(picks), "mix", 0)
    assert plan.nbytes == nbytes[np.arange(len(picks)), picks].sum() + fixed
    summary = quantize_checkpoint(model, tmp_path / "mix", plan=plan)
    assert summary.tensor_bytes == plan.nbytes
    artifact = NativeRunner.open(tmp_path / "mix", threads=1)
    ids = windows[0].astype(np.int32)
    zeros, positions = np.zeros_like(ids), np.arange(len(ids), dtype=np.int32)
    decoder = candidates.decoder(picks)
    mixed = decoder.forward(decoder.cache(len(ids)), ids, zeros, positions, threads=1)
    np.testing.assert_array_equal(mixed, artifact.logits(windows[0]))


def test_the_loss_is_what_the_evaluator_measures(
    model: Path, candidates: Candidates, windows: np.ndarray, tmp_path: Path
) -> None:
    groups = len(candidates.groups)
    meter = LossMeter(candidates.decoder(np.zeros(groups, np.int64)), windows, threads=1)
    assert meter.measure(candidates.decoder(np.zeros(groups, np.int64))).kl < 1e-6
    found = meter.measure(candidates.decoder(np.full(groups, 2)))
    quantize_checkpoint(
        model, tmp_path / "int4", plan=candidates.plan(np.full(groups, 2), [""] * groups, "int4", 0)
    )
    run = measure_quality(
        NativeRunner.open(model, threads=1),
        {"int4": NativeRunner.open(tmp_path / "int4", threads=1)},
        windows=Windows(windows, np.zeros_like(windows)),
    )
    assert found.kl == pytest.approx(run.candidates["int4"].kl_mean.value, rel=1e-3)
    assert found.perplexity_increase == pytest.approx(
        run.candidates["int4"].perplexity_ratio.value - 1, rel=1e-2, abs=1e-4
    )
    assert meter.measure(candidates.decoder(np.full(groups, 2)), windows=2).tokens == 64
    one = meter.measure(candidates.decoder(np.full(groups, 2)), windows=1)
    assert one.tokens == 32
    assert 0 < one.standard_error < one.kl  # a NaN would refuse every budget


def test_seconds_of_a_uniform_model_are_its_own(candidates: Candidates) -> None:
    seconds = measure_seconds(candidates, threads=1, step=silent)
    for table in (seconds.decode, seconds.prefill):
        assert table.shape == (len(candidates.groups), 3)
        assert (table > 0).all()
    assert candidates.formats[0] == WIDE


def test_old_seconds_are_scaled_to_the_machine_of_now(candidates: Candidates) -> None:
    before = measure_seconds(candidates, threads=1, step=silent)
    before = Seconds(before.decode * 1000, before.prefill * 1000)  # from a far slower day
    now = measured_again(candidates, before, threads=1, step=silent)
    for old, new in ((before.decode, now.decode), (before.prefill, now.prefill)):
        assert (new < old / 10).all()
        np.testing.assert_allclose(new / new.sum(0), old / old.sum(0), rtol=1e-9)  # the groups' shares stay


def test_formats_must_differ(model: Path) -> None:
    with pytest.raises(UsageError, match="differ"):
        candidates_of(model, "int8", "int8")
