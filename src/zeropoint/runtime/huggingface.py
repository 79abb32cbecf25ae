"""A runner that is called like a `transformers` causal LM, for code that was written for those.

torch tensors in give torch tensors out, numpy arrays give numpy arrays; torch is never imported here.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zeropoint.errors import UsageError
from zeropoint.runtime.generate_options import GenerateOptions
from zeropoint.runtime.protocol import Logits, Runner

Ids = NDArray[np.int64]

#: Arguments of a forward pass that this engine does not take, with the values that ask for nothing.
_NEUTRAL = {
    "output_attentions": (False,),
    "output_hidden_states": (False,),
    "return_dict": (True,),
    "use_cache": (True, False),  # the text is read from its first token each time
    "labels": (),
    "past_key_values": (),
    "inputs_embeds": (),
    "position_ids": (),
}


class HuggingFaceModel:
    """`model(input_ids).logits` and `model.generate(input_ids, ...)`, in inference only.

    Rows of a batch may be padded on either side when an `attention_mask` says where: each text gives the logits and
    the continuation that it gives alone.
    """

    def __init__(self, runner: Runner) -> None:
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
        """Logits float32 `[B, T, vocab]` for ids `[B, T]`, zero at padding; the last `logits_to_keep` of T, where
        that is not 0.

        Raises `UsageError` for a mask that hides tokens inside a text, and for options that ask for more than logits.
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
        """Ids `[B, T + new]`: each row as given, padding included, then its continuation, shorter ones padded.

        `options` and the fields of `generation_config` are those of transformers' `generate`: `max_new_tokens` or
        `max_length`, `do_sample`, `temperature`, `top_k`, `top_p`, `min_p`, `repetition_penalty`, `eos_token_id`,
        `pad_token_id`, `streamer`, `return_dict_in_generate`, and `seed` beside them. Options that ask for what is
        done anyway are accepted; the others raise a `UsageError` that names them.
        """
        given = inputs if input_ids is None else input_ids
        if given is None:
            raise UsageError("generate needs input_ids, the tokens to go on from")
        ids = _batch(given)
        spans = _spans(attention_mask, ids)
        wanted = GenerateOptions.of(generation_config, options)
        budget = wanted.budget(ids.shape[1])
        if wanted.streamer is not None and len(ids) > 1:
            raise UsageError("a streamer shows one text: generate for one row at a time")
        stop = self.runner.stop_tokens if wanted.stop is None else wanted.stop
        rows = [
            self._continue(row[start:end].tolist(), budget, stop, wanted, index)
            for index, (row, (start, end)) in enumerate(zip(ids, spans, strict=True))
        ]
        pad = wanted.pad_token_id
        if pad is None:  # as transformers does
            pad = min((token for token in stop if token >= 0), default=0)
        made = np.full((len(ids), ids.shape[1] + max(map(len, rows))), pad, np.int64)
        made[:, : ids.shape[1]] = ids
        for index, new in enumerate(rows):
            made[index, ids.shape[1] : ids.shape[1] + len(new)] = new
        sequences = _like(given, made)
        return SimpleNamespace(sequences=sequences) if wanted.as_dict else sequences

    def _continue(
        self, text: list[int], budget: int, stop: frozenset[int], wanted: GenerateOptions, index: int
    ) -> list[int]:
        """The new tokens after one text; rows of a batch draw with seeds of their own."""
        streamer = wanted.streamer

        def show(token: int) -> None:
            if streamer is not None:
                streamer.put(np.array([token], np.int64))

        if streamer is not None:
            streamer.put(np.array([text], np.int64))
        sampling = replace(wanted.sampling, seed=wanted.sampling.seed + index)
        new = self.runner.generate(text, max_new_tokens=budget, stop=stop, sampling=sampling, on_token=show)
        if streamer is not None:
            streamer.end()
        return new

    def eval(self) -> HuggingFaceModel:
        return self

    def to(self, *args: Any, **kwargs: Any) -> HuggingFaceModel:
        """Return the model as it is. Raises `UsageError` for another device than the CPU or another dtype."""
        for wanted in (*args, *kwargs.values()):
            name = str(wanted).removeprefix("torch.").partition(":")[0]
            if wanted is not None and name not in ("cpu", "float32", "True", "False"):
                raise UsageError(
                    f"this model runs on the CPU with float32 logits: it does not move to {wanted}"
                )
        return self


def _batch(ids: Any) -> Ids:
    try:
        array = np.asarray(ids)
    except ValueError as cause:  # rows of different lengths
        raise UsageError(f"input_ids must be [batch, tokens], every row of one length: {cause}") from None
    if array.ndim != 2 or not array.size:
        raise UsageError(f"input_ids must be [batch, tokens], not of shape {array.shape}")
    if array.dtype.kind not in "iu":
        raise UsageError(f"input_ids must be whole numbers, not {array.dtype}")
    return array.astype(np.int64)


def _spans(mask: Any, ids: Ids) -> list[tuple[int, int]]:
    """Return the first token and the end of each row's text. Raises `UsageError` where a mask shows no one text."""
    if mask is None:
        return [(0, ids.shape[1])] * len(ids)
    shown = np.asarray(mask)
    if shown.shape != ids.shape:
        raise UsageError(f"attention_mask has the shape {shown.shape}, and input_ids {ids.shape}")
    spans = []
    for row in shown != 0:
        places = np.flatnonzero(row)
        if not places.size:
            raise UsageError("attention_mask hides a whole row: leave that row out")
        start, end = int(places[0]), int(places[-1]) + 1
        if end - start != places.size:
            raise UsageError(
                "attention_mask hides tokens inside a text: only padding at its ends is possible"
            )
        spans.append((start, end))
    return spans


def _shifted(ids: Ids, spans: list[tuple[int, int]]) -> Ids:
    """Each row with its text first: what follows a text, here a token of it again, has no part in its logits."""
    rows = []
    for row, (start, end) in zip(ids, spans, strict=True):
        text = row[start:end]
        rows.append(np.concatenate([text, np.full(len(row) - len(text), text[0])]))
    return np.stack(rows)


def _unshifted(logits: Logits, spans: list[tuple[int, int]]) -> Logits:
    """Logits `[B, T, vocab]` of `_shifted` rows, back to where each text stood."""
    if all(span == (0, logits.shape[1]) for span in spans):
        return logits
    made = np.zeros_like(logits)
    for row, (start, end) in enumerate(spans):
        made[row, start:end] = logits[row, : end - start]
    return made


def _like(given: Any, array: np.ndarray[Any, Any]) -> Any:
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(given, torch.Tensor):
        return torch.from_numpy(array)
    return array
