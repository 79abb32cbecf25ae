"""Wrong options get one sentence that begins with the option's name, before a model is opened."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests.support.tiny import make_checkpoint
from zeropoint import api
from zeropoint.cli import main as program
from zeropoint.cli.main import build_parser, main
from zeropoint.errors import UsageError, ZeropointError

NO_MODEL = "/no/such/model"

#: Command line after MODEL -> option, and words of its message. The model does not exist, so the option came first.
WRONG = {
    "quantize -o o --format int9": ("--format", "integer formats have 2 to 8 bits, not 9"),
    "quantize -o o --format int4:banana": ("--format", "unknown part 'banana'"),
    "quantize -o o --embedding int9": ("--embedding", "2 to 8 bits"),
    "quantize -o o --lm-head kept": ("--lm-head", "unknown format 'kept'"),
    "quantize -o o --algorithm gptqq": ("--algorithm", "(did you mean gptq?): use awq, distill, exact, gptq"),
    "quantize -o o --algorithm bset": ("--algorithm", "(did you mean best?)"),
    "quantize -o o --algorithm nonesuch": ("--algorithm", "good, best, auto"),
    "quantize -o o --algorithm best+gptq": ("--algorithm", "best stands for awq+gptq+rounding"),
    "quantize -o o --algorithm gptq+auto": ("--algorithm", "give auto alone"),
    "quantize -o o --calibration nope.txt": ("--calibration", "nope.txt: there is no such file"),
    "quantize -o o --calibration /": ("--calibration", "it is a folder"),
    "quantize -o o --plan nope.json": ("--plan", "there is no such file"),
    "quantize -o o --min-coverage 95": ("--min-coverage", "got '95': give e.g. 95% or 0.95"),
    "quantize -o o --min-coverage much": ("--min-coverage", "give e.g. 95% or 0.95"),
    "quantize -o o --time-budget abc": (
        "--time-budget",
        "a number of seconds above 0, got 'abc': give e.g. 300",
    ),
    "quantize -o o --time-budget nan": ("--time-budget", "give e.g. 300"),
    "quantize -o o --seed 1.5": ("--seed", "a whole number, at least 0, got '1.5'"),
    "quantize -o o --calibration-tokens 0": ("--calibration-tokens", "at least 1, got '0': give e.g. 65536"),
    "fit -o o --max-kl foo": ("--max-kl", "a number of nats per token above 0, got 'foo': give e.g. 0.02"),
    "fit -o o --max-kl -1": ("--max-kl", "got '-1'"),
    "fit -o o --max-memory 110": ("--max-memory", "with its unit, got '110': give e.g. 110MB"),
    "fit -o o --max-memory much": ("--max-memory", "got 'much'"),
    "fit -o o --max-perplexity-increase 0": ("--max-perplexity-increase", "give e.g. 1% or 0.01"),
    "fit -o o --min-decode fast": ("--min-decode", "give e.g. 100tok/s"),
    "fit -o o --min-prefill 0": ("--min-prefill", "above 0, got '0'"),
    "fit -o o --evaluations -1": ("--evaluations", "at least 0"),
    "fit -o o --formats int8 int9": ("--formats", "2 to 8 bits"),
    "fit -o o --text nope.txt": ("--text", "there is no such file"),
    "fit -o o --machine nope.json": ("--machine", "there is no such file"),
    "fit -o o --max-kl 1 --tasks nope": ("--tasks", "there is no such file"),
    "inspect --format int9": ("--format", "2 to 8 bits"),
    "inspect --sensitivity --swaps x": ("--swaps", "got 'x': give e.g. 16"),
    "check --against m --min-top1 95": ("--min-top1", "got '95': give e.g. 95%"),
    "check --against m --max-kl 1%": ("--max-kl", "got '1%'"),
    "check --against m --max-accuracy-drop 1": ("--max-accuracy-drop", "give e.g. 2% or 0.02"),
    "check --against m --limit many": ("--limit", "got 'many'"),
    "compare a --repeats 2": ("--repeats", "at least 3, got '2'"),
    "compare a --text nope.txt": ("--text", "there is no such file"),
    "compare a --text /dev/null": ("--text", "save it as a plain file"),
    "compare a --sensitivity nope.json": ("--sensitivity", "there is no such file"),
    "bench --threads 0": ("--threads", "at least 1, got '0'"),
    "generate --prompt x --temperature -1": ("--temperature", "at least 0, got '-1'"),
    "generate --prompt x --top-k 1.5": ("--top-k", "a whole number"),
    "generate --prompt x --top-p 2": ("--top-p", "above 0, at most 1"),
    "generate --prompt x --min-p x": ("--min-p", "from 0 to 1"),
    "chat --repetition-penalty 0": ("--repetition-penalty", "a number above 0"),
    "chat --speculate many": ("--speculate", "got 'many'"),
    "export -o o --to gguf --calibration nope": ("--calibration", "there is no such file"),
    "export -o o --to floppy": ("--to", "invalid choice"),
}


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_value_is_told_first_with_its_option(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command, *rest = line.split()
    assert main([command, NO_MODEL, *rest]) == 2
    told, (option, words) = capsys.readouterr().err, WRONG[line]
    assert told.startswith(f"error: {option}: "), told
    assert words in told
    assert told.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_examples_of_the_help_texts_are_command_lines(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("text")
    parser, count = build_parser(), 0
    for command in next(action for action in parser._actions if action.dest == "command").choices.values():
        for line in (command.description or "").splitlines():
            if line.startswith("  zeropoint "):
                words = shlex.split(line.strip().split("   ")[0].replace("FILE", str(file)))[1:]
                assert parser.parse_args(words).run
                count += 1
    assert count > 15


BESIDE_A_PLAN = {
    "--format int4": "--format",
    "--format int8": "--format",  # the default, but given
    "--keep *mlp* --algorithm gptq": "--algorithm, --keep",
    "--embedding int4 --lm-head int4": "--embedding, --lm-head",
    "--seed 0 --option damping=1": "--option, --seed",
    "--time-budget 3": "--time-budget",
}


@pytest.mark.parametrize("options", BESIDE_A_PLAN)
def test_a_plan_refuses_what_it_decides(
    options: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text('{"plan_version": 1, "nbytes": 0, "choices": {}}')
    assert main(["quantize", NO_MODEL, "-o", str(tmp_path / "o"), "--plan", str(plan), *options.split()]) == 2
    assert f"leave out {BESIDE_A_PLAN[options]}, or the plan" in capsys.readouterr().err


def test_python_refuses_the_same(tmp_path: Path) -> None:
    from zeropoint.values.plan import Plan

    plan, out = Plan({}, 0), tmp_path / "o"
    for arguments, words in (
        ({"plan": plan, "format": "int4"}, "leave out format, or the plan"),
        ({"plan": plan, "keep": ["*"], "seed": 0}, "leave out keep, seed, or the plan"),
        ({"plan": plan, "algorithm": "gptq", "options": {"damping": 1.0}}, "leave out algorithm, options"),
        ({"format": "int9"}, "2 to 8 bits"),
        ({"algorithm": "gptqq"}, "did you mean gptq"),
        ({"calibration": tmp_path / "nope.txt"}, "there is no such file"),
        ({"algorithm": "auto", "options": {"damping": 1.0}}, "auto takes no options"),
    ):
        with pytest.raises(ZeropointError, match=words):
            api.quantize(NO_MODEL, out, **arguments)


IGNORED = {
    "quantize m -o o --text T": "--text has no effect without --check",
    "quantize m -o o --text T --tokens 9": "--text, --tokens have no effect without --check",
    "inspect m --text T": "--text has no effect without --sensitivity",
    "inspect m --formats int8 --swaps 1": "--formats, --swaps have no effect without --sensitivity",
    "inspect m --html page.html": "--html has no effect without --sensitivity",
    "fit m --max-kl 1 --plan-only -o o": "--out has no effect with --plan-only",
    "fit m -o o --max-kl 1 --no-cache --cache c": "--cache has no effect with --no-cache",
    "compare m a --no-speed --repeats 5": "--repeats has no effect with --no-speed",
    "inspect m --sensitivity --format int4": "--format has no effect with --sensitivity",
}


@pytest.mark.parametrize("line", IGNORED)
def test_an_option_without_effect_is_refused(
    line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "T"
    text.write_text("text")
    assert main([str(text) if word == "T" else word for word in line.split()]) == 2
    assert IGNORED[line] in capsys.readouterr().err


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint("llama_tied", tmp_path_factory.mktemp("options") / "model")


@pytest.fixture(scope="module")
def artifact(model: Path) -> Path:
    api.quantize(model, model.parent / "artifact")
    return model.parent / "artifact"


def test_a_float_model_is_not_an_artifact(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (
        ["export", str(model), "--to", "gguf", "-o", str(model.parent / "x.gguf")],
        ["plan", "diff", str(model), str(model)],
        ["check", str(model), "--against", str(model)],
    ):
        assert main(command) == 2
        told = capsys.readouterr().err
        assert f"{model} is not an artifact" in told
        assert f"zeropoint quantize {model} -o OUT" in told


def test_an_artifact_is_not_a_model(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["inspect", str(artifact)], ["quantize", str(artifact), "-o", str(tmp_path / "o")]):
        assert main(command) == 2
        told = capsys.readouterr().err
        assert "give the original model" in told
        assert "import" not in told


def test_a_keep_pattern_without_a_match_names_what_was_meant(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", str(model), "-o", str(tmp_path / "o"), "--keep", "down_proj"]) == 2
    told = capsys.readouterr().err
    assert "did you mean '*down_proj*'?" in told
    assert "its names are like " in told


def test_os_errors_are_in_plain_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "no.json").write_text("nothing")
    for first, words in (
        (tmp_path / "nope.json", "cannot read the plan"),
        (tmp_path / "nope.json", "there is no such file or folder"),
        (tmp_path / "no.json", "no.json is not a plan that --save-plan wrote"),
    ):
        assert main(["plan", "diff", str(first), str(first)]) == 2
        told = capsys.readouterr().err
        assert words in told
        assert "Errno" not in told


def test_plan_diff_cuts_no_name(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plans = [tmp_path / f"a-rather-long-name-of-a-plan-{name}.json" for name in ("first", "second")]
    for plan, format in zip(plans, ("int8", "int4"), strict=True):
        out = tmp_path / format
        assert (
            main(["quantize", str(model), "-o", str(out), "--format", format, "--save-plan", str(plan)]) == 0
        )
    capsys.readouterr()
    assert main(["plan", "diff", *map(str, plans)]) == 1
    told = capsys.readouterr().out
    for name in (
        *map(str, plans),
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.1.mlp.up_proj.weight",
    ):
        assert name in told
    assert "…" not in told


def test_ctrl_c_says_what_the_command_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(args: object) -> int:
        raise KeyboardInterrupt

    parser = build_parser()
    commands = next(action for action in parser._actions if action.dest == "command").choices
    for command in commands.values():
        command.set_defaults(run=interrupted)
    monkeypatch.setattr(program, "build_parser", lambda: parser)
    for line, words in (
        ("doctor", "interrupted\n"),
        ("bench m", "interrupted\n"),
        ("quantize m -o o", "no half-written artifact was left behind"),
        ("check a --against m", "no verdict was written"),
        ("export a --to gguf -o f", "no file was left behind that was not verified"),
    ):
        assert main(line.split()) == 130
        assert words in capsys.readouterr().err


def test_the_python_api_s_errors_are_the_project_s(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a time budget needs the algorithm auto"):
        api.quantize(NO_MODEL, tmp_path / "o", time_budget=1.0)
    with pytest.raises(UsageError, match="there is no such file"):
        api.quantize(NO_MODEL, tmp_path / "o", calibration=tmp_path / "nope.txt")
