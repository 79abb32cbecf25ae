"""A load generator for servers with OpenAI's `/v1/completions` endpoint: it sends requests and times their tokens.

Answers are streamed as server-sent events over plain HTTP/1.1. A token's time is the arrival of its event. The metrics
have the names of vLLM's benchmark: TTFT, time to first token; ITL, time between two tokens; TPOT, mean time per token
after the first; E2E, time to last token.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field

from http_client import head, read_body, read_head, read_parts

#: Seconds after which a request counts as failed.
PATIENCE = 600.0


@dataclass
class Answer:
    """The times of one request, in seconds of `time.perf_counter`.

    `sent`: when it was sent. `arrivals`: when each event with a token arrived. `tokens`: the server's count of them.
    `error`: why there is no whole answer, else "".
    """

    sent: float = 0.0
    arrivals: list[float] = field(default_factory=list)
    tokens: int = 0
    error: str = ""

    @property
    def ttft(self) -> float:
        return self.arrivals[0] - self.sent

    @property
    def e2e(self) -> float:
        return self.arrivals[-1] - self.sent

    @property
    def tpot(self) -> float:
        return (self.arrivals[-1] - self.arrivals[0]) / max(self.tokens - 1, 1)

    @property
    def gaps(self) -> list[float]:
        return [b - a for a, b in zip(self.arrivals, self.arrivals[1:], strict=False)]


async def complete(
    port: int, model: str, prompt: Sequence[int], new_tokens: int, answer: Answer | None = None
) -> Answer:
    """Request exactly `new_tokens` greedy tokens after `prompt`, and return the times.

    `answer`: the object that is filled while tokens arrive, and returned; a new one by default.
    """
    answer = answer or Answer()
    body = json.dumps(
        {
            "model": model,
            "prompt": list(prompt),
            "max_tokens": new_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
    ).encode()
    answer.sent = time.perf_counter()
    writer = None
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head("/v1/completions", len(body), close=True) + body)
            status, headers = await read_head(reader)
            if status != 200:
                answer.error = f"status {status}: {(await read_body(reader, headers))[:200]!r}"
                return answer
            await _read_events(read_parts(reader, headers), answer)
    except (OSError, TimeoutError, asyncio.IncompleteReadError, ValueError) as error:
        answer.error = f"{type(error).__name__}: {error}"
    finally:
        if writer is not None:
            writer.close()
    if not answer.error and answer.tokens != new_tokens:
        answer.error = f"{answer.tokens} tokens instead of {new_tokens}"
    return answer


async def _read_events(parts: AsyncIterator[bytes], answer: Answer) -> None:
    buffer = b""
    async for part in parts:
        now = time.perf_counter()
        *events, buffer = (buffer + part).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            if not event.startswith(b"data: ") or event == b"data: [DONE]":
                continue
            data = json.loads(event[6:])
            if "error" in data:
                raise ValueError(str(data["error"])[:200])
            if data.get("choices"):
                answer.arrivals.append(now)
            if data.get("usage"):
                answer.tokens = data["usage"]["completion_tokens"]
    if answer.arrivals and answer.tokens and len(answer.arrivals) > answer.tokens:
        # this server sends the reason for the end in an event without a token
        del answer.arrivals[answer.tokens :]


async def closed_loop(
    port: int, model: str, prompts: Sequence[Sequence[int]], new_tokens: int, concurrent: int
) -> list[Answer]:
    """Complete all prompts, `concurrent` at a time: when one is finished, the next one is sent."""
    waiting, answers = iter(prompts), list[Answer]()

    async def work() -> None:
        for prompt in waiting:
            answers.append(await complete(port, model, prompt, new_tokens))

    await asyncio.gather(*(work() for _ in range(concurrent)))
    return answers


async def poisson(
    port: int, model: str, prompts: Sequence[Sequence[int]], new_tokens: int, rate: float
) -> list[Answer]:
    """Send the prompts at random times, `rate` a second on average, without waiting for earlier answers."""
    times, at = random.Random(0), 0.0
    start = time.perf_counter()

    async def later(prompt: Sequence[int], seconds: float) -> Answer:
        await asyncio.sleep(start + seconds - time.perf_counter())
        return await complete(port, model, prompt, new_tokens)

    tasks = []
    for prompt in prompts:
        tasks.append(later(prompt, at))
        at += times.expovariate(rate)
    return list(await asyncio.gather(*tasks))


def percentile(values: Sequence[float], share: float) -> float:
    """Return the percentile of the values at `share` (0.99: the 99th), by nearest rank."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1)]


def summary(answers: Sequence[Answer], ttft_limit: float, tpot_limit: float) -> dict[str, float]:
    """Return vLLM's metrics: times in seconds, output tokens a second, and goodput in requests a second.

    Goodput counts the requests whose TTFT and TPOT are within the limits. `failed` counts the requests without a whole
    answer; all other metrics leave these out.
    """
    whole = [answer for answer in answers if not answer.error]
    found: dict[str, float] = {"failed": len(answers) - len(whole)}
    if not whole:
        return found
    seconds = max(a.arrivals[-1] for a in whole) - min(a.sent for a in answers)
    good = [a for a in whole if a.ttft <= ttft_limit and a.tpot <= tpot_limit]
    found |= {"output tokens/s": sum(a.tokens for a in whole) / seconds, "goodput": len(good) / seconds}
    times = {
        "TTFT": [a.ttft for a in whole],
        "ITL": [gap for a in whole for gap in a.gaps],
        "TPOT": [a.tpot for a in whole],
        "E2E": [a.e2e for a in whole],
    }
    for name, values in times.items():
        if values:
            found |= {f"{name} p50": statistics.median(values), f"{name} p99": percentile(values, 0.99)}
    return found
