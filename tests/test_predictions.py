"""Predictions of memory from shapes, and refusals before any work."""

from __future__ import annotations

import dataclasses
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from zeropoint.checkpoint import open_checkpoint
from zeropoint.errors import UsageError, ZeropointError, is_out_of_memory
from zeropoint.machine.detect import Machine
from zeropoint.planning import uniform_plan
from zeropoint.predictions import TORCH_BYTES, Need, Observed, Sizes, quantizing, refuse_large
from zeropoint.quantization import quantize_checkpoint
from zeropoint.quantization.need import need_of
from zeropoint.sources import open_source


@pytest.mark.parametrize("family", ["llama_tied", "llama_untied", "gpt2", "mixtral", "bloom"])
def test_sizes_are_those_of_the_model(tiny_checkpoint: Callable[[str], Path], family: str) -> None:
    source = open_source(tiny_checkpoint(family))
    checkpoint = open_checkpoint(tiny_checkpoint(family))
    infos = checkpoint.parameters()
    sizes = Sizes.of(source)
    blocks = [f"{path}." for path in checkpoint.blocks()]
    assert sizes.parameters == sum(info.numel for info in infos if info.tied_to is None)
    assert sizes.blocks == len(blocks)
    assert sizes.block == max(
        sum(info.numel for info in infos if info.name.startswith(path)) for path in blocks
    )
    assert (sizes.hidden, sizes.vocabulary, sizes.embedding) == (64, 260, 64 * 260)
    assert sizes.stored_width == 4


def test_larger_work_needs_more(tiny_checkpoint: Callable[[str], Path]) -> None:
    checkpoint = open_checkpoint(tiny_checkpoint("llama_tied"))
    plans = [uniform_plan(checkpoint, "int4", algorithm=name) for name in ("rtn", "awq", "gptq", "best")]
    needs = [need_of(checkpoint, plan) for plan in plans]
    memory = [need.memory for need in needs]
    assert memory == sorted(memory)
    assert memory[0] > TORCH_BYTES
    assert needs[0].disk == plans[0].nbytes
    assert need_of(checkpoint, plans[2], 100).memory < memory[2]
    sizes = Sizes.of(checkpoint.source)
    assert quantizing(sizes, Observed(0), 5).memory <= quantizing(sizes, Observed(1000), 5).memory


def test_a_refusal_names_both_numbers() -> None:
    machine = dataclasses.replace(Machine.detect(), ram_available_bytes=1_500_000_000)
    refuse_large("it", Need(1_500_000_000), "do", machine)
    refuse_large("it", Need(9), "do", dataclasses.replace(machine, ram_available_bytes=0))  # not known
    with pytest.raises(
        UsageError, match=r"^it needs about 2\.0 GB of memory, of which 1\.5 GB are free: leave it$"
    ):
        refuse_large("it", Need(2_000_000_000), "leave it", machine)


def test_allocators_errors_are_recognized() -> None:
    torch_words = (
        "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
    )
    assert is_out_of_memory(RuntimeError(torch_words))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("a bug"))
    wrapped = ZeropointError("the artifact does not load")
    wrapped.__cause__ = RuntimeError(torch_words)
    assert is_out_of_memory(wrapped)


COMMANDS = {
    "check": ["check", "{artifact}", "--against", "{model}"],
    "compare": ["compare", "{model}", "{artifact}", "--no-speed"],
    "quantize": ["quantize", "{model}", "-o", "{out}"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_too_little_memory_is_refused_in_one_sentence(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path, command: str
) -> None:
    """The process may allocate 300 MB, as under `ulimit -d`."""
    model = tiny_checkpoint("llama_tied")
    quantize_checkpoint(model, tmp_path / "artifact")
    names = {"artifact": tmp_path / "artifact", "model": model, "out": tmp_path / "out"}
    arguments = [part.format(**names) for part in COMMANDS[command]]
    limit = (TORCH_BYTES - 100_000_000,) * 2
    done = subprocess.run(
        [sys.executable, "-m", "zeropoint", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, limit),
    )
    assert done.returncode == 2
    assert "needs about 0." in done.stderr
    assert "0.3 GB are free" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
