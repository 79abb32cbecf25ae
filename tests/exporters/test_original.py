"""Files in llama.cpp's own mixes of types, made of the original weights: read back equal, near, or refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import MODEL_ARCH, GGMLQuantizationType

from tests.support import tiny
from zeropoint import exporters
from zeropoint.algorithms import _gguf_grids as grids
from zeropoint.cli.main import main
from zeropoint.errors import GateError, UnsupportedError, UsageError
from zeropoint.gguf.file import GgufFile
from zeropoint.gguf.types import TYPES, superblocks
from zeropoint.gguf.types.mixes import MIXES, Model
from zeropoint.originals import OriginalModel, open_original, quantize_to
from zeropoint.values.plan import Choice
from zeropoint.values.stats import LayerStats

Kind = GGMLQuantizationType
Make = Callable[[str], Path]

FAMILIES = ("llama_tied", "llama_untied", "qwen2", "qwen3", "gemma", "gpt2")


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A tiny model whose rows are 256 weights long, but for its MLP's."""
    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            folder = tmp_path_factory.mktemp("original") / kind
            made[kind] = tiny.make_checkpoint(kind, folder, hidden_size=256, outliers=False)
            tiny.write_tokenizer(folder, merges=[("t", "h")])
        return made[kind]

    return get


def opened(folder: Path) -> OriginalModel:
    return open_original(folder, tokens=256)


@pytest.mark.parametrize("mix", ["Q3_K_M", "Q4_K_M", "Q5_K_M", "Q6_K", "Q4_0", "Q4_1", "Q5_1", "Q8_0"])
def test_every_type_is_read_back_equal(make: Make, mix: str, tmp_path: Path) -> None:
    out = tmp_path / "m.gguf"
    made = exporters.export_original(opened(make("llama_untied")), "gguf", mix, out)
    assert made.verified == sum(int(np.prod(entry.shape)) for entry in GgufFile(out).tensors.values())
    recipe, model = MIXES[mix], Model(MODEL_ARCH.LLAMA, 2, tied=False)
    for name, entry in GgufFile(out).tensors.items():
        assert entry.kind == recipe.choose(name, entry.shape, model)
    assert GgufFile(out).metadata["general.file_type"] == recipe.file_type


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_computes_what_the_original_does(kind: str, make: Make, tmp_path: Path) -> None:
    """Names, order of rows, ties and folded norms, through our own reading of the file."""
    from zeropoint.importers import import_model
    from zeropoint.runtime import open_runner

    exporters.export_original(opened(make(kind)), "gguf", "Q6_K", tmp_path / "m.gguf")
    import_model(tmp_path / "m.gguf", tmp_path / "back")
    tokens = np.random.default_rng(0).integers(0, 256, 48)
    found = open_runner(tmp_path / "back").logits(tokens)
    meant = open_runner(make(kind), dtype="float32").logits(tokens)
    assert np.linalg.norm(found - meant) < 0.1 * np.linalg.norm(meant)


def test_the_same_model_and_text_give_the_same_bytes(make: Make, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        exporters.export_original(opened(make("llama_tied")), "gguf", "Q4_K_M", tmp_path / name)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize("kind", sorted(superblocks.FORMATS))
def test_codes_make_up_for_each_other_on_a_types_own_grid(kind: Kind) -> None:
    """What counts is the layer's output: GPTQ on the fitted grid leaves less error in it than rounding to nearest."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(32, 512)).astype(np.float32)
    inputs = (rng.normal(size=(2048, 512)) @ rng.normal(size=(512, 512)) / 16).astype(np.float32)
    hessian = inputs.T @ inputs
    stats = LayerStats(hessian.diagonal().copy(), len(inputs), hessian)
    view: Any = _View("w", weight)
    made = quantize_to({"w": kind}, [view], Choice(TYPES[kind].scheme, "gptq"), stats)[0].weight
    nearest = grids.fit(weight, stats, kind)

    def lost(found: Any) -> float:
        error = found.dequantize() - weight
        return float(np.einsum("ij,jk,ik->", error, hessian, error, optimize=True))

    assert lost(made) < 0.8 * lost(nearest)


class _View:
    """As much of a `LayerView` as quantizing takes."""

    def __init__(self, name: str, weight: Any) -> None:
        import torch

        self.name, self._weight = name, torch.from_numpy(weight)

    def read(self) -> Any:
        return self._weight


def test_without_statistics_it_is_said() -> None:
    view: Any = _View("w", np.ones((4, 256), np.float32))
    choice = Choice(TYPES[Kind.Q4_K].scheme, "gptq")
    (made,) = quantize_to({"w": Kind.Q4_K}, [view], choice, None)
    assert made.warning.startswith("w was rounded to nearest instead: gptq needs the Hessian")


def test_the_mix_is_llama_cpps() -> None:
    """As llama.cpp's own quantizer made it of a model of 30 layers with rows of 576 and 1,536."""
    model, recipe = Model(MODEL_ARCH.LLAMA, 30, tied=True), MIXES["Q4_K_M"]
    wide = [
        i for i in range(30) if recipe.choose(f"blk.{i}.ffn_down.weight", (576, 1536), model) == Kind.Q6_K
    ]
    assert wide == [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29]
    assert recipe.choose("blk.3.ffn_down.weight", (576, 1536), model) == Kind.Q4_K
    assert recipe.choose("blk.0.attn_v.weight", (192, 576), model) == Kind.Q8_0
    assert recipe.choose("blk.3.attn_v.weight", (192, 576), model) == Kind.Q5_0
    assert recipe.choose("token_embd.weight", (49152, 576), model) == Kind.Q8_0
    assert recipe.choose("blk.0.attn_norm.weight", (576,), model) == Kind.F32
    assert recipe.choose("blk.0.attn_q.weight", (64, 72), model) == Kind.F16


def test_a_changed_block_is_caught_and_nothing_is_left(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = superblocks.encode

    def off_by_one(weight: superblocks.SuperTensor) -> Any:
        raw = honest(weight)
        raw[0, 100] ^= 1
        return raw

    monkeypatch.setattr(superblocks, "encode", off_by_one)
    with pytest.raises(GateError, match=r"token_embd\.weight was read back with other values"):
        exporters.export_original(opened(make("llama_tied")), "gguf", "Q4_K_M", tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_the_original_ones_are_refused(make: Make, tmp_path: Path) -> None:
    from zeropoint.quantization import quantize_checkpoint

    quantize_checkpoint(make("llama_tied"), tmp_path / "int8")
    with pytest.raises(UsageError, match=r"quantized already.*model that it was made from \(llama_tied\)"):
        open_original(tmp_path / "int8")
    exporters.export_original(opened(make("llama_tied")), "gguf", "Q8_0", tmp_path / "m.gguf")
    with pytest.raises(UsageError, match="converted already"):
        open_original(tmp_path / "m.gguf")


def test_what_gguf_has_no_place_for_is_named_before_any_work(make: Make, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="no GGUF architecture is known for 'opt'"):
        exporters.export_original(opened(make("opt")), "gguf", "Q4_K_M", tmp_path / "m.gguf")
    assert list(tmp_path.iterdir()) == []


def test_the_command(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = str(make("llama_tied")), str(tmp_path / "m.gguf")
    command = ["export", source, "--out", out, "--calibration-tokens", "256"]
    assert main([*command, "--to", "gguf", "--type", "Q9_K"]) == 2
    assert "gguf has no type 'Q9_K': use Q3_K_S" in capsys.readouterr().err
    assert main([*command, "--to", "vllm", "--type", "Q4_K_M"]) == 2
    assert "vllm has no weight types of its own" in capsys.readouterr().err
    assert main([*command, "--to", "gguf"]) == 2
    assert "a calibration text is for --type" in capsys.readouterr().err
    assert main([*command, "--to", "gguf", "--type", "Q4_K_M"]) == 0
    assert "verified" in capsys.readouterr().out
    assert main([*command, "--to", "gguf", "--type", "Q4_K_M"]) == 2
    assert "exists" in capsys.readouterr().err


def test_the_python_entry_point(make: Make, tmp_path: Path) -> None:
    import zeropoint

    made = zeropoint.export(
        make("llama_tied"), "gguf", tmp_path / "m.gguf", type="Q4_1", calibration_tokens=256
    )
    assert made.verified is not None
    with pytest.raises(UsageError, match="--type"):
        zeropoint.export(make("llama_tied"), "gguf", tmp_path / "n.gguf", calibration_tokens=256)


@pytest.mark.parametrize("lossy", [True, False])
def test_what_is_run_beside_the_file(
    lossy: bool, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The float model in float32, where the file is made of it; an artifact as it is."""
    from zeropoint.evaluate.gate import export_agreement as agreement
    from zeropoint.evaluate.worker import client
    from zeropoint.evaluate.worker.messages import QualityRequest, QualityResult
    from zeropoint.quantization import quantize_checkpoint
    from zeropoint.runtime import external

    monkeypatch.setattr(
        external.ExternalModel, "prepare", lambda self: None
    )  # as if llama.cpp were installed
    source = make("llama_tied")
    if not lossy:
        quantize_checkpoint(source, tmp_path / "int8", format="int8")
        source = tmp_path / "int8"
    asked: list[QualityRequest] = []

    def answer(request: QualityRequest, **_: object) -> QualityResult:
        asked.append(request)
        own, exact = agreement.OWN, agreement.EXACT
        said = {own: (0.034, 12), exact: (7e-6, None)}
        return QualityResult(
            runs={},
            reference_perplexity={},
            candidates={
                name: {"kl_divergence": {"value": said[name][0]}, "top1_agreement": {"value": 0.9}}
                for name in request.candidates
            },
            scored_tokens=1000,
            context=256,
            units=1,
            unit_kind="documents",
            text="",
            text_digest="",
            seed=0,
            resamples=1,
            answers=[
                {
                    "answers": [
                        {"token_count": 64, "first_difference": said[name][1] if name else None}
                        for name in request.speakers
                    ]
                }
            ],
        )

    monkeypatch.setattr(client, "call", answer)
    (tmp_path / "m.gguf").write_bytes(b"")
    found = agreement.agreement(source, tmp_path / "m.gguf", weights=1, lossy=lossy, threads=1)
    assert asked[0].reference.dtype == ("float32" if lossy else "auto")
    assert asked[0].candidates[agreement.OWN].path == str(tmp_path / "m.gguf")
    own, *exact = found.sentences()
    assert own == (
        f"llama.cpp runs it: KL 0.034 nats/token from "
        f"{'the float model, which is what it loses' if lossy else 'the artifact'}; "
        "top-1 90.0% of 1000 tokens, the first 12 of 64 greedy tokens the same"
    )
    assert found.to_json()["against"] == ("float model" if lossy else "artifact")
    if lossy:
        assert not exact
    else:
        assert exact[0].startswith("in float32, which rounds nothing further: KL 7e-06")
        huge = agreement.agreement(source, tmp_path / "m.gguf", weights=10**15, threads=1)
        assert "would take 4000000.0 GB of memory" in huge.sentences()[1]
