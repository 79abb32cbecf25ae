"""`zeropoint fit` and `plan diff` through the program: a budget met, budgets refused, nothing written then."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.speeds import speeds_of
from tests.support.tiny import make_checkpoint
from zeropoint import artifact
from zeropoint.cli.main import main
from zeropoint.errors import UsageError
from zeropoint.fitting import Settings, fit, offered
from zeropoint.kernels import active_isa
from zeropoint.values.budget import Budget

QUICK = ["--tokens", "600", "--planning-tokens", "300", "--evaluations", "2", "--threads", "1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama_tied", tmp_path_factory.mktemp("fit") / "model")


@pytest.fixture(scope="module")
def cache(model: Path) -> Path:
    return model.parent / "cache"


def run(model: Path, cache: Path, *arguments: str | Path) -> int:
    return main(["fit", str(model), *QUICK, "--cache", str(cache), *map(str, arguments)])


def test_a_budget_is_met_checked_and_kept_in_the_card(
    model: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, plan, found = tmp_path / "out", tmp_path / "plan.json", tmp_path / "fit.json"
    code = run(model, cache, "-o", out, "--max-memory", "75kB", "--save-plan", plan, "--json", found)
    told = capsys.readouterr().out
    answer = json.loads(found.read_text())
    assert code == 0, told
    assert "Passed" in told
    assert "in wider formats, the most fragile first" in told
    opened = artifact.open(out)
    assert opened.plan.nbytes <= 75_000
    assert opened.card["verdict"]["met"] is True
    assert opened.card["verdict"]["budget"]["max_memory"] == 75_000
    assert answer["met"] is True
    assert answer["predicted"]["weights_bytes"] == opened.plan.nbytes
    assert all(a["kl"] >= b["kl"] - 1e-9 for a, b in zip(answer["front"], answer["front"][1:], strict=False))
    assert all(choice.reason for choice in opened.plan.choices.values())
    again = tmp_path / "again"
    assert main(["quantize", str(model), "-o", str(again), "--plan", str(plan)]) == 0
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    assert main(["plan", "diff", str(plan), str(again)]) == 0
    assert "0 of" in capsys.readouterr().out


def test_what_cannot_be_is_said_and_nothing_is_written(
    model: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    for bounds, words in (
        (["--max-memory", "20kB"], "no plan takes 0.02 MB: the smallest takes 0.0"),
        (["--min-decode", "1e9tok/s"], "no plan decodes 1e+09 tokens/s here"),
        (["--max-memory", "60kB", "--max-kl", "1e-6"], "loses less than a mean KL of"),
    ):
        assert run(model, cache, "-o", out, *bounds) == 1
        assert words in " ".join(capsys.readouterr().out.split())
        assert not out.exists()


def test_sixteen_bits_that_meet_the_budget_are_left_alone(
    model: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(model, cache, "-o", tmp_path / "out", "--max-memory", "10MB") == 0
    assert "do not quantize it" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_plan_only_and_the_difference_of_plans(
    model: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "a.json", tmp_path / "b.json"
    assert run(model, cache, "--plan-only", "--max-memory", "70kB", "--save-plan", first) == 0
    assert run(model, cache, "--plan-only", "--max-kl", "0.05", "--save-plan", second) == 0
    assert list(tmp_path.iterdir()) == [first, second] or {*tmp_path.iterdir()} == {first, second}
    capsys.readouterr()
    assert main(["plan", "diff", str(first), str(second), "--json", str(tmp_path / "d.json")]) == 1
    assert json.loads((tmp_path / "d.json").read_text())["differences"]
    assert "weights differ" in capsys.readouterr().out


def test_bad_use(model: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["-o", tmp_path / "o"], "give a budget"),
        (["--max-kl", "0.1"], "-o OUT"),
        (["-o", tmp_path / "o", "--max-memory", "much"], "--max-memory: must be an amount of memory"),
        (["-o", tmp_path / "o", "--max-kl", "0.1", "--objective", "fun"], "no objective 'fun'"),
        (["-o", model, "--max-kl", "0.1"], "exists"),
    ):
        assert run(model, cache, *arguments) == 2
        assert words in " ".join(capsys.readouterr().err.split())


def test_a_page_shows_what_could_be_had(model: Path, cache: Path, tmp_path: Path) -> None:
    page = tmp_path / "fit.html"
    assert run(model, cache, "--plan-only", "--max-memory", "75kB", "--html", page) == 0
    text = page.read_text()
    for words in (
        "Loss against size and speed",
        "Loss and size",
        "Loss and speed",
        "the chosen plan",
        "Kept wider",
    ):
        assert words in text
    assert run(model, cache, "--plan-only", "--max-memory", "60kB", "--max-kl", "1e-6", "--html", page) == 1
    assert "<h1>No plan within the size and speed asked for" in page.read_text()


def test_prompts_have_a_bound_too(
    model: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    formats = ["--formats", "int8", "int5", "int4"]  # the default ones, so that no kernels are timed
    assert run(model, cache, "--plan-only", "--max-memory", "75kB", "--min-prefill", "1tok/s", *formats) == 0
    assert run(model, cache, "--plan-only", "--min-prefill", "1e9tok/s", *formats) == 1
    assert "reads a prompt at 1e+09 tokens/s here" in " ".join(capsys.readouterr().out.split())


def test_a_plan_for_another_machine(
    model: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from zeropoint.machine.detect import Machine

    box = Machine("a small box", "Linux", 1, ("scalar",), 10**9, 10**9, (), 5.0)
    (tmp_path / "box.json").write_text(json.dumps(box.to_json()))
    out, options = tmp_path / "out", ("--machine", tmp_path / "box.json", "--max-memory", "75kB")
    assert run(model, cache, "-o", out, *options) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "estimates for a small box" in told
    assert "in a fresh process" not in told
    (tmp_path / "box.json").write_text("[]")
    assert run(model, cache, "-o", tmp_path / "again", *options) == 2
    assert "does not describe a machine" in capsys.readouterr().err


def test_accuracy_is_the_gates(
    model: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert run(model, cache, "-o", out, "--max-memory", "75kB", "--max-accuracy-drop", "2%") == 2
    assert "need --tasks" in capsys.readouterr().err
    task = tmp_path / "task.yaml"
    task.write_text("task: t\n")
    assert run(model, cache, "-o", out, "--tasks", task, "--max-accuracy-drop", "2%") == 2
    assert "give a budget" in capsys.readouterr().err
    with pytest.raises(UsageError, match="the budget is empty"):
        fit(model, None, Budget(max_accuracy_drop=0.1), Settings(), lambda *_: None)


def test_a_bound_on_prefill_offers_formats_that_read_prompts_faster(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    faster = "int8:channel:sym:bf16:a8g32"
    speeds = speeds_of({f"{faster} prefill": 1.5}, level=active_isa())
    monkeypatch.setattr(offered, "measured", lambda folder, threads, step: speeds)
    bounds = ["--max-memory", "75kB", "--min-prefill", "1tok/s"]
    assert run(model, cache, "--plan-only", *bounds) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert f"{faster} is on offer too: it reads prompts 1.5 times as fast as int8 here" in told
