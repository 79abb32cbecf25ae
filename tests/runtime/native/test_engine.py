"""The engine against transformers in float32, and against the universal runtime on the same artifact."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM

from tests.runtime.native.conftest import Artifacts
from tests.support import tiny
from zeropoint.errors import UnsupportedError, UsageError
from zeropoint.runtime import open_runner
from zeropoint.runtime.native.runner import NativeRunner
from zeropoint.runtime.sampling import Sampling

TOKENS = np.random.default_rng(1).integers(0, 256, 40)


def relative_error(got: NDArray[np.float32], want: NDArray[np.float32]) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def divergence(reference: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float64]:
    """KL(reference || other) of each token."""
    log_p, log_q = log_softmax(reference), log_softmax(other)
    return (np.exp(log_p) * (log_p - log_q)).sum(-1)


def agrees_where_it_is_clear(got: NDArray[np.float32], want: NDArray[np.float32]) -> bool:
    """The same most likely token wherever the reference prefers one by more than the error allows."""
    best = np.sort(want, axis=-1)[:, -2:]
    clear = best[:, 1] - best[:, 0] > 2 * np.abs(got - want).max(-1)
    return bool((got.argmax(-1) == want.argmax(-1))[clear].all())


@pytest.mark.parametrize("name", tiny.NATIVE)
def test_fp16_is_close_to_transformers(
    name: str, random_checkpoint: Callable[[str], Path], artifact_of: Artifacts
) -> None:
    """Over the whole context of 128 tokens: beyond every window, and the 32 tokens that scaled rotations began with."""
    tokens = np.random.default_rng(1).integers(0, 256, 128)
    model = AutoModelForCausalLM.from_pretrained(random_checkpoint(name), dtype=torch.float32).eval()
    with torch.inference_mode():
        want = model(input_ids=torch.from_numpy(tokens)[None]).logits[0].numpy()
    got = open_runner(artifact_of(name, "fp16"), engine="native").logits(tokens)
    outliers = name == "gpt2"  # the only tiny model with outlier weights
    assert relative_error(got, want) < (1e-2 if outliers else 2e-3)
    assert relative_error(got[-16:], want[-16:]) < (2e-2 if outliers else 2e-3)
    assert agrees_where_it_is_clear(got, want)


@pytest.mark.parametrize("format", ["int8", "int4"])
@pytest.mark.parametrize("name", tiny.NATIVE)
def test_quantized_is_the_universal_runtime(name: str, format: str, artifact_of: Artifacts) -> None:
    path = artifact_of(name, format)
    want = open_runner(path, engine="universal").logits(TOKENS)
    got = open_runner(path, engine="native").logits(TOKENS)
    assert divergence(want, got).max() < 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_checkpoint_runs_in_its_own_type(dtype: torch.dtype, tmp_path: Path) -> None:
    path = tiny.make_checkpoint("gpt2", tmp_path / "model", dtype=dtype)
    want = open_runner(path, engine="universal", dtype="float32").logits(TOKENS)
    assert relative_error(open_runner(path, engine="native").logits(TOKENS), want) < 2e-3


def test_sequences_of_a_batch_do_not_see_each_other(artifact_of: Artifacts) -> None:
    runner = open_runner(artifact_of("qwen3", "int8"), engine="native")
    batch = np.stack([TOKENS[:16], TOKENS[16:32]])
    together = runner.logits(batch)
    np.testing.assert_array_equal(together[1], runner.logits(batch[1]))


def test_generate_equals_the_universal_engine(artifact_of: Artifacts) -> None:
    path = artifact_of("llama_tied", "fp16")
    native, universal = open_runner(path, engine="native"), open_runner(path, engine="universal")
    prompt = TOKENS[:10].tolist()
    assert native.generate(prompt, max_new_tokens=12) == universal.generate(prompt, max_new_tokens=12)
    sampling = Sampling(temperature=0.8, top_k=20, seed=3)
    drawn = [native.generate(prompt, max_new_tokens=12, sampling=sampling) for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert drawn[0] != native.generate(prompt, max_new_tokens=12)


def test_a_prompt_that_goes_on_is_not_read_again(
    artifact_of: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = artifact_of("gemma3_text", "int8")
    runner, fresh = NativeRunner.open(path, threads=1), NativeRunner.open(path, threads=1)
    first = TOKENS[:20].tolist()
    answer = runner.generate(first, max_new_tokens=5)
    read = count_tokens(runner, monkeypatch)
    following = [*first, *answer, 3, 4, 5]
    assert runner.generate(following, max_new_tokens=5) == fresh.generate(following, max_new_tokens=5)
    assert sum(read) <= 4 + 4  # the last answered token and three new ones; four decode steps
    other = TOKENS[5:15].tolist()
    assert runner.generate(other, max_new_tokens=3) == fresh.generate(other, max_new_tokens=3)


@pytest.mark.parametrize("cache_type", ["float16", "int8"])
@pytest.mark.parametrize("draft_tokens", [0, 4])
@pytest.mark.parametrize(("asked", "answered"), [(8, 56), (1, 100), (255, 1), (300, 3)])
def test_a_conversation_is_read_once(
    asked: int,
    answered: int,
    draft_tokens: int,
    cache_type: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each turn feeds its own tokens whatever the cache had room for, until the context is full."""
    path = tmp_path / "model"
    config = transformers.LlamaConfig(**{**tiny.CONFIGS["llama_tied"][1], "max_position_embeddings": 1100})
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tiny.write_tokenizer(path)
    runner = NativeRunner.open(path, threads=1, cache_type=cache_type, draft_tokens=draft_tokens)
    fresh = NativeRunner.open(path, threads=1, cache_type=cache_type)
    monkeypatch.setattr(runner, "stop_tokens", frozenset())
    read = count_tokens(runner, monkeypatch)
    talk = [1, 2, 3]
    turns, grown = 0, set()
    while len(talk) + answered <= 1100:
        read.clear()
        talk += runner.generate(talk, max_new_tokens=answered)
        spent = sum(read) if not draft_tokens else len(read)
        assert spent <= asked + answered + 3, f"turn {turns} of {len(talk)} tokens"
        grown.add(runner._session.cache_bytes)
        talk += [(7 * turns + i) % 256 for i in range(asked)]
        turns += 1
    assert len(grown) > 2, "not tested: the cache did not grow"
    if len(talk) >= 1100:
        with pytest.raises(UsageError, match="1100"):
            runner.generate(talk, max_new_tokens=1)
    # an earlier turn is edited: what comes before it is kept, and nothing else
    edited = [*talk[:500], 9, 9]
    read.clear()
    assert runner.generate(edited, max_new_tokens=4) == fresh.generate(edited, max_new_tokens=4)
    assert sum(read) <= 3 + 4 * (1 + draft_tokens)


def count_tokens(runner: NativeRunner, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    counts: list[int] = []
    forward = type(runner.decoder).forward

    def counted(
        self: object, cache: object, tokens: NDArray[np.int32], *args: object, **named: object
    ) -> object:
        if self is runner.decoder:
            counts.append(len(tokens))
        return forward(self, cache, tokens, *args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(type(runner.decoder), "forward", counted)
    return counts


@pytest.mark.parametrize("format", ["fp16", "int8", "int4"])
def test_speculation_gives_the_same_text_in_fewer_steps(
    format: str, artifact_of: Artifacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = artifact_of("gemma3_text", format)
    plain = NativeRunner.open(path, threads=1)
    runner = NativeRunner.open(path, threads=1, draft_tokens=6)
    steps = count_tokens(runner, monkeypatch)
    for prompt in ([5, 6, 7, 8] * 6, TOKENS[:30].tolist(), [1]):
        for stop in ((), {9, 30, 31}):
            want = plain.generate(prompt, max_new_tokens=60, stop=stop)
            assert runner.generate(prompt, max_new_tokens=60, stop=stop) == want
            ended = iter(range(60))
            cut = runner.generate(prompt, max_new_tokens=60, stop=stop, on_token=lambda _: next(ended) == 4)  # noqa: B023
            assert cut == want[:5]
    assert max(steps) > 1
    following = [*prompt, *want, 3]
    assert runner.generate(following, max_new_tokens=9) == plain.generate(following, max_new_tokens=9)


def test_the_context_ends_with_a_sentence(artifact_of: Artifacts, caplog: pytest.LogCaptureFixture) -> None:
    runner = open_runner(artifact_of("llama_tied", "int8"), engine="native")
    limit = 128
    with pytest.raises(UsageError, match="128"):
        runner.logits(np.zeros(limit + 1, np.int64))
    with pytest.raises(UsageError, match="128"):
        runner.generate([1] * limit, max_new_tokens=1)
    with caplog.at_level(logging.WARNING):
        out = runner.generate([1] * (limit - 3), max_new_tokens=50)
    assert len(out) == 3
    assert "128" in caplog.text


@pytest.mark.parametrize("tokens", [[], [-1], [260]])
def test_tokens_that_do_not_exist_are_refused(tokens: list[int], artifact_of: Artifacts) -> None:
    runner = open_runner(artifact_of("llama_tied", "int8"), engine="native")
    with pytest.raises(UsageError):
        runner.generate(tokens, max_new_tokens=1)


def test_what_is_not_covered_runs_on_the_universal_engine(
    tmp_path: Path, random_checkpoint: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    path = random_checkpoint("bloom")
    with caplog.at_level(logging.WARNING):
        runner = open_runner(path)
    assert runner.engine == "transformers"
    assert len(caplog.records) == 1
    assert "bloom" in caplog.text
    with pytest.raises(UnsupportedError, match="bloom"):
        open_runner(path, engine="native")


def test_int8_key_value_cache(artifact_of: Artifacts) -> None:
    path = artifact_of("llama_tied", "fp16")
    exact, small = NativeRunner.open(path, threads=1), NativeRunner.open(path, threads=1, cache_type="int8")
    assert divergence(exact.logits(TOKENS), small.logits(TOKENS)).mean() < 1e-2
    assert small.decoder.cache(1024, type="int8").nbytes < 0.7 * small.decoder.cache(1024).nbytes


def test_prefill_and_decode_are_timed(artifact_of: Artifacts) -> None:
    runner = open_runner(artifact_of("llama_tied", "int8"), engine="native")
    prefill, decode = runner.prefill_decode(np.tile(TOKENS[:8], (3, 1)), 4)
    assert prefill > 0 < decode
