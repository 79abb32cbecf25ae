"""Quantizing into a folder: complete, reproducible, atomic, and refused early when it cannot work."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.tiny import ARCHITECTURES, make_checkpoint
from zeropoint import artifact
from zeropoint.checkpoint import open_checkpoint
from zeropoint.errors import ArtifactError, CheckpointError, SchemeError, UsageError, ZeropointError
from zeropoint.files import safetensors_file
from zeropoint.planning import uniform_plan
from zeropoint.quantization import WeightDone, quantize_checkpoint, stream
from zeropoint.values.plan import Plan
from zeropoint.values.qtensor import QuantizedTensor, Weight

Tiny = Callable[[str], Path]


def assert_equal(first: Weight, second: Weight) -> None:
    if isinstance(first, QuantizedTensor):
        assert isinstance(second, QuantizedTensor)
        assert first.scheme == second.scheme
        np.testing.assert_array_equal(first.dequantize(), second.dequantize())
    else:
        assert isinstance(second, np.ndarray)
        assert first.dtype == second.dtype
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    "format",
    [
        "int8",
        "int4",
        "int4:g40:asym",
        "int3:tensor:asym",
        "int8:tensor:asym:fp16",
        "int5:channel:asym",
        "bf16",
    ],
)
@pytest.mark.parametrize("name", ["llama_tied", "gpt2", "qwen2_moe"])
def test_what_is_written_is_what_was_streamed(
    name: str, format: str, tiny_checkpoint: Tiny, tmp_path: Path
) -> None:
    source, out = tiny_checkpoint(name), tmp_path / "out"
    summary = quantize_checkpoint(source, out, format=format)
    opened = artifact.open(out)
    opened.verify()
    assert opened.nbytes == summary.plan.nbytes == summary.tensor_bytes
    assert opened.names() == list(summary.plan.choices)
    streamed = stream(open_checkpoint(source), summary.plan)
    for (name_a, a), (name_b, b) in zip(streamed, opened.stream(), strict=True):
        assert name_a == name_b
        assert_equal(a, b)
    errors = {error["name"]: error for error in opened.card["layer_errors"]}
    integers = [n for n, c in summary.plan.choices.items() if c.scheme is not None and not c.scheme.is_float]
    assert list(errors) == integers
    assert all(error["relative"] < 0.9 for error in errors.values())
    assert (out / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_moments_are_measured_for_every_called_layer(name: str, tiny_checkpoint: Tiny) -> None:
    from zeropoint.quantization.moments import input_moments

    checkpoint = open_checkpoint(tiny_checkpoint(name))
    views = [v for v in checkpoint.views()[0] if v.kind in ("linear", "conv1d")]
    found = input_moments(checkpoint, {view.name for view in views})
    assert set(found) == {view.name for view in views}
    for view in views:
        assert found[view.name].second_moment.shape == (view.shape[1],)


def test_moments_match_a_plain_forward_pass(tiny_checkpoint: Tiny) -> None:
    from transformers import AutoModelForCausalLM

    from zeropoint.quantization.moments import LENGTH, SEQUENCES, input_moments

    folder, name = tiny_checkpoint("llama_tied"), "model.layers.1.mlp.down_proj"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    seen: list[torch.Tensor] = []
    model.get_submodule(name).register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0].detach()))
    ids = torch.randint(0, 260, (SEQUENCES, min(LENGTH, 128)), generator=torch.Generator().manual_seed(3))
    model(ids)
    found = input_moments(open_checkpoint(folder), {f"{name}.weight"}, seed=3)[f"{name}.weight"]
    expected = seen[0].square().sum((0, 1)).numpy()
    np.testing.assert_allclose(found.second_moment, expected, rtol=1e-4)
    assert found.count == ids.numel()


def test_same_inputs_same_bytes(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    for out in ("a", "b"):
        quantize_checkpoint(tiny_checkpoint("llama_tied"), tmp_path / out, format="int4", seed=1)
    names = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "b").iterdir())
    for name in names:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


@pytest.mark.parametrize("format", ["int4", "int4:g32:asym", "int8"])
def test_large_weights_are_rounded_in_pieces(
    tiny_checkpoint: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    checkpoint = tiny_checkpoint("llama_untied")
    quantize_checkpoint(str(checkpoint), tmp_path / "whole", format=format)
    monkeypatch.setattr("zeropoint.quantization.layers.PIECE_NUMBERS", 64 * 37)
    quantize_checkpoint(str(checkpoint), tmp_path / "pieces", format=format)
    whole, pieces = (tmp_path / name / "model.safetensors" for name in ("whole", "pieces"))
    assert whole.read_bytes() == pieces.read_bytes()


def test_shards(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint("llama_tied"))
    plan = uniform_plan(checkpoint, "int4")
    layout = artifact.Layout(tied={"lm_head.weight": "model.embed_tokens.weight"})
    card = artifact.Card(plan, layout, {"name": "m", "sha256": "", "tensor_bytes": 1}, {})
    weights = list(stream(checkpoint, plan))
    artifact.write(tmp_path / "out", weights, plan=plan, layout=layout, config={"model_type": "llama"},
                   finish=lambda: card, shard_bytes=20_000)  # fmt: skip
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    opened = artifact.open(tmp_path / "out")
    for name, weight in weights:
        assert_equal(weight, opened.read(name))


def test_progress_counts_to_the_end(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    seen: list[WeightDone] = []
    summary = quantize_checkpoint(tiny_checkpoint("gpt2"), tmp_path / "out", progress=seen.append)
    assert [step.name for step in seen] == list(summary.plan.choices)
    assert seen[-1].done == seen[-1].total
    assert sum(step.error is not None for step in seen) == len(summary.layer_errors)


def damaged(folder: Path, tmp_path: Path, value: float) -> Path:
    copy = Path(shutil.copytree(folder, tmp_path / "damaged"))
    tensors = load_file(copy / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("format", ["int8", "int4", "fp16"])
def test_nan_is_named_and_nothing_is_left(
    format: str, value: float, tiny_checkpoint: Tiny, tmp_path: Path
) -> None:
    source = damaged(tiny_checkpoint("llama_tied"), tmp_path, value)
    with pytest.raises(
        CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds 1 NaN.*\(3, 5\)"
    ):
        quantize_checkpoint(source, tmp_path / "out" / "deep", format=format)
    assert not list((tmp_path / "out").iterdir())


def test_a_value_beyond_fp16_is_named(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    source = damaged(tiny_checkpoint("llama_tied"), tmp_path, 1e6)
    with pytest.raises(CheckpointError, match=r"up_proj.*use bf16"):
        quantize_checkpoint(source, tmp_path / "out", format="fp16")
    quantize_checkpoint(source, tmp_path / "out", format="bf16")


def test_a_scale_beyond_fp16_is_named(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    source = damaged(tiny_checkpoint("llama_tied"), tmp_path, 1e9)
    with pytest.raises(SchemeError, match=r"layers\.1\.mlp\.up_proj.*fp16"):
        quantize_checkpoint(source, tmp_path / "out", format="int8:channel:fp16")


def test_existing_output_is_refused_before_any_work(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists"):
        quantize_checkpoint("/no/such/model", out)
    with pytest.raises(UsageError, match="not a Zeropoint artifact"):
        quantize_checkpoint("/no/such/model", out, overwrite=True)
    (out / "precious.txt").unlink()
    for format in ("int8", "int4"):  # over an empty folder, then over an artifact
        quantize_checkpoint(tiny_checkpoint("llama_tied"), out, format=format, overwrite=True)
        assert artifact.open(out).plan.label == format
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("failure", [KeyboardInterrupt, SystemExit, RuntimeError, MemoryError])
def test_an_interrupted_run_leaves_nothing(
    failure: type[BaseException], tiny_checkpoint: Tiny, tmp_path: Path
) -> None:
    steps = 0

    def interrupt(step: WeightDone) -> None:
        nonlocal steps
        steps += 1
        if steps == 5:
            raise failure

    with pytest.raises(failure):
        quantize_checkpoint(tiny_checkpoint("llama_tied"), tmp_path / "out", progress=interrupt)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_overwrite_keeps_the_old_one(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    source = tiny_checkpoint("llama_tied")
    quantize_checkpoint(source, tmp_path / "out")

    def interrupt(step: WeightDone) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(source, tmp_path / "out", format="int4", overwrite=True, progress=interrupt)
    assert artifact.open(tmp_path / "out").plan.label == "int8"


def test_full_disk_up_front(tiny_checkpoint: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ArtifactError, match=r"0 MB free.*free some space"):
        quantize_checkpoint(tiny_checkpoint("llama_tied"), tmp_path / "out")


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.ENOSPC, "disk is full"), (errno.EACCES, "no permission"), (errno.EIO, "cannot be written")],
)
def test_failing_disk_midway(
    code: int, words: str, tiny_checkpoint: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(safetensors_file, "write", fail)
    with pytest.raises(ArtifactError, match=words):
        quantize_checkpoint(tiny_checkpoint("llama_tied"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_the_systems_error_survives_the_library(tmp_path: Path) -> None:
    """safetensors wraps errors of its own writing; "disk full" must stay recognizable, as "too large" is here."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        with pytest.raises(OSError, match="large") as caught:
            safetensors_file.write(tmp_path / "big.safetensors", {"a": np.zeros(1_000_000, np.int8)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG


def test_unwritable_output(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be written"):
        quantize_checkpoint(tiny_checkpoint("llama_tied"), tmp_path / "file" / "out")


def test_a_plan_that_lies_about_its_size_is_refused(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint("llama_tied"))
    data = {**uniform_plan(checkpoint, "int8").to_json(), "nbytes": 5}
    with pytest.raises(UsageError, match="5 bytes"):
        quantize_checkpoint(checkpoint, tmp_path / "out", plan=Plan.from_json(json.loads(json.dumps(data))))


def test_low_coverage_is_refused(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"less than the 99\.0%"):
        quantize_checkpoint(tiny_checkpoint("gpt2"), tmp_path / "out", min_coverage=0.99)


def test_a_stream_that_breaks_the_plan_is_refused(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint("llama_tied"))
    plan = uniform_plan(checkpoint, "int8")
    weights = list(stream(checkpoint, plan))
    layout = artifact.Layout()
    card = artifact.Card(plan, layout, {"name": "m", "sha256": "", "tensor_bytes": 1}, {})

    def attempt(given: Iterator[tuple[str, Weight]] | list[tuple[str, Weight]]) -> None:
        artifact.write(tmp_path / "out", given, plan=plan, layout=layout, config={}, finish=lambda: card)

    for broken in (weights[:-1], [*weights, weights[0]], [("stranger", weights[0][1])]):
        with pytest.raises(ZeropointError):
            attempt(broken)
    assert not list(tmp_path.iterdir())


def test_memory_is_bounded_by_one_weight(tmp_path: Path) -> None:
    """The stream never holds two weights: what it gave is collected once the caller lets go."""
    import gc
    import weakref

    checkpoint = open_checkpoint(make_checkpoint("llama_untied", tmp_path / "m"))
    alive: list[weakref.ref[np.ndarray]] = []
    for _, weight in stream(checkpoint, uniform_plan(checkpoint, "int8")):
        gc.collect(0)
        assert (
            sum(ref() is not None for ref in alive) <= 1
        )  # the previous one, until the loop variable moves on
        if isinstance(weight, QuantizedTensor):
            alive.append(weakref.ref(weight.codes))
