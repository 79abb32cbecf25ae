"""`read_calibration` gives the tokens of the model's own tokenizer, from a folder or a GGUF file, with BOS once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

import zeropoint
from tests.support.tiny import write_tokenizer
from tests.tokenizer.published import SHAPES
from tests.tokenizer.shapes import CORPUS
from zeropoint.calibrate import calibration
from zeropoint.checkpoint import open_checkpoint
from zeropoint.errors import UsageError
from zeropoint.quantization import read_calibration

Tiny = Callable[[str], Path]


def stub(folder: Path, positions: int = 64) -> Any:
    """A checkpoint of which only the tokenizer is read."""
    text = SimpleNamespace(max_position_embeddings=positions)
    return SimpleNamespace(path=folder, name="stub", config=SimpleNamespace(get_text_config=lambda: text))


@pytest.mark.parametrize(
    "name", ["Llama 2 chat", "Llama 3 Instruct", "Gemma 3 it", "Qwen2 Instruct", "OPT", "GPT-2"]
)
@pytest.mark.parametrize("kind", ["text", "conversation"])
def test_tokens_are_those_of_transformers(name: str, kind: str, tmp_path: Path) -> None:
    shape = SHAPES[name]
    folder = shape.write(tmp_path / "model")
    file = tmp_path / ("text.txt" if kind == "text" else "text.jsonl")
    turn = '{"messages": [{"role": "user", "content": "Why is the sky blue?"}]}'
    file.write_text("\n\n\n".join(CORPUS) if kind == "text" else f"{turn}\n{turn}\n", encoding="utf-8")
    theirs = AutoTokenizer.from_pretrained(folder)
    expected = calibration(theirs, file, tokens=64, length=64)
    found = read_calibration(stub(folder), file, tokens=64)
    assert found.to_json() == expected.to_json()
    if shape.bos is not None:
        bos = theirs.convert_tokens_to_ids(shape.bos)
        first = found.tokens[0].tolist()
        assert first[0] == bos
        assert first[1] != bos


def test_a_gguf_file_has_the_tokens_of_its_folder(tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_checkpoint("llama_untied"), folder)
    write_tokenizer(folder, [("t", "h")])
    zeropoint.quantize(folder, tmp_path / "int8", format="int8:g32:sym:fp16")
    zeropoint.export(tmp_path / "int8", "gguf", tmp_path / "x.gguf", verify=False)
    both = [read_calibration(open_checkpoint(path), tokens=256) for path in (folder, tmp_path / "x.gguf")]
    assert both[0].to_json() == both[1].to_json()


@pytest.mark.parametrize("damage", ["missing", "noise", "truncated"])
def test_a_tokenizer_that_cannot_be_read(damage: str, tmp_path: Path) -> None:
    folder = SHAPES["Llama 3 Instruct"].write(tmp_path / "model")
    file = folder / "tokenizer.json"
    if damage == "missing":
        file.unlink()
    else:
        file.write_text("{" if damage == "noise" else file.read_text()[:200])
    with pytest.raises(
        UsageError, match="calibration needs the tokenizer of stub, which cannot be read"
    ) as raised:
        read_calibration(stub(folder))
    assert "\n" not in str(raised.value)
