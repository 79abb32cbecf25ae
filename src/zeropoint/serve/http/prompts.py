"""Makes engine requests: renders the chat template, tokenizes the prompt, checks its length.

The routes call these functions with `in_thread`, outside the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ParamSpec, TypeVar

from anyio import to_thread

from zeropoint.serve.http.conversation import Tools
from zeropoint.serve.http.errors import ApiError
from zeropoint.serve.http.options import (
    SamplingOptions,
    grammar_of,
    sampling_of,
    text_options,
    with_seed,
)
from zeropoint.serve.http.run import Submission
from zeropoint.serve.http.state import State
from zeropoint.serve.request import Model, Request
from zeropoint.serve.text import TextOptions
from zeropoint.tokenizer import Message

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """Call `work`, which takes milliseconds or more, in another thread, so that streams go on."""
    return await to_thread.run_sync(partial(work, *args, **options))


def chat_text(
    state: State,
    model: Model,
    messages: Sequence[Message],
    *,
    tools: Sequence[Any] = (),
    options: Mapping[str, Any] | None = None,
    add_generation_prompt: bool = True,
) -> str:
    """Return a conversation as text, rendered by the model's chat template.

    Raises `ApiError` if the model has no template, and `UsageError` if the template refuses the conversation.
    """
    template = model.tokenizer.templates.chosen(tools=bool(tools))
    if template is None:
        raise ApiError(
            400,
            f"The model '{model.name}' has no chat template, so it reads no conversations: use /v1/completions.",
            param="messages",
            code="no_chat_template",
        )
    return state.templates.render(
        template.text,
        messages,
        model.tokenizer.special,
        tools=tools,
        options=options,
        add_generation_prompt=add_generation_prompt,
    )


def chat_submission(
    state: State,
    model: Model,
    messages: Sequence[Message],
    tools: Tools,
    options: SamplingOptions,
    *,
    max_tokens: int | None,
    logprobs: int | None = None,
    template_options: Mapping[str, Any] | None = None,
    add_generation_prompt: bool = True,
) -> Submission:
    """Return the submission that answers a conversation. Raises what `chat_text` and `requests_of` raise."""
    words = chat_text(
        state,
        model,
        messages,
        tools=tools.described,
        options=template_options,
        add_generation_prompt=add_generation_prompt,
    )
    text = text_options(options, model, keep_special=tools.parsed)
    requests = requests_of(
        state,
        model,
        [tuple(model.tokenizer.encode(words))],
        options,
        text,
        max_tokens=max_tokens,
        logprobs=logprobs,
        grammar=tools.grammar(),
    )
    return Submission(model, requests, text)


def requests_of(
    state: State,
    model: Model,
    prompts: Sequence[tuple[int, ...]],
    options: SamplingOptions,
    text: TextOptions,
    *,
    max_tokens: int | None,
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
    grammar: str | None = None,
) -> tuple[Request, ...]:
    """Return the engine requests for prompts, `options.answers` for each prompt.

    Without `max_tokens`, an answer may fill the model's context. `grammar` replaces the grammar of the options. Raises
    `ApiError` if a prompt is empty or too long.
    """
    sampling = sampling_of(options, model)
    grammar = grammar or grammar_of(options)
    out = []
    for prompt in prompts:
        room = room_for(prompt, model, max_tokens)
        for index in range(options.answers):
            constraint = None if grammar is None else state.grammars.constraint(model, grammar)
            out.append(
                Request(
                    prompt=prompt,
                    max_new_tokens=room if max_tokens is None else max_tokens,
                    sampling=with_seed(sampling, index),
                    stop_tokens=text.stop_tokens,
                    logprobs=logprobs,
                    prompt_logprobs=prompt_logprobs,
                    constraint=constraint,
                )
            )
    return tuple(out)


def room_for(prompt: tuple[int, ...], model: Model, max_tokens: int | None) -> int:
    """Return how many tokens fit after a prompt.

    Raises `ApiError` if the prompt is empty, has an unknown token, or leaves no room for `max_tokens` tokens.
    """
    if not prompt:
        raise ApiError(400, "The prompt is empty.", param="prompt", code="invalid_value")
    least = 1 if max_tokens is None else max_tokens
    room = model.max_positions - len(prompt)
    if least > room:
        raise ApiError(
            400,
            f"This model's maximum context length is {model.max_positions} tokens. However, you requested "
            f"{len(prompt) + least} tokens ({len(prompt)} in the messages, {least} in the completion). Please reduce "
            "the length of the messages or completion.",
            param="messages",
            code="context_length_exceeded",
        )
    if max(prompt) >= model.vocab_size:
        raise ApiError(
            400, f"The prompt has a token id above {model.vocab_size - 1}, the model's largest.", param="prompt",
            code="invalid_value",
        )  # fmt: skip
    return room
