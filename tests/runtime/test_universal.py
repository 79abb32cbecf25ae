"""The universal runtime against a fake-quantized torch model, on one tiny model of each architecture."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM as HuggingFace

from tests.runtime.fake import fake_quantize_, round_activations
from tests.support.tiny import ARCHITECTURES, make_checkpoint
from zeropoint import AutoModelForCausalLM, quantize
from zeropoint.checkpoint import open_checkpoint
from zeropoint.errors import UsageError, ZeropointError
from zeropoint.planning import uniform_plan
from zeropoint.quantization import stream
from zeropoint.runtime import open_runner
from zeropoint.runtime.sampling import Sampling
from zeropoint.runtime.torch_engine.modules import QuantEmbedding, QuantLinear
from zeropoint.values.qtensor import QuantizedTensor

TOKENS = torch.tensor([[1, 5, 9, 2, 33, 7, 7, 11, 60, 3, 21, 14]])


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiny")
    return {name: make_checkpoint(name, root / name) for name in ARCHITECTURES}


def quantized_weights(path: Path, fmt: str) -> dict[str, QuantizedTensor]:
    checkpoint = open_checkpoint(str(path))
    weights = stream(checkpoint, uniform_plan(checkpoint, fmt))
    return {name: w for name, w in weights if isinstance(w, QuantizedTensor)}


def logits(model: torch.nn.Module) -> np.ndarray:
    with torch.inference_mode():
        return model(input_ids=TOKENS).logits.float().numpy()


@pytest.mark.parametrize("fmt", ["int8", "int4"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_equals_the_fake_quantized_model(name: str, fmt: str, checkpoints: dict[str, Path]) -> None:
    path = checkpoints[name]
    ours = AutoModelForCausalLM.from_pretrained(path, load_in_8bit=fmt == "int8", load_in_4bit=fmt == "int4")
    weights = quantized_weights(path, fmt)
    assert weights, "nothing was quantized"
    theirs = fake_quantize_(HuggingFace.from_pretrained(path, dtype=torch.float32).eval(), weights)
    want, got = logits(theirs), logits(ours)
    # Same codes and scales; only the order of float sums differs, and a rounding tie that falls the other
    # way moves one activation by one step: the whole model agrees within a few such steps ...
    assert np.linalg.norm(got - want) <= 0.02 * np.linalg.norm(want)
    # ... and each layer, given the very same input, exactly but for the tokens in which a tie fell.
    errors = token_errors(ours, weights)
    assert max(errors) < 5e-3
    assert np.median(errors) < 1e-6


def token_errors(model: torch.nn.Module, weights: dict[str, QuantizedTensor]) -> list[float]:
    """Relative error of each token in each quantized linear layer against float arithmetic on its own input."""
    by_shape = {name.rpartition(".")[0]: w for name, w in weights.items()}
    errors: list[float] = []

    def compare(name: str) -> Callable[..., None]:
        def hook(module: QuantLinear, args: tuple[torch.Tensor], output: torch.Tensor) -> None:
            rounded = round_activations(args[0].double(), module.packed.scheme.activation)
            exact = rounded @ torch.from_numpy(by_shape[name].dequantize()).double().T
            if module.bias is not None:
                exact = exact + module.bias
            errors.extend(((output - exact).norm(dim=-1) / exact.norm(dim=-1)).flatten().tolist())

        return hook

    handles = [
        module.register_forward_hook(compare(name))
        for name, module in model.named_modules()
        if isinstance(module, QuantLinear) and name in by_shape
    ]
    logits(model)
    for handle in handles:
        handle.remove()
    return errors


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_generate_works(name: str, checkpoints: dict[str, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoints[name], load_in_8bit=True)
    out = model.generate(TOKENS, max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert out.shape[0] == 1
    assert TOKENS.shape[1] < out.shape[1] <= TOKENS.shape[1] + 5


@pytest.mark.parametrize("fmt", ["int8", "int4", "fp16", "int8:g32:asym:fp16:a8token", "int3:g32"])
def test_an_artifact_computes_what_loading_computes(
    fmt: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    path = checkpoints["llama_tied"]
    direct = AutoModelForCausalLM.from_pretrained(path, format=fmt)
    quantize(path, tmp_path / "artifact", format=fmt)
    stored = AutoModelForCausalLM.from_pretrained(tmp_path / "artifact")
    assert np.array_equal(logits(direct), logits(stored))


def test_gpt2_conv1d_is_quantized(checkpoints: dict[str, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoints["gpt2"], load_in_8bit=True)
    kinds = [type(m).__name__ for m in model.modules()]
    assert "Conv1D" not in kinds
    assert isinstance(model.transformer.wte, QuantEmbedding)
    assert isinstance(model.lm_head, QuantLinear)
    assert model.lm_head.packed is model.transformer.wte.packed, "the tied head must share the packed weight"


def test_gradients_reach_the_input_through_frozen_layers(checkpoints: dict[str, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoints["llama_tied"], load_in_8bit=True)
    layer = next(m for m in model.modules() if isinstance(m, QuantLinear))
    x = torch.randn(3, layer.in_features, requires_grad=True)
    layer(x).sum().backward()
    weight = layer.packed.rows(torch.arange(layer.out_features))
    assert x.grad is not None
    torch.testing.assert_close(x.grad, weight.sum(0).expand(3, -1), rtol=1e-4, atol=1e-4)


def test_runner_generates_like_transformers(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    quantize(checkpoints["llama_untied"], tmp_path / "a", format="int8")
    runner = open_runner(tmp_path / "a", threads=1)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    ids = TOKENS[0].tolist()
    expected = model.generate(TOKENS, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert runner.generate(ids, max_new_tokens=6) == expected[0, len(ids) :].tolist()
    seconds = runner.prefill_decode(TOKENS.numpy(), 3)
    assert all(s > 0 for s in seconds)
    sampled = [
        runner.generate(ids, max_new_tokens=6, sampling=Sampling(temperature=2.0, seed=s)) for s in (1, 1, 2)
    ]
    assert sampled[0] == sampled[1] != sampled[2]


@pytest.mark.parametrize(
    "arguments",
    [
        {"load_in_8bit": True, "load_in_4bit": True},
        {"load_in_8bit": True, "format": "int4"},
        {"format": "int9000"},
        {"load_in_8bit": True, "device_map": "cuda"},
    ],
)
def test_contradictions_are_refused(arguments: dict[str, object], checkpoints: dict[str, Path]) -> None:
    with pytest.raises(ZeropointError):
        AutoModelForCausalLM.from_pretrained(checkpoints["gpt2"], **arguments)


def test_quantizing_an_artifact_again_is_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    quantize(checkpoints["llama_tied"], tmp_path / "a", format="int8")
    with pytest.raises(UsageError, match="quantized already"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "a", load_in_8bit=True)


def test_public_names_are_not_hidden_by_packages() -> None:
    """`zeropoint.quantize` must stay the function whatever has been imported."""
    import zeropoint

    for info in pkgutil.walk_packages(zeropoint.__path__, "zeropoint."):
        if not info.name.endswith("__main__"):
            importlib.import_module(info.name)
    assert callable(zeropoint.quantize)
    assert callable(zeropoint.compare)
    assert callable(zeropoint.load)
