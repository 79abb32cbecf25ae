"""`HuggingFaceModel`: a runner with the interface of a `transformers` causal LM.

Torch tensors in give torch tensors out, numpy arrays give numpy arrays. torch is never imported here.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from zeropoint.errors import UsageError
from zeropoint.runtime.generate_options import GenerateOptions
from zeropoint.runtime.protocol import TokenModel
from zeropoint.values.arrays import Logits, Tokens

#: Arguments of transformers' forward pass -> the values that change nothing here and are accepted.
_NEUTRAL = {
    "output_attentions": (False,),
    "output_hidden_states": (False,),
    "return_dict": (True,),
    "use_cache": (True, False),  # no cache is kept between calls, so both values give the same logits
    "labels": (),
    "past_key_values": (),
    "inputs_embeds": (),
    "position_ids": (),
}


class HuggingFaceModel:
    """A model for inference: `model(input_ids).logits` and `model.generate(input_ids, ...)`.

    Rows of a batch may be padded on either side if `attention_mask` marks the padding. Each row gives the same logits
    and the same greedy continuation as alone.
    """

    def __init__(self, runner: TokenModel) -> None:
        self.runner = runner
        self.device = "cpu"
        self.config = SimpleNamespace(
            vocab_size=runner.vocab_size,
            eos_token_id=sorted(runner.stop_tokens),
            max_position_embeddings=getattr(runner, "max_positions", None),
        )

    def __call__(
        self, input_ids: Any, attention_mask: Any = None, *, logits_to_keep: int = 0, **options: Any
    ) -> SimpleNamespace:
        """Return `logits`, float32 `[B, T, vocab]` for ids `[B, T]`, zero at padding.

        With `logits_to_keep`, only the last so many of the T positions are returned. Raises `UsageError` if the mask
        hides tokens inside a text, or if an option asks for more than logits.
        """
        for name, value in options.items():
            if name == "token_type_ids" or value is None:
                continue
            if name not in _NEUTRAL:
                raise UsageError(f"the model takes no argument {name!r}")
            if not any(value is neutral for neutral in _NEUTRAL[name]):
                raise UsageError(f"{name} is not available on this engine, which computes logits alone")
        ids = _batch(input_ids)
        spans = _spans(attention_mask, ids)
        logits = _unshifted(self.runner.logits(_shifted(ids, spans)), spans)
        if logits_to_keep:
            logits = logits[:, -abs(logits_to_keep) :]
        return SimpleNamespace(logits=_like(input_ids, logits), past_key_values=None)

    def generate(
        self,
        input_ids: Any = None,
        generation_config: Any = None,
        *,
        inputs: Any = None,
        attention_mask: Any = None,
        **options: Any,
    ) -> Any:
        """Return ids `[B, T + new]`: each input row with its padding, then its new tokens, padded at the end.

        `options` and the fields of `generation_config` are those of transformers' `generate`: `max_new_tokens` or
        `max_length`, `do_sample`, `temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty`, `eos_token_id`,
        `pad_token_id`, `streamer`, `return_dict_in_generate`; and also `seed`. Other options are accepted if they
        change nothing. Raises `UsageError` naming the option if one is unknown, out of range or not supported.
        """
        prompts = inputs if input_ids is None else input_ids
        if prompts is None:
            raise UsageError("generate needs input_ids, the tokens to go on from")
        ids = _batch(prompts)
        spans = _spans(attention_mask, ids)
        parsed = GenerateOptions.of(generation_config, options)
        budget = parsed.budget(ids.shape[1])
        if parsed.streamer is not None and len(ids) > 1:
            raise UsageError("a streamer shows one text: generate for one row at a time")
        stop = self.runner.stop_tokens if parsed.stop is None else parsed.stop
        rows = [
            self._continue(row[start:end].tolist(), budget, stop, parsed, index)
            for index, (row, (start, end)) in enumerate(zip(ids, spans, strict=True))
        ]
        pad = parsed.pad_token_id
        if pad is None:  # transformers has the same default
            pad = min((token for token in stop if token >= 0), default=0)
        out = np.full((len(ids), ids.shape[1] + max(map(len, rows))), pad, np.int64)
        out[:, : ids.shape[1]] = ids
        for index, new in enumerate(rows):
            out[index, ids.shape[1] : ids.shape[1] + len(new)] = new
        sequences = _like(prompts, out)
        return SimpleNamespace(sequences=sequences) if parsed.as_dict else sequences

    def _continue(
        self, text: list[int], budget: int, stop: frozenset[int], parsed: GenerateOptions, index: int
    ) -> list[int]:
        """Return the new tokens after one text. Row `index` of a batch samples with the seed plus `index`."""
        streamer = parsed.streamer

        def show(token: int) -> None:
            if streamer is not None:
                streamer.put(np.array([token], np.int64))

        if streamer is not None:
            streamer.put(np.array([text], np.int64))
        sampling = replace(parsed.sampling, seed=parsed.sampling.seed + index)
        new = self.runner.generate(text, max_new_tokens=budget, stop=stop, sampling=sampling, on_token=show)
        if streamer is not None:
            streamer.end()
        return new

    def eval(self) -> HuggingFaceModel:
        """Return the model itself, which is always in inference mode."""
        return self

    def to(self, *args: Any, **kwargs: Any) -> HuggingFaceModel:
        """Return the model itself. Raises `UsageError` if the device is not the CPU or the dtype not float32."""
        for target in (*args, *kwargs.values()):
            name = str(target).removeprefix("torch.").partition(":")[0]
            if target is not None and name not in ("cpu", "float32", "True", "False"):
                raise UsageError(
                    f"this model runs on the CPU with float32 logits: it does not move to {target}"
                )
        return self


def _batch(ids: Any) -> Tokens:
    """Return ids `[B, T]` as int64. Raises `UsageError` if they are not a non-empty matrix of integers."""
    try:
        array = np.asarray(ids)
    except ValueError as cause:  # rows of different lengths
        raise UsageError(f"input_ids must be [batch, tokens], every row of one length: {cause}") from None
    if array.ndim != 2 or not array.size:
        raise UsageError(f"input_ids must be [batch, tokens], not of shape {array.shape}")
    if array.dtype.kind not in "iu":
        raise UsageError(f"input_ids must be whole numbers, not {array.dtype}")
    return array.astype(np.int64)


def _spans(mask: Any, ids: Tokens) -> list[tuple[int, int]]:
    """Return (start, end) of each row's text.

    Raises `UsageError` if the mask hides a whole row or tokens inside a text.
    """
    if mask is None:
        return [(0, ids.shape[1])] * len(ids)
    visible = np.asarray(mask)
    if visible.shape != ids.shape:
        raise UsageError(f"attention_mask has the shape {visible.shape}, and input_ids {ids.shape}")
    spans = []
    for row in visible != 0:
        indices = np.flatnonzero(row)
        if not indices.size:
            raise UsageError("attention_mask hides a whole row: leave that row out")
        start, end = int(indices[0]), int(indices[-1]) + 1
        if end - start != indices.size:
            raise UsageError(
                "attention_mask hides tokens inside a text: only padding at its ends is possible"
            )
        spans.append((start, end))
    return spans


def _shifted(ids: Tokens, spans: list[tuple[int, int]]) -> Tokens:
    """Return each row with its text moved to the start, then padding.

    Attention is causal, so the padding tokens after a text do not change its logits.
    """
    rows = []
    for row, (start, end) in zip(ids, spans, strict=True):
        text = row[start:end]
        rows.append(np.concatenate([text, np.full(len(row) - len(text), text[0])]))
    return np.stack(rows)


def _unshifted(logits: Logits, spans: list[tuple[int, int]]) -> Logits:
    """Return logits `[B, T, vocab]` of `_shifted` rows, moved back to the places of the texts; zero elsewhere."""
    if all(span == (0, logits.shape[1]) for span in spans):
        return logits
    out = np.zeros_like(logits)
    for row, (start, end) in enumerate(spans):
        out[row, start:end] = logits[row, : end - start]
    return out


def _like(template: Any, array: np.ndarray[Any, Any]) -> Any:
    """Return `array` as a torch tensor if `template` is one."""
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(template, torch.Tensor):
        return torch.from_numpy(array)
    return array
