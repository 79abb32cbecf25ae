"""The model of the one-line API does what users do with a transformers model: count, copy, move, generate."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import zeropoint
from tests.runtime.fake import fake_quantize_
from tests.runtime.pretrained import FAMILIES, TOKENS, WEIGHTS_ONLY, Checkpoints, load, logits
from tests.runtime.test_universal import quantized_weights
from tests.support.tiny import ARCHITECTURES
from zeropoint import AutoModelForCausalLM
from zeropoint.errors import UsageError, ZeropointError
from zeropoint.runtime.torch_engine.packed import PackedTensor


@pytest.fixture
def model(tiny_checkpoint: Checkpoints) -> Any:
    return load(tiny_checkpoint("llama_tied"))


# -- counting -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameters_are_those_of_transformers(
    name: str, tiny_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    path = tiny_checkpoint(name)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(path)
    ours = load(path, "int4")
    assert ours.num_parameters() == theirs.num_parameters()
    assert sum(p.numel() for p in ours.parameters()) == theirs.num_parameters()
    assert ours.num_parameters(exclude_embeddings=True) == theirs.num_parameters(exclude_embeddings=True)
    assert ours.num_parameters(only_trainable=True) == 0
    if "moe" not in name and name != "mixtral":  # a stack of experts is a parameter for each of them
        assert {n: tuple(p.shape) for n, p in ours.named_parameters()} == {
            n: tuple(p.shape) for n, p in theirs.named_parameters()
        }
    stored = zeropoint.quantize(path, tmp_path / "a", format="int4").tensor_bytes
    assert 0.8 * stored < ours.get_memory_footprint(return_buffers=False) < 2 * stored
    assert ours.get_memory_footprint() >= ours.get_memory_footprint(return_buffers=False)
    assert (ours.dtype, ours.device) == (torch.float32, torch.device("cpu"))


def test_a_packed_parameter_tells_its_values(tiny_checkpoint: Checkpoints) -> None:
    for name, layer in (
        ("llama_tied", "model.layers.0.mlp.up_proj"),
        ("gpt2", "transformer.h.0.attn.c_attn"),
    ):
        path = tiny_checkpoint(name)
        weight = load(path).get_submodule(layer).weight
        stored = quantized_weights(path, "int8")[f"{layer}.weight"].dequantize()
        stored = stored.T if name == "gpt2" else stored
        assert isinstance(weight, torch.nn.Parameter)
        assert np.array_equal(weight.float().double().numpy(), stored)
        assert np.array_equal(weight[3].detach().numpy(), stored[3])
        assert float(weight.abs().max()) == np.abs(stored).max()
        assert "int8" in repr(weight)


def test_packed_weights_are_frozen(model: Any) -> None:
    weight = model.model.layers[0].mlp.up_proj.weight
    for change in (
        lambda: weight.data.mul_(2),
        lambda: weight.zero_(),
        lambda: weight.requires_grad_(True),
        lambda: setattr(weight, "requires_grad", True),
        lambda: model.requires_grad_(True),
        lambda: torch.nn.init.normal_(weight),
    ):
        with pytest.raises(UsageError, match="frozen"), torch.no_grad():
            change()
    model.requires_grad_(False)


# -- copying, moving ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_copies_and_state_dicts(name: str, tiny_checkpoint: Checkpoints, tmp_path: Path) -> None:
    model = load(tiny_checkpoint(name), "int4")
    wanted = logits(model)
    copied, pickled = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    for other in (copied, pickled):
        assert type(other).__name__ == type(model).__name__
        assert isinstance(other, transformers.PreTrainedModel)
        assert np.array_equal(logits(other), wanted)
        assert other.num_parameters() == model.num_parameters()
        other.save_pretrained(tmp_path / f"{id(other)}")
    state = model.state_dict()
    assert all(tensor.numel() for tensor in state.values())
    torch.save(state, tmp_path / "state.pt")
    other = load(tiny_checkpoint(name), "int4")
    for parameter in other.parameters():
        if not isinstance(parameter, PackedTensor):
            parameter.data.zero_()
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert np.array_equal(logits(other), wanted)


def test_loading_another_models_state(model: Any, tiny_checkpoint: Checkpoints) -> None:
    copied, wanted = copy.deepcopy(model), logits(model)
    changed = {
        key: -value if "up_proj" in key and value.dtype == torch.int8 else value
        for key, value in model.state_dict().items()
    }
    copied.load_state_dict(changed)
    assert not np.array_equal(logits(copied), wanted)
    assert np.array_equal(logits(model), wanted), "a copy's weights are its own"
    floats = transformers.AutoModelForCausalLM.from_pretrained(tiny_checkpoint("llama_tied")).state_dict()
    for state in (floats, {}):
        with pytest.raises(RuntimeError, match="weight_scale"):
            model.load_state_dict(state)
    assert np.array_equal(logits(model), wanted)


def test_it_stays_on_the_cpu_in_float32(model: Any) -> None:
    wanted = logits(model)
    for same in (
        model.to("cpu"),
        model.cpu(),
        model.float(),
        model.to(torch.float32),
        model.to(device="cpu"),
    ):
        assert same is model
    for move in (
        lambda: model.to("cuda"),
        lambda: model.to(device="cuda:1"),
        lambda: model.cuda(),
        lambda: model.half(),
        lambda: model.bfloat16(),
        lambda: model.double(),
        lambda: model.to("cpu", torch.float16),
        lambda: model.to(torch.zeros(1, dtype=torch.bfloat16)),
        lambda: model.type(torch.float64),
        lambda: model.resize_token_embeddings(300),
    ):
        with pytest.raises(UsageError):
            move()
    assert model.resize_token_embeddings(260) is model.get_input_embeddings()
    assert np.array_equal(logits(model.train().eval()), wanted)
    model.model.layers[0].mlp.to(torch.float64).float()  # a part by itself: the packed weights stay
    assert np.array_equal(logits(model), wanted)


def test_gradients_reach_inputs_biases_and_experts(tiny_checkpoint: Checkpoints) -> None:
    for name in ("opt", "mixtral"):
        ours = load(tiny_checkpoint(name), WEIGHTS_ONLY)
        theirs = fake_quantize_(
            transformers.AutoModelForCausalLM.from_pretrained(
                tiny_checkpoint(name), dtype=torch.float32
            ).eval(),
            quantized_weights(tiny_checkpoint(name), WEIGHTS_ONLY),
        )
        found = []
        for model in (ours, theirs):
            names = {n for n, p in model.named_parameters() if n.endswith(("bias", "norm.weight"))}
            for n, parameter in model.named_parameters():
                if not isinstance(parameter, PackedTensor):
                    parameter.requires_grad_(n in names)
            model(TOKENS, labels=TOKENS).loss.backward()
            found.append({n: p.grad for n, p in model.named_parameters() if n in names})
        assert found[0].keys() == found[1].keys()
        for n, gradient in found[1].items():
            torch.testing.assert_close(found[0][n], gradient, rtol=1e-3, atol=1e-5)


# -- running --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAMILIES)
def test_outputs_are_those_of_transformers(name: str, tiny_checkpoint: Checkpoints) -> None:
    path = tiny_checkpoint(name)
    ours = load(path, WEIGHTS_ONLY)
    theirs = fake_quantize_(
        transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval(),
        quantized_weights(path, WEIGHTS_ONLY),
    )
    options = {"labels": TOKENS, "output_hidden_states": True, "use_cache": True}
    with torch.inference_mode():
        found, wanted = ours(TOKENS, **options), theirs(TOKENS, **options)
        torch.testing.assert_close(found.loss, wanted.loss, rtol=1e-4, atol=1e-4)
        for one, other in zip(found.hidden_states, wanted.hidden_states, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
        after = [
            m(TOKENS[:, :2], past_key_values=o.past_key_values).logits
            for m, o in ((ours, found), (theirs, wanted))
        ]
        torch.testing.assert_close(after[0], after[1], rtol=1e-3, atol=1e-3)
    for generating in (
        {"do_sample": False},
        {"num_beams": 3, "num_return_sequences": 2},
        {"use_cache": False},
        {"do_sample": False, "prompt_lookup_num_tokens": 3},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    ):
        made = [
            m.generate(TOKENS, max_new_tokens=6, pad_token_id=258, **generating).tolist()
            for m in (ours, theirs)
        ]
        assert made[0] == made[1], generating


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name", ["llama_tied", "gpt2", "gemma2", "opt"])
def test_padding_on_either_side(name: str, side: str, tiny_checkpoint: Checkpoints) -> None:
    model = load(tiny_checkpoint(name))
    texts = [[5, 9, 2, 33], [7, 11]]
    ids, mask = torch.full((2, 4), 258), torch.zeros(2, 4, dtype=torch.int64)
    for row, text in enumerate(texts):
        where = slice(0, len(text)) if side == "right" else slice(4 - len(text), 4)
        ids[row, where], mask[row, where] = torch.tensor(text), 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.inference_mode():
        made = model(input_ids=ids, attention_mask=mask, position_ids=positions).logits
    for row, text in enumerate(texts):
        alone = torch.from_numpy(logits(model, torch.tensor([text])))[0]
        torch.testing.assert_close(made[row][mask[row] == 1], alone, rtol=1e-3, atol=2e-3)
    if side == "left":
        grown = model.generate(
            input_ids=ids, attention_mask=mask, max_new_tokens=4, eos_token_id=None, do_sample=False
        )
        for row, text in enumerate(texts):
            options = {"max_new_tokens": 4, "eos_token_id": None, "do_sample": False, "pad_token_id": 258}
            alone = model.generate(torch.tensor([text]), **options)[0, len(text) :]
            assert grown[row, 4:].tolist() == alone.tolist()


def test_pipelines_streamers_and_scores(model: Any, tiny_checkpoint: Checkpoints) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_checkpoint("llama_tied"))
    options = {"do_sample": False, "max_new_tokens": 4}
    wanted = model.generate(**tokenizer("abc", return_tensors="pt"), **options)
    pipe = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")
    (made,) = pipe("abc", **options)
    assert made["generated_text"] == tokenizer.decode(wanted[0], skip_special_tokens=True)
    config = transformers.GenerationConfig(**options, output_scores=True, return_dict_in_generate=True)
    shown: list[list[int]] = []

    class Streamer(transformers.generation.streamers.BaseStreamer):  # type: ignore[misc]
        def put(self, value: torch.Tensor) -> None:
            shown.append(value.flatten().tolist())

        def end(self) -> None:
            shown.append([])

    ids = tokenizer("abc", return_tensors="pt")
    found = model.generate(**ids, generation_config=config, streamer=Streamer())
    assert found.sequences.tolist() == wanted.tolist()
    assert len(found.scores) == found.sequences.shape[1] - 3
    assert [token for tokens in shown for token in tokens] == wanted[0].tolist()
    by_length = model.generate(**ids, do_sample=False, max_length=7)
    assert by_length.tolist() == wanted.tolist()


def test_a_model_is_named_and_mapped_as_it_was_asked_for(tiny_checkpoint: Checkpoints) -> None:
    path = tiny_checkpoint("llama_tied")
    assert load(path).name_or_path == str(path)
    assert load(path, device_map="auto").hf_device_map == {"": "cpu"}
    assert isinstance(load(path), transformers.LlamaForCausalLM)
    with pytest.raises(ZeropointError):
        load(path, device_map="cuda:0")


#: transformers' arguments that ask for what is done anyway.
ACCEPTED: list[dict[str, Any]] = [
    {"low_cpu_mem_usage": True},
    {"use_safetensors": True, "cache_dir": None, "token": None},
    {"dtype": "auto"},
    {"torch_dtype": torch.float32},
    {"attn_implementation": "eager"},
    {"device_map": {"": torch.device("cpu")}},
    {"device_map": "cpu"},
    {"local_files_only": False},
]


@pytest.mark.parametrize("options", ACCEPTED, ids=lambda options: ",".join(options))
def test_arguments_that_change_nothing_are_accepted(
    options: dict[str, Any], tiny_checkpoint: Checkpoints
) -> None:
    found = logits(load(tiny_checkpoint("llama_tied"), **options))
    np.testing.assert_allclose(found, logits(load(tiny_checkpoint("llama_tied"))), atol=1e-3)


REFUSED: list[dict[str, Any]] = [
    {"dtype": torch.float16},
    {"torch_dtype": "bfloat16"},
    {"dtype": "float8"},
    {"attn_implementation": "flash_attention_2"},
    {"device_map": {"": 0}},
    {"device_map": "cuda"},
    {"use_safetensors": False},
    {"output_loading_info": True},
    {"max_memory": {0: "1GB"}},
    {"load_in_8bits": True},
    {"quantization_config": {"load_in_8bit": True}},  # beside a format
]


@pytest.mark.parametrize("options", REFUSED, ids=lambda options: ",".join(options))
def test_other_arguments_are_refused_by_name(options: dict[str, Any], tiny_checkpoint: Checkpoints) -> None:
    name = next(iter(options)).removeprefix("torch_")
    with pytest.raises(UsageError, match=name):
        load(tiny_checkpoint("llama_tied"), **options)


def test_bitsandbytes_configs(tiny_checkpoint: Checkpoints) -> None:
    path = tiny_checkpoint("llama_tied")
    for bits, config in (
        ("int8", transformers.BitsAndBytesConfig(load_in_8bit=True)),
        ("int4", transformers.BitsAndBytesConfig(load_in_4bit=True)),
        ("int4", {"load_in_4bit": True, "bnb_4bit_compute_dtype": torch.float32}),
    ):
        model = AutoModelForCausalLM.from_pretrained(path, quantization_config=config)
        assert np.array_equal(logits(model), logits(load(path, bits)))
    for config in (
        transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4"),
        transformers.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=torch.bfloat16),
        transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["lm_head"]),
        transformers.BitsAndBytesConfig(),
        {"quant_method": "gptq", "bits": 4},
        "int8",
    ):
        with pytest.raises(UsageError, match="quantization_config"):
            AutoModelForCausalLM.from_pretrained(path, quantization_config=config)


def test_an_unquantized_model_takes_a_dtype(tiny_checkpoint: Checkpoints) -> None:
    path = tiny_checkpoint("llama_tied")
    model = AutoModelForCausalLM.from_pretrained(
        path, torch_dtype=torch.bfloat16, attn_implementation="eager"
    )
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    with pytest.raises(UsageError, match="keep"):
        AutoModelForCausalLM.from_pretrained(path, keep=["*head*"])
