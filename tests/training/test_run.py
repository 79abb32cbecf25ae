"""`zeropoint train` on a tiny model, its training text, its card, and its refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import zeropoint
from zeropoint import artifact
from zeropoint.cli.main import main
from zeropoint.errors import UsageError
from zeropoint.evaluate.quality.windows import EvaluationText, load_text
from zeropoint.training import data, run
from zeropoint.training.loop import Evaluation
from zeropoint.training.run import TrainRequest, run_training

Checkpoints = Callable[[str], Path]
TEXTS = [
    "\n\n\n".join(f"Document {i} of {kind} says {i * i} words." for i in range(60))
    for kind in ("ours", "theirs")
]
SMALL = ["--steps", "4", "--batch", "1", "--length", "16", "--tokens", "400", "--algorithm", "rtn"]


@pytest.fixture
def texts(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "train.txt", tmp_path / "eval.txt"
    for path, text in zip(paths, TEXTS, strict=True):
        path.write_text(text)
    return paths


def test_trains_and_says_what_it_recovered(
    tiny_checkpoint: Checkpoints, texts: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = tiny_checkpoint("llama_tied"), tmp_path / "out"
    command = ["train", str(source), "-o", str(out), "--format", "int3:g32:sym:bf16:a16token", *SMALL]
    command += ["--data", str(texts[0]), "--text", str(texts[1]), "--json", str(tmp_path / "result.json")]
    command += ["--weight-rate", "0.1"]
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "recovers" in told
    assert "held-out KL" in told
    made = artifact.open(out)
    made.verify()
    card = made.card["training"]
    assert card["trained"] == "full"
    assert card["text"]["source"] == "train.txt"
    assert card["recovery"]["text"] == "eval.txt"
    assert card["best_step"] in [step for step, _ in card["held_out_kl"]]
    share = card["recovery"]["recovered"]
    assert share["low"] <= share["value"] <= share["high"]
    assert json.loads((tmp_path / "result.json").read_text())["recovery"] == card["recovery"]
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith(".")] == []
    assert main(
        ["check", str(out), "--against", str(source), "--text", str(texts[1]), "--tokens", "100"]
    ) in (
        0,
        1,
    )


def test_an_interrupted_run_continues_to_the_same_bytes(
    tiny_checkpoint: Checkpoints, texts: tuple[Path, Path], tmp_path: Path
) -> None:
    request = TrainRequest(
        str(tiny_checkpoint("llama_untied")), algorithm="rtn", data=str(texts[0]), steps=4, batch=1, length=16,
        text=str(texts[1]), tokens=200, trainable="lora", rank=2,
    )  # fmt: skip

    def interrupt(evaluation: Evaluation) -> None:
        if evaluation.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_training(request, tmp_path / "a", watch=interrupt)
    with pytest.raises(UsageError, match="--resume"):
        run_training(request, tmp_path / "a")
    run_training(request, tmp_path / "a", resume=True)
    run_training(request, tmp_path / "b")
    with pytest.raises(UsageError, match="--overwrite"):
        run_training(request, tmp_path / "b")
    run_training(request, tmp_path / "b", overwrite=True)
    assert sorted(each.name for each in tmp_path.iterdir() if each.is_dir()) == ["a", "b"]
    for name in ("model.safetensors", "config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    cards = [artifact.open(tmp_path / each).card for each in "ab"]
    assert cards[0] == cards[1]


def test_the_model_writes_its_own_text(tiny_checkpoint: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "TEXTS_AT_ONCE", 4)
    arguments = {"tokens": 200, "length": 16, "seed": 3, "threads": 1}
    text = data.write_training_text(tiny_checkpoint("llama_tied"), **arguments)  # type: ignore[arg-type]
    assert text.windows.shape == (12, 16)
    assert len(text.training_windows) + len(text.held_out_windows) == 12
    again = data.write_training_text(tiny_checkpoint("llama_tied"), **arguments)  # type: ignore[arg-type]
    np.testing.assert_array_equal(text.windows, again.windows)
    assert text.sha256 == again.sha256


def test_documents_of_the_evaluation_text_are_refused(tmp_path: Path) -> None:
    evaluation = EvaluationText(("One  sentence\nof ours.", "Another."), "eval.txt")
    with pytest.raises(
        UsageError, match=r"1 documents .* in the evaluation text eval\.txt .*'One sentence of ours\.'"
    ):
        data.refuse_contaminated(["Theirs.", "One sentence of ours."], evaluation, "train.txt")
    data.refuse_contaminated(["Theirs."], evaluation, "train.txt")
    chat = tmp_path / "chat.jsonl"
    for content in ('"Another."', '[{"type": "text", "text": "Another."}]'):
        chat.write_text(f'{{"messages": [{{"role": "user", "content": {content}}}]}}\n')
        with pytest.raises(UsageError, match="in the evaluation text"):
            data.read_training_text(None, chat, tokens=100, length=8, seed=0, evaluation=evaluation)


def test_unsuitable_requests_are_refused(
    tiny_checkpoint: Checkpoints, texts: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = str(tiny_checkpoint("llama_tied"))
    with pytest.raises(UsageError, match="not both"):
        TrainRequest(source, steps=1, time_budget=10.0)
    with pytest.raises(UsageError, match="length must be at least 2"):
        TrainRequest(source, length=1)
    with pytest.raises(UsageError, match="no such setting: epochs"):
        zeropoint.train(source, tmp_path / "out", epochs=3)
    short = tmp_path / "short.txt"
    short.write_text("Only a few words.")
    request = TrainRequest(
        source, algorithm="rtn", data=str(short), steps=1, length=16, text=str(texts[1]), tokens=99
    )
    with pytest.raises(UsageError, match="longer text"):
        run_training(request, tmp_path / "out")
    monkeypatch.setattr(run, "training_bytes", lambda checkpoint, request: 10**15)
    with pytest.raises(UsageError, match=r"1000000\.0 GB"):
        run_training(request, tmp_path / "other")
    assert not [each for each in tmp_path.iterdir() if each.name.startswith(".")], (
        "a refusal leaves nothing behind"
    )
    assert main(["train", source, "-o", str(tmp_path / "x"), "--from", source, "--format", "int4"]) == 2
    assert load_text(texts[1]).documents
