"""Every algorithm of the package keeps the contract; a new file is tested before anyone writes a test for it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from zeropoint import algorithms
from zeropoint.algorithms._folds import Group
from zeropoint.errors import CheckpointError, UsageError
from zeropoint.values.qtensor import QuantizedTensor
from zeropoint.values.scheme import parse
from zeropoint.values.stats import LayerStats

#: `exact` refuses weights that were not trained on a grid: tests/algorithms/test_exact.py.
QUANTIZERS = [name for name in algorithms.names("quantize") if name != "exact"]

FORMATS = [
    "int8",
    "int8:channel:asym",
    "int8:tensor",
    "int4:g32",
    "int4:g32:asym",
    "int4:g24",
    "int3:tensor:asym",
    "int2:g8",
]


def weights(seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).standard_t(5, (48, 72)).astype(np.float32)
    values[3] = 0
    values[4] = 0.25
    values[5, 7] = 90
    return values


@pytest.mark.parametrize("text", FORMATS)
@pytest.mark.parametrize("name", QUANTIZERS)
def test_contract(name: str, text: str) -> None:
    module = algorithms.load(name)
    assert module.__doc__
    assert isinstance(module.NEEDS, frozenset)
    assert dataclasses.is_dataclass(module.Options)
    options = module.Options()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(options, dataclasses.fields(options)[0].name, None)
    scheme, values = parse(text), weights()
    before = values.copy()
    inputs = np.random.default_rng(1).standard_normal((100, 72)).astype(np.float32) * np.arange(72)
    hessian = (inputs.T @ inputs).astype(np.float32)
    stats = LayerStats(hessian.diagonal().copy(), 100, hessian, hessian * np.float32(0.01))
    assert module.needs(scheme, options) <= module.NEEDS
    first, second = (module.quantize(values, stats, scheme, options) for _ in range(2))
    assert isinstance(first, QuantizedTensor)
    assert (first.scheme, first.shape) == (scheme, values.shape)
    np.testing.assert_array_equal(values, before)  # pure
    np.testing.assert_array_equal(first.codes, second.codes)  # and deterministic
    np.testing.assert_array_equal(first.scale, second.scale)
    assert np.linalg.norm((first.dequantize() - values) @ inputs.T) < np.linalg.norm(values @ inputs.T)


@pytest.mark.parametrize("text", ["int8", "int4:g32:asym", "int4:g24:nested", "int5:g32:nested"])
@pytest.mark.parametrize("name", QUANTIZERS)
def test_rows_do_not_depend_on_each_other(name: str, text: str) -> None:
    """So that layers of one input can be quantized as one weight."""
    module, scheme, values = algorithms.load(name), parse(text), weights()
    inputs = np.random.default_rng(1).standard_normal((100, 72)).astype(np.float32) * np.arange(72)
    hessian = (inputs.T @ inputs).astype(np.float32)
    stats = LayerStats(hessian.diagonal().copy(), 100, hessian, hessian * np.float32(0.01))
    together = module.quantize(values, stats, scheme, module.Options())
    for start, stop in ((0, 5), (5, 48)):
        alone = module.quantize(values[start:stop], stats, scheme, module.Options())
        np.testing.assert_array_equal(alone.scale, together.rows(start, stop).scale)
        np.testing.assert_array_equal(alone.codes, together.rows(start, stop).codes)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_nan_is_refused(name: str) -> None:
    module = algorithms.load(name)
    values = weights()
    values[0, 0] = np.nan
    with pytest.raises(CheckpointError):
        module.quantize(values, None, parse("int8"), module.Options())


@pytest.mark.parametrize("text", ["int4:g24", "int8:channel:sym:bf16:a8token", "int8:channel:asym"])
@pytest.mark.parametrize("name", algorithms.names("fold"))
def test_folds_keep_the_contract(name: str, text: str) -> None:
    module, scheme = algorithms.load(name), parse(text)
    inputs = np.random.default_rng(1).standard_normal((100, 72)).astype(np.float32) * np.arange(72)
    group = Group((weights(), weights(1)), inputs, np.arange(72) // 2)
    before = inputs.copy()
    stats = LayerStats(np.square(inputs).sum(axis=0), 100)
    first, second = (module.fold(group, stats, scheme, module.Options()) for _ in range(2))
    np.testing.assert_array_equal(first.scale, second.scale)
    np.testing.assert_array_equal(inputs, before)
    assert first.scale.shape == (72,)
    assert (first.scale > 0).all()
    np.testing.assert_array_equal(first.scale[::2], first.scale[1::2])  # channels of one source share a scale
    assert first.after <= first.before


@pytest.mark.parametrize("name", algorithms.names("rotate"))
def test_rotations_keep_the_contract(name: str) -> None:
    first, second, other = (algorithms.load(name).rotate(72, seed) for seed in (1, 1, 2))
    np.testing.assert_allclose(first @ first.T, np.eye(72), atol=1e-5)
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("name", algorithms.names())
def test_every_module_says_what_it_is(name: str) -> None:
    module = algorithms.load(name)
    assert module.__doc__
    assert isinstance(module.NEEDS, frozenset)
    assert dataclasses.is_dataclass(module.Options)
    assert [kind for kind in algorithms.KINDS if hasattr(module, kind)] == [algorithms.kind_of(name)]


def test_compositions_are_carried_out_in_the_order_of_kinds() -> None:
    assert list(algorithms.parts("rounding+gptq").values()) == ["gptq", "rounding"]
    assert list(algorithms.parts("rounding").values()) == ["rtn", "rounding"]
    assert list(algorithms.parts("rounding+gptq+awq").values()) == ["awq", "gptq", "rounding"]
    assert list(algorithms.parts("awq+rotation").values()) == ["rotation", "awq", "rtn"]
    with pytest.raises(UsageError, match="same work"):
        algorithms.parts("awq+smoothquant")
    with pytest.raises(UsageError, match="same work"):
        algorithms.parts("rtn+gptq")
    with pytest.raises(UsageError, match="no algorithm"):
        algorithms.parts("gptq+")
    options = algorithms.part_options("gptq+rounding", {"rounding": {"steps": 3}})
    assert options["rounding"].steps == 3
    assert options["gptq"] == algorithms.make_options("gptq", {})
    for wrong in ({"steps": 3}, {"rtn": {}}, {"rounding": 3}):
        with pytest.raises(UsageError, match="an object for each"):
            algorithms.part_options("gptq+rounding", wrong)


def test_options_are_read_from_text() -> None:
    assert algorithms.read_options("gptq", ["damping=0.05", "gptq.order=false"]) == {
        "damping": 0.05,
        "order": False,
    }
    assert algorithms.read_options("gptq+rounding", ["gptq.damping=0.05"]) == {"gptq": {"damping": 0.05}}
    for algorithm, text in (("gptq", "damping"), ("gptq+rounding", "damping=1"), ("gptq", "=1")):
        with pytest.raises(UsageError, match="is written"):
            algorithms.read_options(algorithm, [text])
    with pytest.raises(UsageError, match="not for gptq"):
        algorithms.read_options("gptq", ["rounding.steps=1"])
    with pytest.raises(UsageError, match="no option"):
        algorithms.read_options("gptq", ["dumping=1"])


@pytest.mark.parametrize("name", algorithms.names())
def test_a_summary_is_one_line(name: str) -> None:
    assert algorithms.load(name).__doc__.startswith(algorithms.summary(name))
    assert len(algorithms.summary(name)) > 20


@pytest.mark.parametrize("shorthand", algorithms.STANDS_FOR)
def test_a_shorthand_is_a_composition_that_exists(shorthand: str) -> None:
    name, options = algorithms.resolve(shorthand, {})
    assert algorithms.part_options(name, options)
    assert algorithms.resolve(shorthand, {}, parse("int4:g64")) == (name, options)
    channels, options = algorithms.resolve(shorthand, {}, parse("int8"))
    assert algorithms.part_options(channels, options)
    assert channels != name
    assert algorithms.resolve("gptq", {"sweeps": 1}) == ("gptq", {"sweeps": 1})
    with pytest.raises(UsageError, match="options of its own"):
        algorithms.resolve(shorthand, {"sweeps": 1})


def test_unknown_names_and_options_are_refused() -> None:
    with pytest.raises(UsageError, match="rtn"):
        algorithms.load("magic")
    with pytest.raises(UsageError, match="search"):
        algorithms.make_options("rtn", {"serach": True})
    with pytest.raises(UsageError, match="takes true or false"):
        algorithms.make_options("rtn", {"search": "yes"})
    assert algorithms.make_options("rtn", {"shrink": 1}).shrink == 1


@pytest.mark.parametrize("alias", algorithms.ALIASES)
def test_an_alias_stands_for_one_algorithm(alias: str) -> None:
    name = algorithms.ALIASES[alias]
    assert alias not in algorithms.names()
    assert f"`{alias}`" in algorithms.load(name).__doc__
    assert algorithms.resolve(alias, {"x": 1}) == (name, {"x": 1})
    assert algorithms.resolve(f"gptq+{alias}", {alias: {"x": 1}}) == (f"gptq+{name}", {name: {"x": 1}})


def test_an_alias_takes_the_options_of_its_algorithm() -> None:
    assert algorithms.read_options("autoround", ["steps=3"]) == {"steps": 3}
    assert algorithms.read_options("quarot", ["rotation.heads=false"]) == {"heads": False}
    assert algorithms.read_options("gptq+autoround", ["autoround.steps=3"]) == {"rounding": {"steps": 3}}
    with pytest.raises(UsageError, match="same work"):
        algorithms.read_options("autoround+rounding", [])
