"""Published models' config.json: run natively, or refused by the field that truly matters."""

from __future__ import annotations

import pytest

from tests.models.published import MODELS
from zeropoint.errors import UnsupportedError
from zeropoint.models.families import derive
from zeropoint.models.spec import ModelSpec


def parameters(record: ModelSpec) -> int:
    """The elements of all stored tensors, each once."""
    sizes = {
        (source.weight, source.rows): source.shape[0] * source.shape[1] for _, _, source in record.linears()
    }
    biases = {(source.bias, source.rows): source.shape[0] for _, _, source in record.linears() if source.bias}
    norms = [
        source.size * ((source.weight is not None) + (source.bias is not None))
        for _, _, source in record.norms()
    ]
    return sum(sizes.values()) + sum(biases.values()) + sum(norms)


@pytest.mark.parametrize("name", MODELS)
def test_a_published_config_runs_natively_or_names_the_field(name: str) -> None:
    config, millions, field = MODELS[name]
    if field:
        with pytest.raises(UnsupportedError, match=field):
            derive(config)
        return
    record = derive(config)
    assert parameters(record) == pytest.approx(millions * 1e6, rel=0.005)


def test_at_least_forty_published_configs_run_natively() -> None:
    assert sum(field == "" for _, _, field in MODELS.values()) >= 40
