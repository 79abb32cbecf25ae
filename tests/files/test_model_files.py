"""The files beside the weights: every artifact of a model keeps them, and each in its place."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import zeropoint
from zeropoint import artifact
from zeropoint.exporters import export
from zeropoint.files.model_files import model_file_name, model_files
from zeropoint.quantization import quantize_checkpoint
from zeropoint.tokenizer.templates import find_templates

FILES = {
    "chat_template.jinja": "{{ messages[0]['content'] }}",
    "chat_template.json": json.dumps({"chat_template": "old"}),
    "additional_chat_templates/tool_use.jinja": "tools {{ messages[0]['content'] }}",
    "additional_chat_templates/rag.jinja": "rag {{ messages[0]['content'] }}",
}


@pytest.fixture
def source(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A checkpoint with chat templates in every place, and files that belong to no model."""
    folder = tmp_path / "source"
    shutil.copytree(tiny_checkpoint("llama_tied"), folder)
    (folder / "additional_chat_templates").mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "additional_chat_templates" / "notes.txt").write_text("not a template")
    (folder / "notes.jinja").write_text("not a companion")
    return folder


def templates(folder: Path) -> dict[str, str]:
    found = [file for file in model_files(folder) if "chat_template" in str(model_file_name(file))]
    return {str(model_file_name(file)): file.read_text(encoding="utf-8") for file in found}


def test_an_artifact_keeps_every_chat_template(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    quantize_checkpoint(source, out, format="int8")
    assert templates(out) == FILES
    assert sorted(file.name for file in (out / "additional_chat_templates").iterdir()) == [
        "rag.jinja",
        "tool_use.jinja",
    ]
    assert not (out / "notes.jinja").exists()
    assert find_templates(out, {}) == find_templates(source, {})
    assert set(find_templates(out, {}).by_name) == {"default", "rag", "tool_use"}


def test_a_saved_model_keeps_them_too_twice(source: Path, tmp_path: Path) -> None:
    model = zeropoint.AutoModelForCausalLM.from_pretrained(str(source), load_in_8bit=True)
    for _ in range(2):  # the second time into a folder that has them
        model.save_pretrained(tmp_path / "saved")
        assert templates(tmp_path / "saved") == FILES


def test_an_exported_folder_keeps_them(source: Path, tmp_path: Path) -> None:
    quantize_checkpoint(source, tmp_path / "out", format="int8")
    export(artifact.open(tmp_path / "out"), "transformers", tmp_path / "exported")
    assert templates(tmp_path / "exported") == FILES


def test_a_folder_without_any(tmp_path: Path) -> None:
    assert model_files(tmp_path) == []
