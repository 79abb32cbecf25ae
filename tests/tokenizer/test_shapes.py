"""Published models' tokenizers and chat templates, token for token against transformers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jinja2 import TemplateError
from transformers import AutoTokenizer

from tests.tokenizer.published import SHAPES
from tests.tokenizer.shapes import Shape, text_of
from zeropoint.calibrate import calibration
from zeropoint.errors import UsageError
from zeropoint.tokenizer import Tokenizer
from zeropoint.tokenizer.hub import HubTokenizer

TEXTS = (
    "Hello, the sky is blue!",
    " the sky",
    "  two  spaces\n\n  the",
    "\nthe answer\r\n",
    "12345 and 2024",
    "日本語 🐱 é e\u0301",
    "it's we'RE they'll",
    "[INST] the [/INST] sky",
    "xxx   ",
    "\tthe\t\tsky ",
    "",
)
TALKS: tuple[list[dict[str, Any]], ...] = (
    [{"role": "user", "content": "Why is the sky blue?"}],
    [
        {"role": "user", "content": " Why? "},
        {"role": "assistant", "content": "é, it's \n blue."},
        {"role": "user", "content": "And 2024?\n"},
    ],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}],
    [
        {"role": "user", "content": "hi", "tool_calls": None},
        {"role": "assistant", "content": "yes", "thinking": "well"},
        {"role": "assistant", "content": "twice"},
    ],
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shapes")


def open_both(name: str, folders: Path) -> tuple[Any, Any, Shape]:
    shape, folder = SHAPES[name], folders / name.replace(" ", "-")
    if not folder.is_dir():
        shape.write(folder)
    theirs = AutoTokenizer.from_pretrained(folder)
    return Tokenizer(folder) if shape.tokenizer_file else HubTokenizer(theirs), theirs, shape


@pytest.mark.parametrize("name", SHAPES)
def test_texts_and_prompts(name: str, folders: Path) -> None:
    ours, theirs, shape = open_both(name, folders)
    special = [text_of(token) for token in shape.special]
    mixed = f"so {special[-1]}the sky{special[-1]} the {special[0]}\nthe{special[-1]}\n\n {special[0]}"
    assert ours.special == theirs.special_tokens_map
    prefix = [] if shape.bos is None else [theirs.convert_tokens_to_ids(shape.bos)]
    assert ours.prefix == prefix
    assert ours.start_token == (theirs.eos_token_id if theirs.bos_token_id is None else theirs.bos_token_id)
    for text in (*TEXTS, mixed):
        plain = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text) == plain
        assert ours.encode_prompt(text) == theirs(text)["input_ids"]
        assert ours.decode(plain) == theirs.decode(plain, clean_up_tokenization_spaces=False)
    if shape.bos is not None:
        assert (
            ours.encode_prompt(shape.bos + "the")
            == theirs(shape.bos + "the", add_special_tokens=False).input_ids
        )


@pytest.mark.parametrize(
    "name", [name for name, shape in SHAPES.items() if shape.template or "chat_template.jinja" in shape.files]
)
@pytest.mark.parametrize("talk", range(len(TALKS)))
def test_conversations(name: str, talk: int, folders: Path) -> None:
    ours, theirs, _ = open_both(name, folders)
    for prompt in (True, False):
        try:
            wanted = theirs.apply_chat_template(TALKS[talk], tokenize=False, add_generation_prompt=prompt)
        except TemplateError as refusal:
            with pytest.raises(UsageError, match=re.escape(str(refusal))):
                ours.chat(TALKS[talk])
            return
        assert ours.chat_text(TALKS[talk], add_generation_prompt=prompt) == wanted
    ids = theirs.apply_chat_template(TALKS[talk], add_generation_prompt=True, return_dict=False)
    assert ours.chat(TALKS[talk]) == ids


@pytest.mark.parametrize("name", [name for name, shape in SHAPES.items() if shape.template])
def test_calibration_has_the_ids_of_a_conversation(name: str, folders: Path, tmp_path: Path) -> None:
    ours, theirs, _ = open_both(name, folders)
    talk = TALKS[1][:2]
    wanted = theirs.apply_chat_template(talk, return_dict=False)
    file = tmp_path / "talk.jsonl"
    file.write_text("\n".join([json.dumps({"messages": talk})] * 3))
    for tokenizer in (ours, theirs):
        made = calibration(tokenizer, file, tokens=3 * len(wanted), length=len(wanted))
        assert made.tokens.tolist() == [wanted] * 3
