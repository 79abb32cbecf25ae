"""The scorer against lm-eval's own Hugging Face runner: BOS, contexts, rolling windows."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from zeropoint.evaluate.tasks.lm_eval_model import Scorer
from zeropoint.runtime import open_runner

pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install -e '.[tasks]')")

PAIRS = [
    ("the sky is", " blue"),
    ("the sky is ", "blue"),
    ("", "blue"),
    ("", "<s>blue"),
    ("<s>the", " sky"),
    ("x" * 60, "yy"),
    ("the  ", "  sky "),
]


@pytest.fixture(params=["", "<s>"], ids=["no BOS", "BOS"])
def folder(request: pytest.FixtureRequest, tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    for file in tiny_checkpoint("llama_tied").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    if request.param:
        from tokenizers import Tokenizer, processors

        made = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
        made.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", made.token_to_id("<s>"))]
        )
        made.save(str(tmp_path / "tokenizer.json"))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.mark.filterwarnings("ignore")  # of lm-eval and its libraries, about themselves
def test_numbers_are_those_of_lm_evals_own_runner(folder: Path) -> None:
    from lm_eval.models.huggingface import HFLM

    length = 24
    theirs: Any = HFLM(
        pretrained=str(folder),
        device="cpu",
        dtype="float32",
        batch_size=1,
        max_length=length,
        backend="causal",
    )
    ours = Scorer(open_runner(folder, threads=1, dtype="float32", engine="universal"), max_length=length)
    requests = [SimpleNamespace(args=pair) for pair in PAIRS]
    for pair, wanted in zip(PAIRS, theirs.loglikelihood(requests, disable_tqdm=True), strict=True):
        found = ours.loglikelihood(*pair)
        assert found == (pytest.approx(wanted[0], abs=1e-4), wanted[1]), pair
    for text in ("a", "the sky is blue", "x" * 23, "y" * 24, "0123456789" * 6, "<s>the sky"):
        wanted = theirs.loglikelihood_rolling([SimpleNamespace(args=(text,))], disable_tqdm=True)[0]
        assert ours.rolling(text) == pytest.approx(wanted, abs=1e-3), text
    options = {"until": ["\n\n"], "max_gen_toks": 8, "do_sample": False}
    for context in ("the sky", "x" * 60):
        wanted = theirs.generate_until([SimpleNamespace(args=(context, options))], disable_tqdm=True)[0]
        assert ours.generate_until(context, options) == wanted
