"""Each command does what its help says, on a tiny model, through the real processes."""

from __future__ import annotations

import json
import sys
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import pytest

from tests.support.speeds import speeds_of
from tests.support.tiny import make_checkpoint
from zeropoint.cli.main import build_parser, main
from zeropoint.kernels import active_isa
from zeropoint.machine.detect import Machine
from zeropoint.runtime.native import format_speeds
from zeropoint.runtime.native.format_speeds import FormatSpeeds


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama_tied", tmp_path_factory.mktemp("cli") / "model")


@pytest.fixture(scope="module")
def int8(model: Path) -> Path:
    out = model.parent / "int8"
    assert main(["quantize", str(model), "-o", str(out), "--format", "int8"]) == 0
    return out


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(
        "\n\n\n".join(f"Document {i} says this and that, again and again. " * 6 for i in range(10))
    )
    return file


def run_json(arguments: list[str], file: Path) -> tuple[int, dict[str, Any]]:
    code = main([*arguments, "--json", str(file)])
    return code, json.loads(file.read_text())


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    commands = next(a for a in build_parser()._actions if a.dest == "command").choices
    assert list(commands)[:5] == ["doctor", "inspect", "quantize", "fit", "check"]
    for name in commands:
        with pytest.raises(SystemExit) as stop:
            main([name, "--help"])
        assert stop.value.code == 0
        assert f"zeropoint {name}" in capsys.readouterr().out


def test_doctor(tmp_path: Path) -> None:
    code, found = run_json(["doctor", "--no-measure"], tmp_path / "d.json")
    assert code == 0
    assert found["machine"]["cores"] >= 1
    assert {row["format"] for row in found["kernels"]} >= {"int8", "int4"}
    assert found["format_speeds"] is None


def test_doctor_times_the_kernels_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], model: Path
) -> None:
    """The second run, with --no-measure, shows what the first one kept, and `quantize` says what it says."""
    level, made = active_isa(), []

    def pretend(*, threads: int, step: object) -> FormatSpeeds:
        made.append(threads)
        return speeds_of({"int4 decode": 2.5, "int8 prefill": 0.8}, level=level, threads=threads)

    monkeypatch.setattr(format_speeds, "measure", pretend)
    monkeypatch.setenv("ZEROPOINT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("zeropoint.cli.commands.doctor.this_machine", lambda measure: Machine.detect())
    code, found = run_json(["doctor"], tmp_path / "d.json")
    text = capsys.readouterr().out
    assert code == 0
    assert f"{level}: format" in text
    assert "25.0 (2.50x)" in text
    assert found["format_speeds"]["levels"][level]["int4"]["decode"] == 25.0
    assert found["advice"][0] in text
    assert "int4 is the fastest preset at decode (2.5 times FP16)" in found["advice"][0]
    code, again = run_json(["doctor", "--no-measure"], tmp_path / "d.json")
    assert again["format_speeds"] == found["format_speeds"]
    assert main(["doctor", "--fresh", "--threads", str(made[0])]) == 0
    assert made == [made[0], made[0]]
    capsys.readouterr()
    assert main(["quantize", str(model), "-o", str(tmp_path / "q"), "--format", "int8"]) == 0
    first = capsys.readouterr().out.splitlines()[0]
    assert first == (
        "on this machine int4 decodes 2.5 times as fast as int8 and fp16 reads prompts 1.2 times as fast as int8, "
        "as `zeropoint doctor` measured"
    )
    assert main(["doctor", "--fresh", "--no-measure"]) == 2
    assert "--fresh has no effect with --no-measure" in capsys.readouterr().err


def test_inspect_predicts_what_quantize_writes(model: Path, int8: Path, tmp_path: Path) -> None:
    code, found = run_json(["inspect", str(model), "--no-measure"], tmp_path / "i.json")
    assert code == 0
    predicted = {row["format"]: row["nbytes"] for row in found["formats"]}
    code, written = run_json(
        ["quantize", str(model), "-o", str(tmp_path / "again"), "--format", "int8"], tmp_path / "q.json"
    )
    assert code == 0
    assert written["weights_bytes"] == predicted["int8"]
    assert {row["decision"] for row in written["coverage"]} == {"quantized", "kept", "tied"}
    assert (tmp_path / "again/model.safetensors").read_bytes() == (int8 / "model.safetensors").read_bytes()


def test_a_saved_plan_can_be_edited_and_replayed(model: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan.json"
    first = ["quantize", str(model), "-o", str(tmp_path / "a"), "--format", "int4", "--save-plan", str(plan)]
    assert main(first) == 0
    assert main(["quantize", str(model), "-o", str(tmp_path / "b"), "--plan", str(plan)]) == 0
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def test_coverage_below_what_was_asked_fails(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["quantize", str(model), "-o", str(tmp_path / "c"), "--keep", "*mlp*", "--min-coverage", "0.95"]
    assert main(command) == 2
    assert "mlp" in capsys.readouterr().err
    assert not (tmp_path / "c").exists()


def test_generate(int8: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", str(int8), "--prompt", "hello", "--max-new-tokens", "5", "--threads", "1"]
    code, found = run_json(command, tmp_path / "g.json")
    assert code == 0
    assert 1 <= len(found["tokens"]) <= 5
    assert found["text"] in capsys.readouterr().out
    assert run_json(command, tmp_path / "h.json")[1]["tokens"] == found["tokens"]


def test_bench(int8: Path, tmp_path: Path) -> None:
    command = [
        "bench",
        str(int8),
        "--prompt-tokens",
        "16",
        "--new-tokens",
        "4",
        "--repeats",
        "3",
        "--threads",
        "1",
    ]
    code, found = run_json(command, tmp_path / "b.json")
    assert code == 0
    metrics = {row["metric"] for row in found["measurements"]}
    assert metrics >= {
        "weights_bytes",
        "resident_bytes",
        "load_seconds",
        "prefill_tokens_per_second",
        "decode_tokens_per_second",
    }


def test_check_passes_and_fails_and_writes_the_card(
    model: Path, int8: Path, text: Path, tmp_path: Path
) -> None:
    command = ["check", str(int8), "--against", str(model), "--text", str(text), "--tokens", "256"]
    code, found = run_json([*command, "--max-kl", "5"], tmp_path / "p.json")
    assert code == 0
    assert found["passed"] is True
    assert json.loads((int8 / "zeropoint.json").read_text())["verdict"]["passed"] is True
    code, found = run_json([*command, "--max-kl", "1e-12"], tmp_path / "f.json")
    assert code == 1
    assert json.loads((int8 / "zeropoint.json").read_text())["verdict"]["passed"] is False


def test_compare_writes_table_json_and_page(
    model: Path, int8: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, table = tmp_path / "page.html", tmp_path / "table.md"
    command = ["compare", str(model), str(int8), "--text", str(text), "--tokens", "256", "--prompt", "hi"]
    sizes = ["--prompt-tokens", "16", "--new-tokens", "4", "--html", str(page), "--markdown", str(table)]
    code, found = run_json([*command, *sizes], tmp_path / "c.json")
    assert code == 0
    metrics = {row["metric"] for row in found["measurements"]}
    assert metrics >= {
        "perplexity",
        "kl_divergence",
        "top1_agreement",
        "weights_bytes",
        "decode_tokens_per_second",
    }
    assert "int8" in capsys.readouterr().out
    assert "int8" in table.read_text()
    assert "<html" in page.read_text()


def test_a_small_install_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Hidden(MetaPathFinder):
        def find_spec(self, name: str, path: object, target: object = None) -> None:
            if name == "torch":
                raise ModuleNotFoundError("No module named 'torch'", name="torch")

    for name in [n for n in sys.modules if n == "torch" or n.startswith("zeropoint.checkpoint")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Hidden(), *sys.meta_path])
    assert main(["inspect", str(tmp_path)]) == 2
    assert "zeropoint[quantize]" in capsys.readouterr().err


def test_inspect_sensitivity_measures_once(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "fragile.html"
    command = ["inspect", str(model), "--sensitivity", "--formats", "int4", "--tokens", "128", "--swaps", "3"]
    code, found = run_json([*command, "--html", str(page)], tmp_path / "s.json")
    assert code == 0
    assert "is the most fragile" in capsys.readouterr().out
    assert "What is fragile" in page.read_text()
    assert {cost["format"] for cost in found["costs"]} == {"int4"}
    assert run_json(command, tmp_path / "s.json") == (0, found)
    assert "read from" in capsys.readouterr().out
    assert main([*command, "--formats", "fp16"]) == 2
    assert "is a float format" in capsys.readouterr().err


def test_strict_turns_a_cold_expert_into_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_checkpoint("mixtral", tmp_path / "moe")
    out = str(tmp_path / "out")
    command = ["quantize", str(model), "-o", out, "--algorithm", "gptq", "--format", "int4", "--overwrite"]
    assert (
        main([*command, "--strict", "--calibration-tokens", "2"]) == 1
    )  # two tokens reach at most 4 of 8 experts
    assert "strict: " in capsys.readouterr().out
    assert main([*command, "--calibration-tokens", "2"]) == 0
