"""How exporters word what their target cannot hold: weights by reason, reasons in one sentence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from zeropoint.errors import UnsupportedError

#: Reasons shown of a refusal; the others are counted.
MOST = 5


def by_reason(found: Iterable[tuple[str, str]]) -> list[str]:
    """One line for each reason, from pairs of a weight (or module) and why it cannot be held."""
    names: dict[str, list[str]] = {}
    for name, why in found:
        names.setdefault(why, []).append(name)
    return [f"{why} ({_counted(each)})" for why, each in names.items()]


def refusal(source: object, target: str, problems: Sequence[str]) -> UnsupportedError:
    """What to raise for an artifact or model that has `problems`."""
    rest = len(problems) - MOST
    shown = [*problems[:MOST], *([f"and {rest} more"] if rest > 0 else [])]
    return UnsupportedError(f"{source} cannot be exported to {target}: {'; '.join(shown)}")


def _counted(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
