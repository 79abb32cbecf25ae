"""`--revision` selects the hub revision in each command; `--strict` turns warnings into exit code 1 in each command."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import zeropoint
from tests.support.hub import offline_hub
from tests.support.tiny import write_tokenizer
from zeropoint import fitting, originals
from zeropoint.cli.main import main
from zeropoint.files.json_file import CARD_NAME
from zeropoint.fitting import Fit
from zeropoint.quantization import quantize_checkpoint
from zeropoint.values.budget import Budget

Tiny = Callable[[str], Path]


@pytest.fixture
def hub(tiny_checkpoint: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An offline cache that holds a/b, in `main` a tied model and in `other` an untied one; returns an artifact."""
    revisions = {"main": tiny_checkpoint("llama_tied"), "other": tiny_checkpoint("llama_untied")}
    offline_hub(tmp_path / "hub", revisions, monkeypatch)
    quantize_checkpoint(tiny_checkpoint("llama_untied"), tmp_path / "artifact", format="int8")
    return tmp_path / "artifact"


#: Command -> its arguments for a MODEL; ARTIFACT and OUT are folders.
COMMANDS = {
    "inspect": ["inspect", "MODEL", "--no-measure"],
    "quantize": ["quantize", "MODEL", "-o", "OUT"],
    "fit": ["fit", "MODEL", "-o", "OUT", "--max-memory", "1MB"],
    "check": ["check", "ARTIFACT", "--against", "MODEL"],
    "compare": ["compare", "MODEL", "ARTIFACT"],
    "bench": ["bench", "MODEL", "--prompt-tokens", "16", "--new-tokens", "4", "--repeats", "3"],
    "generate": ["generate", "MODEL", "--prompt", "hi", "--max-new-tokens", "4"],
    "chat": ["chat", "MODEL"],
    "export": ["export", "MODEL", "--to", "gguf", "--type", "Q8_0", "--out", "OUT"],
}


def command(name: str, model: str, artifact: Path) -> list[str]:
    places = {"MODEL": model, "ARTIFACT": str(artifact), "OUT": str(artifact.parent / "out")}
    return [places.get(word, word) for word in COMMANDS[name]]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_revision_is_looked_up(name: str, hub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command(name, "a/b", hub), "--revision", "nowhere"]) == 2
    assert "a/b is not a local folder and could not be fetched" in " ".join(capsys.readouterr().err.split())
    assert not (hub.parent / "out").exists()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_local_folder_has_no_revision(
    name: str, hub: Path, tiny_checkpoint: Tiny, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command(name, str(tiny_checkpoint("llama_tied")), hub), "--revision", "main"]) == 2
    assert "which has no revision main" in " ".join(capsys.readouterr().err.split())


def test_the_revision_is_the_one_that_runs(hub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = hub.parent / "report.json"
    sizes = []
    for revision in ("main", "other"):
        assert main([*command("bench", "a/b", hub), "--revision", revision, "--json", str(report)]) == 0
        rows = json.loads(report.read_text())["measurements"]
        sizes += [row["value"] for row in rows if row["metric"] == "weights_bytes"]
    assert len(sizes) == 2
    assert sizes[1] > sizes[0]  # the untied model has a head of its own


def test_the_gate_of_quantize_reads_the_revision_that_was_quantized(
    hub: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--revision", "other", "--check", "--tokens", "256", "--threads", "1"]
    assert main([*command("quantize", "a/b", hub), "--format", "fp16", *options]) == 0


def test_export_without_a_type_has_no_revision(hub: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = hub.parent / "x.gguf"
    assert main(["export", str(hub), "--to", "gguf", "--out", str(out), "--revision", "main"]) == 2
    assert "without a type, export takes an artifact folder" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("strict", "code"), [([], 0), (["--strict"], 1)])
def test_strict_import(strict: list[str], code: int, tiny_checkpoint: Tiny, tmp_path: Path) -> None:
    quantize_checkpoint(tiny_checkpoint("llama_untied"), tmp_path / "in", format="int8")
    (tmp_path / "in" / CARD_NAME).unlink()
    config = json.loads((tmp_path / "in/config.json").read_text())
    config["quantization_config"]["kv_cache_scheme"] = {"num_bits": 8, "type": "float"}
    (tmp_path / "in/config.json").write_text(json.dumps(config))
    assert main(["import", str(tmp_path / "in"), "-o", str(tmp_path / "out"), *strict]) == code


@pytest.mark.parametrize(("strict", "code"), [([], 0), (["--strict"], 1)])
def test_strict_fit(
    strict: list[str],
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fit(*_: Any) -> Fit:
        return Fit(Budget(max_memory=1_000_000), None, warnings=["w was rounded to nearest"], unneeded=True)

    monkeypatch.setattr(fitting, "fit", fit)
    assert main(["fit", "x", "-o", str(tmp_path / "out"), "--max-memory", "1MB", *strict]) == code
    said = capsys.readouterr().out
    assert "warning: w was rounded to nearest" in said
    assert ("strict: 1 warnings, the first: w was rounded" in said) == bool(strict)


@pytest.mark.parametrize(("strict", "code"), [([], 0), (["--strict"], 1)])
def test_strict_export(
    strict: list[str], code: int, tiny_checkpoint: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint("llama_untied"), tmp_path / "model"))
    write_tokenizer(folder, [("t", "h")])
    original = originals.open_original(folder, tokens=64)
    original.warnings.append("w was rounded to nearest")
    monkeypatch.setattr(originals, "open_original", lambda *_, **__: original)
    arguments = ["--to", "gguf", "--type", "Q8_0", "--out", str(tmp_path / "x.gguf"), "--no-run"]
    assert main(["export", "x", *arguments, *strict]) == code


def test_export_in_python_takes_a_revision(hub: Path) -> None:
    with pytest.raises(zeropoint.errors.CheckpointError, match="could not be fetched"):
        zeropoint.export("a/b", "gguf", hub.parent / "x.gguf", type="Q8_0", revision="nowhere")
