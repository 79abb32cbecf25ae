from __future__ import annotations

from typing import Any

import pytest

from zeropoint.values.report import Measurement, Report

NASTY = "</script><script>alert('x')</script> & \"<b>\""

VALUES: dict[str, dict[str, tuple[float, float, float]]] = {
    "weights_bytes": {"ref": (269e6,) * 3, "int8": (136e6,) * 3, "int4": (89e6,) * 3},
    "resident_bytes": {"ref": (690e6,) * 3, "int8": (520e6,) * 3, "int4": (700e6,) * 3},
    "load_seconds": {"ref": (0.6,) * 3, "int8": (0.4,) * 3, "int4": (0.3,) * 3},
    "ready_seconds": {"ref": (0.7,) * 3, "int8": (0.5,) * 3, "int4": (0.4,) * 3},
    "prefill_tokens_per_second": {
        "ref": (1500, 1400, 1550),
        "int8": (1800, 1750, 1900),
        "int4": (1300, 1250, 1350),
    },
    "decode_tokens_per_second": {"ref": (40, 39, 41), "int8": (100, 98, 102), "int4": (101, 95, 105)},
    "perplexity": {"ref": (23.7, 21, 27), "int8": (23.9, 21, 27), "int4": (31.3, 27, 36)},
    "perplexity_ratio": {"ref": (1, 1, 1), "int8": (1.01, 1, 1.02), "int4": (1.33, 1.28, 1.39)},
    "kl_divergence": {
        "ref": (0.0012, 0.001, 0.0016),
        "int8": (0.0071, 0.0066, 0.0077),
        "int4": (0.37, 0.35, 0.39),
    },
    "kl_p99": {"ref": (0.006, 0.005, 0.007), "int8": (0.043, 0.04, 0.05), "int4": (2.3, 2, 2.7)},
    "top1_agreement": {"ref": (0.973, 0.97, 0.976), "int8": (0.95, 0.94, 0.955), "int4": (0.687, 0.67, 0.7)},
    "noise_floor_kl": {"ref": (0.0012, 0.001, 0.0016)},
}
UNITS = {
    "bytes": "bytes",
    "seconds": "seconds",
    "second": "tokens/s",
    "divergence": "nats/token",
    "p99": "nats/token",
}


def build(values: dict[str, dict[str, tuple[float, float, float]]], **extra: Any) -> Report:
    rows = []
    for metric, by_model in values.items():
        unit = UNITS.get(metric.rsplit("_", 1)[-1], "fraction" if "top1" in metric else "1")
        rows += [Measurement(m, metric, *v, 100, unit, f"where {metric}") for m, v in by_model.items()]
    names = list(dict.fromkeys(row.model for row in rows))
    formats = {"ref": "BF16"}
    models = {n: {"path": n, "format": formats.get(n, n), "is_reference": n == "ref"} for n in names}
    return Report(
        tuple(rows),
        {"processor": "A processor", "cores": 2, "ram_total_bytes": 25e9},
        {"models": models, **extra},
    )


def answer(
    model: str, same: str, first: str = "", rest: str = "", index: int | None = None
) -> dict[str, Any]:
    text = same + first + rest
    return {
        "model": model, "text": text, "same": same, "first": first, "rest": rest,
        "first_difference": index, "token_count": 7,
    }  # fmt: skip


@pytest.fixture
def report() -> Report:
    layers = [
        {
            "name": f"model.layers.{block}.mlp.{kind}.weight",
            "scheme": "int4",
            "relative_error": 0.08 + 0.01 * block,
            "sqnr_db": 20.0,
        }
        for block in range(12)
        for kind in ("up_proj", "down_proj")
    ]
    layers.append(
        {"name": "model.embed_tokens.weight", "scheme": "int8", "relative_error": 0.01, "sqnr_db": 39.0}
    )
    kept = [{"name": "n.weight", "reason": "a norm"}]
    return build(
        VALUES,
        quality={"scored_tokens": 8687, "text": "eval.txt", "units": 20, "unit_kind": "documents"},
        answers=[
            {
                "prompt": f"Say {NASTY}",
                "answers": [
                    answer("ref", f"It is {NASTY} here"),
                    answer("int8", f"It is {NASTY} here"),
                    answer("int4", "It", " isn't", f" {NASTY}", 1),
                ],
            }
        ],
        layer_errors={"int4": layers},
        coverage={"int4": {"schemes": {"int4:g32": 210}, "kept": kept, "weights": 211}},
        verdicts={"int8": {"passed": True}, "int4": {"passed": False}},
        command="zeropoint compare ref int8 int4",
        versions={"python": "3.11"},
    )  # fmt: skip
