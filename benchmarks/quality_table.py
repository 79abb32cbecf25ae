"""The tables of `quality.py`, in Markdown: who loses least at its size, rows by kind, seconds, refusals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

COLUMNS = ("mean KL", "p99 KL", "top-1", "perplexity", "MB", "bits per weight", "seconds", "peak MB", "note")


@dataclass(frozen=True)
class Row:
    """What was found of a contestant; `found` is `Bench.measure`'s."""

    name: str
    is_ours: bool
    kind: str
    note: str
    found: dict[str, Any]

    @property
    def kl(self) -> float:
        return float(self.found["kl_divergence"]["value"])

    @property
    def nbytes(self) -> int:
        return int(self.found["tensor_bytes"])

    @property
    def title(self) -> str:
        return f"**{self.name}**" if self.is_ours else self.name

    def overlaps(self, other: Row) -> bool:
        """Whether the intervals of their mean KL do."""
        first, second = self.found["kl_divergence"], other.found["kl_divergence"]
        return bool(first["low"] <= second["high"] and second["low"] <= first["high"])

    def cells(self, parameters: int) -> list[str]:
        kl, ratio = self.found["kl_divergence"], self.found["perplexity_ratio"]["value"]
        return [
            f"{kl['value']:.4f} ({kl['low']:.4f}–{kl['high']:.4f})",
            f"{self.found['kl_p99']['value']:.3f}",
            f"{self.found['top1_agreement']['value']:.3f}",
            f"{ratio - 1:+.1%}",
            f"{self.nbytes / 1e6:.1f}",
            f"{8 * self.nbytes / parameters:.2f}",
            f"{self.found['seconds']:.0f}",
            f"{self.found['peak_rss_bytes'] / 1e6:.0f}",
            self.note,
        ]


def markdown(header: list[str], rows: list[list[str]]) -> list[str]:
    return ["", *(f"| {' | '.join(cells)} |" for cells in [header, ["---"] * len(header), *rows])]


def kinds(rows: list[Row]) -> list[str]:
    """By falling bits."""
    return sorted({row.kind for row in rows}, key=lambda kind: (-int(kind[0]), kind))


def duels(rows: list[Row]) -> list[str]:
    """Our best row of each kind beside round to nearest and the best row of others."""
    lines = []
    for kind in kinds(rows):
        members = sorted((row for row in rows if row.kind == kind), key=lambda row: row.kl)
        ours = next((row for row in members if row.is_ours), None)
        if ours is None:
            continue
        naive = next((row for row in members if row.is_ours and row.name.endswith("/rtn")), None)
        peer = next((row for row in members if not row.is_ours), None)
        cells = [kind, *duelist(ours), "" if naive is None else f"{ours.kl / naive.kl:.2f}"]
        if peer is None:
            lines.append([*cells, "none measured", "", ""])
        else:
            tie = " (intervals overlap)" if ours.overlaps(peer) else ""
            lines.append([*cells, *duelist(peer), f"{ours.kl / peer.kl:.2f}{tie}"])
    header = [
        "kind",
        "our best",
        "mean KL, MB",
        "over our rtn",
        "best of others",
        "mean KL, MB",
        "ours over theirs",
    ]
    return ["", "## Ours beside the best of others", *markdown(header, lines)]


def duelist(row: Row) -> list[str]:
    return [row.name, f"{row.kl:.4f}, {row.nbytes / 1e6:.1f}"]


def front(rows: list[Row]) -> list[str]:
    """The rows that no other one, of any kind, undercuts in loss without being larger."""
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: (row.nbytes, row.kl)):
        if not best or row.kl < best[-1].kl:
            best.append(row)
    lines = [[f"{row.nbytes / 1e6:.1f}", f"{row.kl:.4f}", row.title, row.kind] for row in best]
    title = "## The least loss at every size: nothing measured is as small and loses less"
    return ["", title, *markdown(["MB", "mean KL", "contestant", "kind"], lines)]


def by_kind(rows: list[Row], parameters: int) -> list[str]:
    lines: list[str] = []
    for kind in kinds(rows):
        members = sorted((row for row in rows if row.kind == kind), key=lambda row: row.kl)
        cells = [[row.title, *row.cells(parameters)] for row in members]
        lines += ["", f"## {kind}", *markdown(["contestant", *COLUMNS], cells)]
    return lines


def costs_alone(costs: list[dict[str, Any]]) -> list[str]:
    """Against the first of them."""
    tokens, cores = costs[0]["tokens"], costs[0]["cores"]
    lines = [
        [
            cost["name"],
            f"{cost['seconds']:.1f}",
            f"{cost['seconds'] / costs[0]['seconds']:.2f}",
            f"{cost['peak_rss_bytes'] / 1e6:.0f}",
        ]
        for cost in costs
    ]
    said = f"- {tokens:,} calibration tokens, {cores} cores, one contestant after the other"
    return [said, "", *markdown(["contestant", "seconds", "times as long", "peak MB"], lines)]
