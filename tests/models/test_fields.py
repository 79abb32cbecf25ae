"""Every field of a config.json that a family's code reads is understood as transformers understands it, or refused."""

from __future__ import annotations

import json
import logging
import random
import warnings
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
import torch

from tests.models import perturb, reads
from zeropoint.models import fields
from zeropoint.models.config import Config
from zeropoint.models.families import derive

FAMILIES = reads.families()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """Odd configs make transformers warn; one thread, for models are tiny."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)
    torch.set_num_threads(threads)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_table_is_what_transformers_reads(model_type: str) -> None:
    assert fields.read_by(model_type) == reads.reads(FAMILIES[model_type])
    assert fields._families()[model_type]["aliases"] == reads.aliases(model_type)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_reader_asks_for_no_field_that_the_family_ignores(model_type: str) -> None:
    for name in FAMILIES[model_type]:
        config = Config(fields.under_own_names(model_type, reads.tiny_fields(name)))
        import_module(f"zeropoint.models.families.{model_type}").derive(config)
        assert not config.asked - set(fields.read_by(model_type))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_fields_that_the_family_ignores_change_nothing(model_type: str) -> None:
    """All at once: what is read without effect, what other families read, and what nobody does."""
    base = reads.tiny_fields(FAMILIES[model_type][0])
    others = {name for each in FAMILIES for name in fields.read_by(each)}
    ignored: dict[str, Any] = {name: 3 for name in others - set(fields.read_by(model_type))}
    ignored = {
        name: value
        for name, value in ignored.items()
        if name not in fields._families()[model_type]["aliases"]
    }
    ignored |= {
        "use_mrope": False, "prefix": "</s>", "activation": "gelu", "_model_name_or_path": "x", "some_new_thing": True,
        "chunk_size_feed_forward": 0, "is_llama_config": True, "rope_interleaved": False, "num_experts": 8,
        "max_sequence_length": 5, "n_ctx": 3, "full_attn_mod": 1, "bos_token_id": 7, "eos_token_id": [1, 2],
        **reads.WITHOUT_EFFECT,
    }  # fmt: skip
    odd = {**ignored, **base} | {name: ignored[name] for name in reads.WITHOUT_EFFECT}
    assert json.dumps(odd) != json.dumps(base)
    want, got = (reads.build_model(reads.build_config(each)) for each in (base, odd))
    got.load_state_dict(want.state_dict())
    for one, other in zip(reads.run(want), reads.run(got), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert derive(odd).config == derive(base).config


@pytest.mark.parametrize("model_type", FAMILIES)
def test_every_field_is_understood_as_transformers_does_or_refused(model_type: str) -> None:
    """A sample of the cases, and of any two at once; `python -m tests.models.perturb` runs them all."""
    rng = random.Random(model_type)
    every = list(perturb.cases(FAMILIES[model_type]))
    pairs = [
        (name, {**one, **two})
        for (name, one), (other, two) in (rng.sample(every, 2) for _ in range(100))
        if name == other
    ]
    accepted = [case for case in every + pairs if not perturb.refusal(case)]
    assert len(accepted) > 25
    found = {str(case): perturb.verdict(case) for case in rng.sample(accepted, 16)}
    assert not [case for case in found.items() if case[1].startswith("WRONG")]
    assert "same" in found.values()


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_refusal_names_its_field(model_type: str) -> None:
    for name, change in perturb.cases(FAMILIES[model_type][:1]):
        message = perturb.refusal((name, change))
        (field, value), *_ = change.items()
        related = "rope" if "rope" in field else field
        assert not message or value is None or related in message or field in perturb.RELATED, (
            change,
            message,
        )
        assert "\n" not in message
