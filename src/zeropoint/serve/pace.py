"""`Pace` decides how many prompt tokens a step reads while other requests decode."""

from __future__ import annotations

from collections import deque
from statistics import median

#: The most rows of a step: the native library runs larger steps in several passes.
ROWS = 512
#: The target time of a step with prompt tokens, as a multiple of the time of decoding alone. (If more requests have
#: unread prompts than decode, the target is longer.) Times vary: with the target 2, nearly all stay below 3.
STRETCH = 2.0
#: A step that reads prompts gets at least this many prompt tokens, if it has room for them, even if steps are slow. So
#: reading a prompt never stops.
LEAST = 4
#: The first number of prompt tokens, before any step with prompt tokens was timed.
FIRST = 8
#: The number of prompt tokens grows at most by this factor from one step to the next: a single time may be wrong.
GROWTH = 1.5
#: After this many steps with prompt tokens, one without is timed again.
REFRESH = 8
#: The number of past steps whose times are used, of each kind. Several are needed, because other programs delay single
#: steps.
KEPT = 9


class Pace:
    """Sets the number of prompt tokens of the next step from the measured times of the last steps.

    A step with many prompt tokens delays the next token of every request that decodes, and one with few delays the
    requests whose prompts are read. So a step may take the time of decoding alone times `STRETCH`, or times
    `1 + reading / decoding` if that is more: then each request that reads its prompt gets as much time as each one that
    decodes.

    A step with prompt tokens also has a cost that does not depend on their number: the keys and values of a long prompt
    are read. So the speed is measured on steps of about the size that is used, and measured again in each step.
    """

    def __init__(self) -> None:
        self._plain: deque[float] = deque(maxlen=KEPT)  # seconds of steps that only decode
        self._decoding = 0  # requests that decoded in these steps
        self._mixed = 0  # steps with prompt tokens since the last one without
        self._size = FIRST / GROWTH  # prompt tokens of the last step that was timed
        self._allowed = 0  # the last answer of `budget`
        # prompt tokens per second of the time that they added to a step
        self._speed: deque[float] = deque(maxlen=KEPT)

    def budget(self, decoding: int, reading: int) -> int:
        """Return the most prompt tokens of the next step, which also decodes `decoding` tokens.

        `reading`: the requests whose prompts are not yet read.
        """
        if decoding == 0:
            return ROWS
        if (
            not self._plain
            or self._mixed >= REFRESH
            or not self._decoding / 1.5 <= decoding <= self._decoding * 1.5
        ):
            return 0
        size = GROWTH * self._size
        if self._speed:
            seconds = (max(STRETCH, 1 + reading / decoding) - 1) * self._plain_seconds()
            size = min(size, median(self._speed) * seconds)
        self._allowed = min(max(int(size), LEAST), max(ROWS - decoding, 1))
        return self._allowed

    def record(self, decoding: int, prompt_tokens: int, seconds: float) -> None:
        """Note the time of a step."""
        if decoding == 0:
            return
        if prompt_tokens == 0:
            if decoding != self._decoding:
                self._plain.clear()
            self._decoding = decoding
            self._plain.append(seconds)
            self._mixed = 0
            return
        self._mixed += 1
        if not self._plain or 2 * prompt_tokens < self._allowed:
            return  # the rest of a prompt: too few tokens to tell what a full step takes
        plain = self._plain_seconds()
        self._size = float(prompt_tokens)
        self._speed.append(prompt_tokens / max(seconds - plain, plain / 100))

    def _plain_seconds(self) -> float:
        """Return the seconds of a step that only decodes: a low quartile, because other programs only delay steps."""
        return sorted(self._plain)[(len(self._plain) - 1) // 4]
