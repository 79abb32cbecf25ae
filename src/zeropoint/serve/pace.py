"""`Pace` decides how many prompt tokens a step reads while other requests decode."""

from __future__ import annotations

from collections import deque
from statistics import median

#: The most rows of a step: the native library runs larger steps in several passes.
ROWS = 512
#: While requests decode, a step with prompt tokens should take at most this many times as long as one without.
STRETCH = 1.75
#: The fewest prompt tokens of a step, so that reading a prompt never stops, however slow the steps are.
LEAST = 4
#: After this many steps with prompt tokens, one without is timed again.
REFRESH = 16
#: Times are medians of this many steps, because other programs can delay a single step.
KEPT = 5


class Pace:
    """Sets the number of prompt tokens of the next step from the measured times of the last steps.

    A step with many prompt tokens delays the next token of every request that decodes. So while requests decode, the
    prompt tokens of a step are limited: the step may take `STRETCH` times as long as the decoding alone.
    """

    def __init__(self) -> None:
        self._plain: deque[float] = deque(maxlen=KEPT)  # seconds of steps that only decode
        self._token: deque[float] = deque(maxlen=KEPT)  # seconds that a prompt token adds to a step
        self._mixed = 0  # steps with prompt tokens since the last one without
        self._sizes: deque[int] = deque([LEAST], maxlen=KEPT)  # prompt tokens of these steps

    def budget(self, decoding: int) -> int:
        """Return the most prompt tokens of the next step, which also decodes `decoding` tokens."""
        if decoding == 0:
            return ROWS
        if not self._plain or self._mixed >= REFRESH:
            return 0
        room = max(ROWS - decoding, 1)
        if not self._token:
            return min(LEAST, room)
        fitting = (STRETCH - 1) * median(self._plain) / max(median(self._token), 1e-9)
        # at most twice what was measured: the first measurements may be wrong
        return min(max(int(min(fitting, 2 * max(self._sizes))), LEAST), room)

    def record(self, decoding: int, prompt_tokens: int, seconds: float) -> None:
        """Note the time of a step."""
        if decoding == 0:
            return
        if prompt_tokens == 0:
            self._plain.append(seconds)
            self._mixed = 0
            return
        self._mixed += 1
        if self._plain:
            self._sizes.append(prompt_tokens)
            self._token.append(max(seconds - median(self._plain), 0.0) / prompt_tokens)
