"""A runner called as a transformers model is: padding on either side, `generate`'s options, streamers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig

from tests.runtime.test_model import END, Alphabet
from zeropoint.errors import UsageError
from zeropoint.runtime.huggingface import HuggingFaceModel
from zeropoint.values.arrays import Logits, Tokens

PAD = 0


class Counting(Alphabet):
    """What comes next depends on all that came before, and on how much that is."""

    def logits(self, tokens: Tokens) -> Logits:
        rows = np.atleast_2d(tokens)
        assert ((rows >= 0) & (rows < 256)).all(), "padding reached the model"
        said = (np.cumsum(rows * 7, -1) + np.arange(rows.shape[1])) % 256
        out = np.zeros((*rows.shape, 256), np.float32)
        np.put_along_axis(out, said[..., None], 9.0, -1)
        return out if tokens.ndim == 2 else out[0]

    def generate(self, tokens: Any, *, max_new_tokens: int, **options: Any) -> list[int]:
        out: list[int] = []
        while len(out) < max_new_tokens:
            out.append(int(self.logits(np.array([*tokens, *out]))[-1].argmax()))
            if options.get("on_token") is not None:
                options["on_token"](out[-1])
        return out


@pytest.fixture
def model() -> HuggingFaceModel:
    return HuggingFaceModel(Counting())


def padded(texts: list[list[int]], side: str, pad: int = PAD) -> tuple[np.ndarray, np.ndarray]:
    width = max(map(len, texts)) + 1
    ids, mask = np.full((len(texts), width), pad), np.zeros((len(texts), width), int)
    for row, text in enumerate(texts):
        start = {"left": width - len(text), "right": 0, "both": 1}[side]
        ids[row, start : start + len(text)] = text
        mask[row, start : start + len(text)] = 1
    return ids, mask


TEXTS = [[97, 98, 99], [5], [200, 201, 3, 4, 9]]


@pytest.mark.parametrize("kind", ["int", "bool", "torch"])
@pytest.mark.parametrize("pad", [PAD, -100])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_text(model: HuggingFaceModel, side: str, pad: int, kind: str) -> None:
    ids, mask = padded(TEXTS, side, pad)
    given: Any = {"int": mask, "bool": mask.astype(bool), "torch": torch.tensor(mask)}[kind]
    logits = model(ids, attention_mask=given).logits
    made = model.generate(ids, attention_mask=given, max_new_tokens=4, eos_token_id=-1)
    assert (made[:, : ids.shape[1]] == ids).all()
    for row, text in enumerate(TEXTS):
        alone = np.array([text])
        assert np.array_equal(logits[row][mask[row] == 1], model(alone).logits[0])
        assert not logits[row][mask[row] == 0].any()
        wanted = model.generate(alone, max_new_tokens=4, eos_token_id=-1)[0, len(text) :]
        assert made[row, ids.shape[1] :].tolist() == wanted.tolist()


@pytest.mark.parametrize(
    ("mask", "said"),
    [([[1, 0, 1]], "inside"), ([[0, 0, 0]], "whole row"), ([[1, 1]], "shape"), ([1, 1, 1], "shape")],
)
def test_masks_of_no_one_text_are_refused(model: HuggingFaceModel, mask: Any, said: str) -> None:
    ids = np.array([[1, 2, 3]])
    for call in (model, model.generate):
        with pytest.raises(UsageError, match=said):
            call(ids, attention_mask=np.array(mask))  # type: ignore[operator]


def test_called_like_a_transformers_model() -> None:
    model = HuggingFaceModel(Alphabet()).eval().to("cpu")
    ids = torch.tensor([[97, 98], [120, 121]])
    out = model(ids, attention_mask=torch.ones_like(ids), use_cache=False, return_dict=True, labels=None)
    assert isinstance(out.logits, torch.Tensor)
    assert out.logits.argmax(-1).tolist() == [[98, 99], [121, 122]]
    made = model.generate(ids, max_new_tokens=3)
    assert made.tolist() == [[97, 98, 99, 100, 101], [120, 121, 122, END, END]]
    assert isinstance(model(ids.numpy()).logits, np.ndarray)
    assert model(ids, logits_to_keep=1).logits.shape == (2, 1, 256)
    sampled = model.generate(ids.numpy(), max_new_tokens=3, do_sample=True, top_k=1, temperature=3.0)
    assert sampled.tolist() == made.tolist()


#: Options that ask for what is done anyway.
ACCEPTED: list[dict[str, Any]] = [
    {"use_cache": True},
    {"use_cache": False},
    {"num_beams": 1, "early_stopping": False, "length_penalty": 1.0},
    {"do_sample": False, "temperature": 0.7, "top_p": 0.9, "top_k": 50, "min_p": 0.1},
    {"num_return_sequences": 1, "output_scores": False, "synced_gpus": False},
    {"typical_p": 1.0, "no_repeat_ngram_size": 0, "min_length": 0, "min_new_tokens": None},
    {"logits_processor": [], "stopping_criteria": [], "bad_words_ids": None},
    {"token_type_ids": np.zeros((1, 2)), "bos_token_id": 1, "disable_compile": True},
    {"max_length": 6, "max_new_tokens": None},
    {"max_length": 5000, "max_new_tokens": 4},
    {"generation_config": GenerationConfig(max_new_tokens=4, num_beams=1, use_cache=True)},
    {"generation_config": {"max_length": 6}},
    {"generation_config": GenerationConfig(max_new_tokens=9), "max_new_tokens": 4},
]


@pytest.mark.parametrize("options", ACCEPTED, ids=lambda options: ",".join(options))
def test_options_that_change_nothing_are_accepted(options: dict[str, Any]) -> None:
    model, ids = HuggingFaceModel(Alphabet()), np.array([[97, 98]])
    given = {"max_new_tokens": 4, **options}
    if "generation_config" in options and "max_new_tokens" not in options:
        del given["max_new_tokens"]
    assert model.generate(ids, **given).tolist() == [[97, 98, 99, 100, 101, 102]]


#: Options that are not done, or are wrong.
REFUSED: list[dict[str, Any]] = [
    {"num_beams": 4},
    {"num_return_sequences": 2},
    {"penalty_alpha": 0.6},
    {"no_repeat_ngram_size": 2},
    {"output_scores": True},
    {"stop_strings": ["x"]},
    {"assistant_model": object()},
    {"prompt_lookup_num_tokens": 3},
    {"logits_processor": [object()]},
    {"bad_words_ids": [[1]]},
    {"min_new_tokens": 3},
    {"max_time": 1.0},
    {"guidance_scale": 2.0},
    {"forced_eos_token_id": 3},
    {"suppress_tokens": torch.tensor([1, 2])},
    {"tempurature": 0.5},
    {"max_new_tokens": -1},
    {"max_new_tokens": "8"},
    {"max_length": 2, "max_new_tokens": None},
    {"eos_token_id": "</s>"},
    {"pad_token_id": [1, 2]},
    {"repetition_penalty": "high"},
    {"do_sample": True, "top_p": 2.0},
    {"generation_config": GenerationConfig(num_beams=3)},
]


@pytest.mark.parametrize("options", REFUSED, ids=lambda options: ",".join(options))
def test_other_options_are_refused_by_name(model: HuggingFaceModel, options: dict[str, Any]) -> None:
    name = next(iter(options))
    told = {"generation_config": "num_beams", "do_sample": "top-p"}.get(name, name)
    with pytest.raises(UsageError, match=told):
        model.generate(np.array([[97, 98]]), **{"max_new_tokens": 4, **options})


@pytest.mark.parametrize("options", [{"output_hidden_states": True}, {"labels": [1]}, {"attention": 1}])
def test_other_arguments_of_a_pass_are_refused_by_name(
    model: HuggingFaceModel, options: dict[str, Any]
) -> None:
    with pytest.raises(UsageError, match=next(iter(options))):
        model(np.array([[1, 2]]), **options)


@pytest.mark.parametrize("ids", [[1, 2], [[1, 2], [3]], [[0.5, 1.0]], [[]], np.zeros((1, 2, 3), int)])
def test_what_is_no_batch_of_ids_is_refused(model: HuggingFaceModel, ids: Any) -> None:
    for call in (model, model.generate):
        with pytest.raises(UsageError, match="input_ids"):
            call(ids)  # type: ignore[operator]


def test_stop_tokens_of_every_form() -> None:
    model, ids = HuggingFaceModel(Alphabet()), np.array([[97]])
    for stop in (99, [99], (7, 99), torch.tensor([99]), np.int64(99)):
        assert model.generate(ids, eos_token_id=stop).tolist() == [[97, 98, 99]]
    config = GenerationConfig(eos_token_id=[99, 100])
    assert model.generate(ids, config).tolist() == [[97, 98, 99]]
    assert model.generate(ids, eos_token_id=[], max_length=30).shape == (1, 30)
    both = model.generate(np.array([[97], [120]]), eos_token_id=99, pad_token_id=7, max_new_tokens=4)
    assert both.tolist() == [[97, 98, 99, 7, 7], [120, 121, 122, END, 11]]


def test_dicts_and_streamers() -> None:
    model, ids = HuggingFaceModel(Alphabet()), torch.tensor([[97]])
    made = model.generate(inputs=ids, max_new_tokens=2, return_dict_in_generate=True)
    assert made.sequences.tolist() == [[97, 98, 99]]
    seen: list[Any] = []

    class Streamer:
        def put(self, value: Any) -> bool:
            seen.append(value.tolist())
            return True

        def end(self) -> None:
            seen.append("end")

    model.generate(ids, max_new_tokens=2, streamer=Streamer())
    assert seen == [[[97]], [98], [99], "end"]
    with pytest.raises(UsageError, match="streamer"):
        model.generate(ids.repeat(2, 1), max_new_tokens=2, streamer=Streamer())


def test_rows_draw_by_themselves() -> None:
    model, ids = HuggingFaceModel(Alphabet()), np.full((6, 1), 97)
    drawn = model.generate(ids, max_new_tokens=8, do_sample=True, temperature=20.0, top_k=0)
    assert len({tuple(row) for row in drawn.tolist()}) > 1
    again = model.generate(ids, max_new_tokens=8, do_sample=True, temperature=20.0, top_k=0)
    assert (drawn == again).all()


def test_it_stays_on_the_cpu_in_float32(model: HuggingFaceModel) -> None:
    assert model.to(torch.device("cpu")).to(torch.float32).to("cpu", non_blocking=True) is model
    for wanted in ("cuda", "cuda:1", torch.device("meta"), torch.float16):
        with pytest.raises(UsageError, match="CPU"):
            model.to(wanted)
