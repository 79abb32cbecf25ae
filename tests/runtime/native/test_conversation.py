"""A conversation in a chat template: the next turn feeds its own tokens, whatever the model answered before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

from tests.runtime.native.test_engine import count_tokens
from tests.support import tiny
from zeropoint.errors import UsageError
from zeropoint.runtime.conversation import Conversation
from zeropoint.runtime.native.runner import NativeRunner
from zeropoint.runtime.sampling import Sampling

CHATML = (
    "{% for m in messages %}{{ '<s>' + m.role + '\\n' + m.content + '</s>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>assistant\\n' }}{% endif %}"
)
TRIMMED = CHATML.replace("m.content", "(m.content | trim | replace('\\ufffd', ''))")
LENGTH = 2048


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("conversation") / "model"
    config = transformers.LlamaConfig(**{**tiny.CONFIGS["llama_tied"][1], "max_position_embeddings": LENGTH})
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
    tiny.write_tokenizer(path, merges=[("t", "h")])
    return path


def ignore(piece: str) -> None:
    """Show nothing."""


def opened(folder: Path, template: str) -> NativeRunner:
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": template}))
    return NativeRunner.open(folder, threads=1)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=2.0)])
def test_a_turn_feeds_its_own_tokens(
    sampling: Sampling, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = opened(folder, CHATML)
    read, shown = count_tokens(runner, monkeypatch), list[str]()
    conversation, own = Conversation(runner, [{"role": "system", "content": "be brief"}]), 36
    for turn in range(20):  # past several growths of the cache
        read.clear()
        answer = conversation.ask(f"question {turn}", shown.append, max_new_tokens=40, sampling=sampling)
        assert sum(read) <= own + 40 + (turn == 0) * 40, f"turn {turn}: {sum(read)}"
        assert "".join(shown).endswith(answer)
    assert len(conversation._prompt) > 512, "not tested: the cache did not grow"
    assert [m["role"] for m in conversation.messages] == ["system", *["user", "assistant"] * 20]
    conversation.reset()
    assert [m["role"] for m in conversation.messages] == ["system"]


def test_the_next_prompt_is_the_model_s_own_tokens(folder: Path) -> None:
    runner = opened(folder, CHATML)
    conversation = Conversation(runner)
    conversation.ask("one", ignore, max_new_tokens=20, sampling=Sampling(temperature=2.0))
    first, answered = list(conversation._prompt), list(conversation._answer or ())
    assert answered
    conversation.ask("two", ignore, max_new_tokens=4)
    assert conversation._prompt[: len(first) + len(answered)] == [*first, *answered]
    assert runner.decode(conversation._prompt) == runner.decode(conversation._rendered)


def test_a_template_that_changes_answers_is_obeyed(folder: Path) -> None:
    runner = opened(folder, TRIMMED)
    conversation = Conversation(runner)
    for text in ("one", "two", "three"):
        said = [*conversation.messages, {"role": "user", "content": text}]
        conversation.ask(text, ignore, max_new_tokens=30, sampling=Sampling(temperature=3.0, seed=1))
        assert runner.decode(conversation._prompt) == runner.decode(runner.chat_tokens(said))


def test_what_ends_an_answer(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = opened(folder, CHATML)
    conversation, pieces = Conversation(runner), list[str]()

    def interrupt(text: str) -> None:
        pieces.append(text)
        if len(pieces) == 3:
            raise KeyboardInterrupt

    answer = conversation.ask("one", interrupt, max_new_tokens=40)
    assert answer == "".join(pieces)
    assert conversation._answer is None
    whole = conversation.ask("two", ignore, max_new_tokens=40)
    conversation.reset()
    stop = whole[4:6]
    assert stop not in conversation.ask("three", ignore, max_new_tokens=40, stop=[stop])
    with pytest.raises(UsageError, match=str(LENGTH)):
        conversation.ask("x" * LENGTH, ignore, max_new_tokens=1)
    assert len(conversation.messages) == 2
    assert conversation.ask("four", ignore, max_new_tokens=3)
