"""The tokenizer without transformers, against transformers'."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.support.tiny import write_tokenizer
from zeropoint.errors import ArtifactError, UnsupportedError, UsageError
from zeropoint.tokenizer import HubTokenizer, Tokenizer

TEXTS = ["Hello, world!", "  two  spaces\n\n", "日本語 🐱", "<s>literal</s>", ""]
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Why is the sky blue?"},
    {"role": "assistant", "content": "Scattering."},
    {"role": "user", "content": "And é?"},
]
CHATML = (
    "{%- for m in messages %}\n  {{- '<|im_start|>' + m['role'] + '\\n' + m['content'] | trim + '<|im_end|>\\n' }}\n"
    "  {%- if loop.last %}{% break %}{% endif %}\n{% endfor -%}\n"
    "{% generation %}{{ eos_token }}{% endgeneration %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
    "{% endif %}{{ {'é': [1, none]} | tojson }}"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tokenizer(tmp_path)
    return tmp_path


@pytest.mark.parametrize("text", TEXTS)
def test_encodes_and_decodes_like_transformers(text: str, folder: Path) -> None:
    ours, theirs = Tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    ids = ours.encode(text)
    assert ids == theirs(text, add_special_tokens=False)["input_ids"]
    assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)


def test_a_prompt_begins_as_in_training_and_does_not_end(folder: Path) -> None:
    def prompts() -> list[list[int]]:
        hub = HubTokenizer(AutoTokenizer.from_pretrained(folder))
        return [Tokenizer(folder).encode_prompt("ab"), hub.encode_prompt("ab")]

    plain = Tokenizer(folder).encode("ab")
    assert prompts() == [plain, plain]
    settings = json.loads((folder / "tokenizer.json").read_text())
    settings["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
            {"SpecialToken": {"id": "</s>", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {
            token: {"id": token, "ids": [number], "tokens": [token]}
            for token, number in (("<s>", 256), ("</s>", 257))
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(settings))
    assert prompts() == [[256, *plain], [256, *plain]]


@pytest.mark.parametrize("where", ["file", "settings", "list"])
def test_the_chat_template_renders_like_transformers(where: str, folder: Path) -> None:
    put_template(folder, CHATML, where)
    ours, theirs = Tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    text = theirs.apply_chat_template(CONVERSATION, add_generation_prompt=True, tokenize=False)
    assert "<|im_start|>assistant" in text
    assert ours.decode(ours.chat(CONVERSATION)) == text
    assert ours.has_chat_template


def put_template(folder: Path, template: str, where: str = "file") -> None:
    if where == "file":
        (folder / "chat_template.jinja").write_text(template)
        return
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    named = [{"name": "tools", "template": "no"}, {"name": "default", "template": template}]
    settings["chat_template"] = named if where == "list" else template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def test_without_a_template_the_last_message_is_the_prompt(folder: Path) -> None:
    tokenizer = Tokenizer(folder)
    assert not tokenizer.has_chat_template
    assert tokenizer.decode(tokenizer.chat(CONVERSATION)) == "And é?"


def test_a_template_may_refuse(folder: Path) -> None:
    put_template(folder, "{{ raise_exception('no system message, please') }}")
    with pytest.raises(UsageError, match="no system message"):
        Tokenizer(folder).chat(CONVERSATION)


@pytest.mark.parametrize("template", ["{% if %}", "{{ messages.__class__.__mro__[1].__subclasses__() }}"])
def test_a_broken_or_hostile_template_is_one_error(template: str, folder: Path) -> None:
    put_template(folder, template)
    with pytest.raises((ArtifactError, UsageError)):
        Tokenizer(folder).chat(CONVERSATION)


def test_stop_tokens_come_from_every_place(folder: Path) -> None:
    assert Tokenizer(folder).stop_tokens() == {257}
    (folder / "config.json").write_text('{"eos_token_id": 5}')
    assert Tokenizer(folder).stop_tokens() == {5, 257}
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 8]}')
    assert Tokenizer(folder).stop_tokens() == {7, 8, 257}


def test_missing_and_damaged_files(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"tokenizer\.json"):
        Tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    with pytest.raises(UnsupportedError, match=r"tokenizer\.json"):
        Tokenizer(folder)


@pytest.mark.reference_model
def test_the_real_tokenizer(reference_model: Path, tiny_checkpoint: Callable[[str], Path]) -> None:
    ours, theirs = Tokenizer(reference_model), AutoTokenizer.from_pretrained(reference_model)
    for text in [*TEXTS, Path(__file__).read_text()]:
        assert ours.encode(text) == theirs(text, add_special_tokens=False)["input_ids"]
    rendered = theirs.apply_chat_template(CONVERSATION, add_generation_prompt=True, tokenize=False)
    assert ours.chat(CONVERSATION) == theirs(rendered, add_special_tokens=False)["input_ids"]
