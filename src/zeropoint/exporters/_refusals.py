"""The error of an export that the target format cannot hold: problems grouped by reason, in one message."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from zeropoint.errors import UnsupportedError

#: Number of reasons that a message spells out; it only counts the others.
MOST = 5


def by_reason(problems: Iterable[tuple[str, str]]) -> list[str]:
    """Return one line for each reason, from pairs (name of a weight or module, reason)."""
    names: dict[str, list[str]] = {}
    for name, why in problems:
        names.setdefault(why, []).append(name)
    return [f"{why} ({_counted(each)})" for why, each in names.items()]


def refusal(
    source: object, target: str, problems: Sequence[str], *, verb: str = "exported to"
) -> UnsupportedError:
    """Return the error for an artifact or model `source` that cannot be exported to `target` because of `problems`."""
    rest = len(problems) - MOST
    shown = [*problems[:MOST], *([f"and {rest} more"] if rest > 0 else [])]
    return UnsupportedError(f"{source} cannot be {verb} {target}: {'; '.join(shown)}")


def _counted(names: Sequence[str]) -> str:
    """Return the first name and the number of the others."""
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
