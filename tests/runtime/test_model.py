"""`zeropoint.load` and the adapters around a runner, on a stub that continues texts letter by letter."""

from __future__ import annotations

import sys
import types
from collections.abc import Container, Sequence
from types import SimpleNamespace

import numpy as np
import pytest

from zeropoint.errors import UsageError
from zeropoint.evaluate.tasks import lm_eval_model as harness
from zeropoint.runtime.generation import OnToken, generate
from zeropoint.runtime.model import Model
from zeropoint.runtime.sampling import Sampling
from zeropoint.tokenizer import Message
from zeropoint.values.arrays import Logits, Tokens

END = 10


class Alphabet:
    """After each letter comes the next one, after z a line end, which is the stop token; tokens are bytes."""

    name = "alphabet"
    engine = "stub"
    engine_reason = ""
    vocab_size = 256
    weights_bytes = artifact_bytes = 0
    stop_tokens = frozenset({END})
    start_token = None
    max_positions = 64

    def logits(self, tokens: Tokens) -> Logits:
        out = np.zeros((*tokens.shape, 256), np.float32)
        follows = np.where(tokens == ord("z"), END, (tokens + 1) % 256)
        np.put_along_axis(out, follows[..., None], 9.0, -1)
        return out

    def generate(
        self,
        tokens: Sequence[int],
        *,
        max_new_tokens: int,
        on_token: OnToken | None = None,
        stop: Container[int] = (),
        sampling: Sampling | None = None,
    ) -> list[int]:
        def step(fed: Sequence[int]) -> Logits:
            return self.logits(np.asarray(fed))[-1]

        return generate(
            step,
            tokens,
            max_new_tokens=max_new_tokens,
            sampling=sampling or Sampling(),
            stop=stop,
            on_token=on_token,
        )

    def prefill_decode(self, tokens: Tokens, new_tokens: int) -> tuple[float, float]:
        return 1.0, 1.0

    def encode(self, text: str) -> list[int]:
        return list(text.encode())

    def encode_prompt(self, text: str) -> list[int]:
        return self.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")

    def chat_prompt(self, user_text: str) -> list[int]:
        return self.encode(user_text)

    def chat_text(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        return "".join(message["content"] for message in messages)

    def chat_tokens(self, messages: Sequence[Message]) -> list[int]:
        return self.encode(self.chat_text(messages))


@pytest.fixture
def model() -> Model:
    return Model(Alphabet())


def test_generate_and_stream(model: Model) -> None:
    assert model.generate("abc", max_new_tokens=4) == "defg"
    assert model.generate("vw") == "xyz", "the stop token ends the text and is not part of it"
    assert list(model.stream("abc", max_new_tokens=3)) == ["d", "e", "f"]
    assert model.generate("abc", stop="fg") == "de"
    assert "".join(model.stream("abc", stop=["xx", "i"])) == "defgh"
    assert model.generate([97], max_new_tokens=1) == "b"
    assert model.chat("u", max_new_tokens=2) == "vw"
    assert model.chat([{"role": "user", "content": "a"}, {"role": "user", "content": "x"}]) == "yz"


def test_sampling_options_reach_the_sampler(model: Model) -> None:
    drawn = {model.generate("a", max_new_tokens=8, temperature=20.0, seed=seed) for seed in range(4)}
    assert len(drawn) > 1
    assert model.generate("a", max_new_tokens=8, temperature=20.0, top_k=1) == "bcdefghi"
    with pytest.raises(UsageError, match="tempurature"):
        model.generate("a", tempurature=1.0)


def test_leaving_a_stream_ends_the_generation(model: Model) -> None:
    stream = model.stream("a", max_new_tokens=10_000)
    assert next(stream) == "b"
    stream.close()  # type: ignore[attr-defined]


def test_errors_come_out_of_a_stream() -> None:
    class Broken(Alphabet):
        def generate(self, *_: object, **__: object) -> list[int]:
            raise UsageError("no")

    with pytest.raises(UsageError, match="no"):
        list(Model(Broken()).stream("a"))


@pytest.mark.parametrize("prompt", ["", []])
def test_an_empty_prompt_is_refused(prompt: str | list[int], model: Model) -> None:
    with pytest.raises(UsageError, match="empty"):
        model.generate(prompt)


# -- lm-eval --------------------------------------------------------------------------------------


def test_scores_are_log_probabilities() -> None:
    scorer = harness.Scorer(Alphabet())
    each = 9.0 - np.log(np.exp(9.0) + 255)
    assert scorer.loglikelihood("ab", "cd") == pytest.approx((2 * each, True))
    value, greedy = scorer.loglikelihood("ab", "cx")
    assert value == pytest.approx(2 * each - 9.0)
    assert not greedy
    assert scorer.loglikelihood("ab ", "c")[0] == pytest.approx(scorer.score([97, 98], [32, 99])[0])
    assert scorer.loglikelihood("", "a") == pytest.approx(scorer.score([END], [97]))
    with pytest.raises(UsageError):
        scorer.loglikelihood("ab", "")


def test_one_sequence_serves_the_choices_that_share_it() -> None:
    class Counting(Alphabet):
        def __init__(self) -> None:
            self.fed: list[tuple[int, ...]] = []

        def logits(self, tokens: Tokens) -> Logits:
            self.fed.append(tokens.shape)
            return super().logits(tokens)

    pairs = [("ab", "c"), ("xy", "z"), ("ab", "cdef"), ("ab", "x"), ("ab", "cz"), ("abc", "d"), ("b", "c")]
    runner, done = Counting(), list[float]()
    found = harness.Scorer(runner).loglikelihoods(pairs, done.append)
    assert runner.fed == [(3, 5)]  # b, xy and ab + cde, at once
    assert done == [1.0]
    for (context, choice), each in zip(pairs, found, strict=True):
        assert each == harness.Scorer(Alphabet()).loglikelihood(context, choice)
    many = [("a" * n, chr(97 + n)) for n in range(1, 60)]
    assert [greedy for _, greedy in harness.Scorer(runner).loglikelihoods(many)] == [True] + [False] * 58
    assert max(rows * columns for rows, columns in runner.fed) <= 128


def test_long_contexts_lose_their_beginning() -> None:
    scorer = harness.Scorer(Alphabet(), max_length=4)
    assert scorer.loglikelihood("x" * 100 + "abc", "d")[1]
    rolled = scorer.rolling("abcdefghij")
    each = 9.0 - np.log(np.exp(9.0) + 255)
    assert rolled == pytest.approx(9 * each + (each - 9.0))


def test_generation_ends_at_until() -> None:
    scorer = harness.Scorer(Alphabet())
    assert scorer.generate_until("a", {"until": ["f"], "max_gen_toks": 20}) == "bcde"
    assert scorer.generate_until("a", {"until": "zz", "max_gen_toks": 3}) == "bcd"


def test_the_adapter_is_an_lm(monkeypatch: pytest.MonkeyPatch) -> None:
    api = types.ModuleType("lm_eval.api.model")
    api.LM = object  # type: ignore[attr-defined]
    for name in ("lm_eval", "lm_eval.api"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", api)
    lm = harness.adapter(Alphabet())
    request = SimpleNamespace(args=("ab", "cd"))
    assert lm.loglikelihood([request])[0][1]
    assert lm.loglikelihood_rolling([SimpleNamespace(args=("abc",))])[0] < 0
    until = SimpleNamespace(args=("a", {"until": ["d"]}))
    assert lm.generate_until([until]) == ["bc"]
    assert lm.apply_chat_template([{"role": "user", "content": "hi"}]) == "hi"


def test_a_missing_harness_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UsageError, match="pip install lm-eval"):
        harness.adapter(Alphabet())
