"""The requests of `soak.py`, and `comparable`: an answer without what may differ (ids, times, cached tokens)."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from typing import Any

_WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend"
)
_SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 150}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
_TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}


@dataclass(frozen=True)
class Asked:
    """A request whose answer is always the same: the path and the body, without `stream`."""

    path: str
    body: dict[str, Any]


def requests(model: str, count: int, seed: int) -> list[Asked]:
    """Return `count` different requests: all APIs, greedy and sampled, of a few to some hundred tokens."""
    rng = random.Random(seed)
    shared = [_text(rng, words) for words in (30, 70, 140)]  # beginnings that several prompts have in common
    kinds = (_completion, _chat, _completion, _chat, _messages, _responses)
    return [kinds[index % len(kinds)](rng, model, shared) for index in range(count)]


def _text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choices(_WORDS.split(), k=words))


def _prompt(rng: random.Random, shared: list[str]) -> str:
    start = rng.choice(["", "", "", *shared])
    return f"{start} {_text(rng, rng.randint(1, 20))}".strip()


def _sampling(rng: random.Random) -> dict[str, Any]:
    """Return sampling options: greedy, or sampled with a seed."""
    if rng.random() < 0.5:
        return {"temperature": 0}
    return {
        "temperature": rng.choice([0.7, 1, 1.3]),
        "top_p": rng.choice([0.9, 1]),
        "seed": rng.randrange(1 << 30),
    }


def _completion(rng: random.Random, model: str, shared: list[str]) -> Asked:
    extras: list[dict[str, Any]] = [
        {},
        {"logprobs": 3},
        {"echo": True, "logprobs": 1},
        {"n": 2},
        {"ignore_eos": True, "return_token_ids": True},
        {"stop": ["a", " the"]},
        {"frequency_penalty": 1, "logit_bias": {"30": 2}},
        {"structured_outputs": {"choice": ["yes, indeed", "no"]}},
    ]
    prompt: Any = _prompt(rng, shared)
    if rng.random() < 0.2:
        prompt = [prompt, _prompt(rng, shared)]
    body = {"model": model, "prompt": prompt, "max_tokens": rng.randint(1, 16)}
    return Asked("/v1/completions", body | _sampling(rng) | rng.choice(extras))


def _chat(rng: random.Random, model: str, shared: list[str]) -> Asked:
    schema = {"type": "json_schema", "json_schema": {"name": "person", "schema": _SCHEMA}}
    extras: list[dict[str, Any]] = [
        {},
        {"logprobs": True, "top_logprobs": 2},
        {"n": 2},
        {"response_format": schema},
        {"tools": [_TOOL], "tool_choice": "required"},
    ]
    messages = [{"role": "user", "content": _prompt(rng, shared)}]
    body = {"model": model, "messages": messages, "max_completion_tokens": rng.randint(1, 24)}
    return Asked("/v1/chat/completions", body | _sampling(rng) | rng.choice(extras))


def _messages(rng: random.Random, model: str, shared: list[str]) -> Asked:
    # Anthropic's API has no seed
    body = {"model": model, "max_tokens": rng.randint(1, 24), "temperature": 0}
    return Asked("/v1/messages", body | {"messages": [{"role": "user", "content": _prompt(rng, shared)}]})


def _responses(rng: random.Random, model: str, shared: list[str]) -> Asked:
    body = {"model": model, "max_output_tokens": rng.randint(16, 24), "temperature": 0}
    return Asked("/v1/responses", body | {"input": _prompt(rng, shared)})


def comparable(path: str, answer: dict[str, Any]) -> Any:
    """Return what must be equal in two answers to one request: texts, tokens, log-probabilities, why each one ended."""
    if path == "/v1/messages":
        return [
            _only(answer, "stop_reason", "stop_sequence"),
            [block.get("text") for block in answer["content"]],
        ]
    if path == "/v1/responses":
        texts = [part["text"] for item in answer["output"] for part in item.get("content", ())]
        return [answer["status"], texts, answer["usage"]["output_tokens"]]
    choices = []
    for choice in answer["choices"]:
        out = _only(choice, "index", "finish_reason", "stop_reason", "text", "logprobs", "token_ids")
        message = choice.get("message")
        if message is not None:
            out["text"] = message["content"] or ""
            out["calls"] = [call["function"] for call in message.get("tool_calls") or ()]
        choices.append({name: value for name, value in out.items() if value is not None})
    return [sorted(choices, key=lambda choice: choice["index"]), answer["usage"]["completion_tokens"]]


def _only(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: values.get(name) for name in names}


def joined(path: str, events: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the whole answer that a stream's events contain, in the format of an answer without `stream`."""
    if path == "/v1/messages":
        text, end = "", dict[str, Any]()
        for event in events:
            if event["type"] == "content_block_delta":
                text += event["delta"]["text"]
            elif event["type"] == "message_delta":
                end = event["delta"]
        return {"content": [{"text": text}] if text else [], **end}
    if path == "/v1/responses":
        text = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
        answer: dict[str, Any] = events[-1]["response"]
        whole = "".join(part["text"] for item in answer["output"] for part in item.get("content", ()))
        if text != whole:
            raise ValueError(f"the deltas are {text!r} and the response is {whole!r}")
        return answer
    choices: dict[int, dict[str, Any]] = {}
    for event in events:
        for choice in event["choices"]:
            _join_choice(choices.setdefault(choice["index"], {"index": choice["index"]}), choice)
    return {"choices": list(choices.values()), "usage": events[-1]["usage"]}


def _join_choice(whole: dict[str, Any], new: dict[str, Any]) -> None:
    """Add a chunk's choice to the whole choice."""
    if "delta" in new:
        message = whole.setdefault("message", {"content": "", "tool_calls": []})
        message["content"] += new["delta"].get("content") or ""
        for part in new["delta"].get("tool_calls", ()):
            if "id" in part:
                message["tool_calls"].append({"function": dict(part["function"])})
            else:
                message["tool_calls"][part["index"]]["function"]["arguments"] += part["function"]["arguments"]
    else:
        whole["text"] = whole.get("text", "") + new["text"]
    for name, value in (new.get("logprobs") or {}).items():
        lists = whole.setdefault("logprobs", {})
        lists[name] = [*(lists.get(name) or ()), *value] if value is not None else lists.get(name)
    if new.get("token_ids"):
        whole.setdefault("token_ids", []).extend(new["token_ids"])
    if new.get("finish_reason") is not None:
        whole["finish_reason"], whole["stop_reason"] = new["finish_reason"], new.get("stop_reason")


def encoded(asked: Asked, *, stream: bool) -> bytes:
    """Return the body of a request."""
    body = dict(asked.body)
    if stream:
        body["stream"] = True
        if "completions" in asked.path:
            body["stream_options"] = {"include_usage": True}
    return json.dumps(body).encode()
