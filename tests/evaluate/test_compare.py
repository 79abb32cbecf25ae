"""compare, bench and check end to end, over the stub runtime."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from zeropoint.errors import UsageError
from zeropoint.evaluate import bench, check, compare
from zeropoint.evaluate.gate.bounds import default_bounds, judge
from zeropoint.render import markdown, page
from zeropoint.render.terminal import plain_text
from zeropoint.values.report import Report

CONTRACT = {
    "weights_bytes",
    "resident_bytes",
    "load_seconds",
    "prefill_tokens_per_second",
    "decode_tokens_per_second",
    "perplexity",
    "kl_divergence",
    "top1_agreement",
}


@pytest.fixture
def models(tmp_path: Path) -> list[str]:
    paths = []
    for name in ("tiny", "near+0.02", "far+0.5"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"dtype": "float32", "max_position_embeddings": 128}))
        if name != "tiny":
            choices = {"a.weight": {"scheme": "int8"}, "n.weight": {"scheme": None, "reason": "a norm"}}
            errors = [{"name": "a.weight", "scheme": "int8", "relative_error": 0.01, "sqnr_db": 40.0}]
            card = {"plan": {"label": "int8", "choices": choices}, "layer_errors": errors}
            (folder / "zeropoint.json").write_text(json.dumps(card))
            save_file({"a.weight": np.zeros((2, 2), np.int8)}, folder / "model.safetensors")
        paths.append(str(folder))
    return paths


@pytest.mark.usefixtures("stub_worker")
def test_compare_without_speed(models: list[str], text_file: str) -> None:
    report = compare(
        models[0],
        models[1:],
        text=text_file,
        tokens=600,
        context=64,
        threads=1,
        prompts=[],
        engine="stub",
        speed=False,
    )
    assert {m.metric for m in report.measurements if m.unit in ("bytes", "seconds", "tokens/s")} == {
        "weights_bytes"
    }
    assert set(report.extra["engines"]) == set(report.models())
    assert "settings" not in report.extra
    for shown in (plain_text(report), markdown(report).replace("\\", ""), page(report)):
        assert "Speed and memory were not measured." in shown
    assert "Decode" not in plain_text(report)


@pytest.mark.usefixtures("stub_worker")
def test_compare_keeps_the_json_contract(models: list[str], text_file: str) -> None:
    seen: list[float] = []
    report = compare(
        models[0],
        models[1:],
        text=text_file,
        tokens=1000,
        context=64,
        threads=1,
        prompts=["Hello </script>"],
        answer_tokens=4,
        prompt_tokens=16,
        new_tokens=2,
        engine="stub",
        progress=lambda _what, done: seen.append(done),
    )
    data = json.loads(report.dumps())
    assert [*dict.fromkeys(row["model"] for row in data["measurements"])] == ["tiny", "near+0.02", "far+0.5"]
    for name in report.models():
        assert {m.metric for m in report.measurements if m.model == name} >= CONTRACT
    for row in data["measurements"]:
        assert set(row) == {"model", "metric", "value", "low", "high", "n", "unit", "where"}
        assert row["low"] <= row["value"] <= row["high"]
        assert row["where"]
    assert Report.from_json(data).measurements == report.measurements
    near, far = (report.find(n, "kl_divergence") for n in ("near+0.02", "far+0.5"))
    assert near is not None
    assert far is not None
    assert 0 < near.high < far.low
    floor = report.find("tiny", "noise_floor_kl")
    assert floor is not None
    assert 0 < floor.value < far.value
    assert seen == sorted(seen)
    assert seen[-1] <= 1
    extra = report.extra
    assert extra["coverage"]["far+0.5"]["kept"] == [{"name": "n.weight", "reason": "a norm"}]
    assert extra["layer_errors"]["near+0.02"][0]["relative_error"] == 0.01
    assert [a["model"] for a in extra["answers"][0]["answers"]] == report.models()
    assert extra["answers"][0]["answers"][0]["first_difference"] is None
    assert extra["command"].startswith("zeropoint compare ")


@pytest.mark.usefixtures("stub_worker")
def test_bench_measures_one_model(models: list[str]) -> None:
    report = bench(models[0], prompt_tokens=300, new_tokens=2, threads=1, repeats=3, engine="stub")
    metrics = {m.metric for m in report.measurements}
    assert metrics >= CONTRACT - {"perplexity", "kl_divergence", "top1_agreement"}
    assert report.extra["settings"]["prompt_tokens"] == 126  # the model's context is 128
    decode = report.find("tiny", "decode_tokens_per_second")
    assert decode is not None
    assert decode.n == 3


@pytest.mark.usefixtures("stub_worker")
def test_check_passes_the_near_and_fails_the_far(models: list[str], text_file: str) -> None:
    def verdict(artifact: str, **bounds: float):  # type: ignore[no-untyped-def]
        return check(
            artifact, models[0], text=text_file, tokens=1000, context=64, threads=1, engine="stub", **bounds
        )

    good = verdict(models[1], max_kl=0.5, min_top1=0.2)
    assert good.passed
    assert [b.metric for b in good.bounds] == ["kl_divergence", "top1_agreement"]
    bad = verdict(models[2])
    assert not bad.passed
    assert bad.bounds_are_defaults
    assert bad.bounds[0].bound == default_bounds(8)[0]
    assert bad.sentences()[0].startswith("Failed: far+0.5 against tiny")
    data = json.loads(json.dumps(bad.to_json()))
    assert data["passed"] is False
    assert data["minimal_detectable_kl"] > 0
    assert data["bounds"][0]["metric"] == "kl_divergence"


def entry(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": low, "high": high, "detectable": 0.7 * (high - low)}


def test_only_a_whole_interval_inside_passes() -> None:
    quality = {
        "kl_divergence": entry(0.01, 0.008, 0.012),
        "perplexity_ratio": entry(1.01, 1.005, 1.02),
        "top1_agreement": entry(0.95, 0.94, 0.96),
    }
    (inside,) = judge(quality, max_kl=0.012)
    (across,) = judge(quality, max_kl=0.011)
    (beyond,) = judge(quality, max_kl=0.005)
    assert (inside.passed, across.passed, beyond.passed) == (True, False, False)
    assert (across.undecided, beyond.undecided) == (True, False)
    assert "too short to decide" in across.sentence()
    rise, top1 = judge(quality, max_perplexity_increase=0.021, min_top1=0.945)
    assert rise.value == pytest.approx(0.01)
    assert rise.passed
    assert not top1.passed


@pytest.mark.parametrize("bound", [{"max_kl": 0}, {"max_perplexity_increase": -1}, {"min_top1": 1.1}])
def test_bounds_out_of_range(bound: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="bound"):
        check("a", "b", **bound)  # type: ignore[arg-type]


def test_compare_needs_an_artifact() -> None:
    with pytest.raises(UsageError, match="at least one artifact"):
        compare("m", [])


def test_default_bounds_grow_with_fewer_bits() -> None:
    bounds = [default_bounds(bits)[0] for bits in (16, 8, 6, 4, 2)]
    assert bounds == sorted(bounds)
