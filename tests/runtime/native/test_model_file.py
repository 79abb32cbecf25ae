"""Model files and examples/c/generate.c, which runs them: the C program's tokens and logits are the engine's, here and
on ARM64 at every level."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.native.conftest import Artifacts
from zeropoint.cli.main import main
from zeropoint.kernels import isa_levels, library
from zeropoint.runtime.native import loading
from zeropoint.runtime.native.session import Session

ROOT = Path(__file__).parents[3]
PROMPT, COUNT = [3, 5, 7, 11, 2], 24
ARM = ROOT / "build/arm64"  # of `make arm-test`


def compile_example(compiler: str, folder: Path, out: Path) -> None:
    """Compile generate.c against the shared library in `folder`: the archive needs a build of its own."""
    source = ROOT / "examples/c/generate.c"
    flags = ["-std=gnu99", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'native/include'}"]
    link = [str(folder / library.FILE_NAME), f"-Wl,-rpath,{folder}", "-lm", "-lpthread"]
    subprocess.run([compiler, *flags, str(source), *link, "-o", str(out)], check=True)


def generated(command: list[str], model: Path, **environment: str) -> str:
    arguments = [*command, str(model), str(COUNT), *map(str, PROMPT)]
    run = subprocess.run(
        arguments, check=True, capture_output=True, text=True, env={**os.environ, **environment}
    )
    return run.stdout


def expected(artifact: Path) -> str:
    """Return what the example prints, computed by the engine in Python."""
    session = Session(loading.load(artifact).decoder, threads=1)
    tokens, rows, fresh = [], [], PROMPT
    for _ in range(COUNT):
        rows.append(session.feed(fresh).tobytes())
        tokens.append(int(np.frombuffer(rows[-1], np.float32).argmax()))
        fresh = [tokens[-1]]
    digest = 14695981039346656037
    for byte in b"".join(rows):
        digest = (digest ^ byte) * 1099511628211 & (1 << 64) - 1
    return f"{' '.join(map(str, tokens))}\ndigest {digest:016x}\n"


@pytest.fixture(scope="module")
def built(artifact_of: Artifacts, tmp_path_factory: pytest.TempPathFactory) -> dict[Path, str]:
    """Return model files, with what the example must print for each."""
    folder, files = tmp_path_factory.mktemp("models"), {}
    # A tied head and windows; layer norms, biases and a fused matrix; biases and a head of its own.
    for name, format in [("gemma2", "int8"), ("gpt_neox", "int4"), ("llama3_rope", "int4")]:
        artifact, out = artifact_of(name, format), folder / f"{name}-{format}.zeropoint"
        assert main(["pack", str(artifact), "-o", str(out)]) == 0
        files[out] = expected(artifact)
    return files


@pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
def test_the_c_example_computes_what_the_engine_computes(built: dict[Path, str], tmp_path: Path) -> None:
    program = tmp_path / "generate"
    compile_example("cc", Path(library.load()._name).parent, program)
    for model, output in built.items():
        for level in isa_levels():
            assert generated([str(program)], model, ZEROPOINT_ISA=level) == output, (model.name, level)
    damaged = tmp_path / "damaged"
    damaged.write_bytes(next(iter(built)).read_bytes()[:-1])
    with pytest.raises(subprocess.CalledProcessError) as stop:
        generated([str(program)], damaged)
    assert "not a model file of this version" in stop.value.stderr


@pytest.mark.skipif(
    not (ARM / "libzeropoint.so").is_file() or shutil.which("qemu-aarch64") is None,
    reason="`make arm-test` builds the library for ARM64, if its compiler and emulator are installed",
)
def test_every_arm_level_gives_the_same_bits(built: dict[Path, str], tmp_path: Path) -> None:
    program = tmp_path / "generate-arm"
    compile_example("aarch64-linux-gnu-gcc", ARM, program)
    emulator = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu"]
    for model, output in built.items():
        for level in ("scalar", "neon", "dotprod", "i8mm"):
            found = generated([*emulator, str(program)], model, ZEROPOINT_ISA=level)
            assert found == output, (model.name, level)
    one = next(iter(built))
    assert generated([*emulator, "-cpu", "cortex-a72", str(program)], one) == built[one]
    with pytest.raises(subprocess.CalledProcessError) as stop:
        generated([*emulator, "-cpu", "cortex-a72", str(program)], one, ZEROPOINT_ISA="dotprod")
    assert "this machine cannot run the dotprod kernels" in stop.value.stderr


def test_pack_keeps_an_existing_file(
    artifact_of: Artifacts, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "model.zeropoint"
    out.write_text("mine")
    assert main(["pack", str(artifact_of("gemma2", "int8")), "-o", str(out)]) == 2
    assert "exists" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert main(["pack", str(artifact_of("gemma2", "int8")), "-o", str(out), "--overwrite"]) == 0
    assert main(["pack", str(artifact_of("gemma2", "int8")), "-o", str(tmp_path / "none/file")]) == 2
    assert "cannot be written" in capsys.readouterr().err
