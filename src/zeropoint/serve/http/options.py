"""Options that all generation APIs share: sampling, stop conditions, and the grammar of the answer."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from zeropoint.runtime.sampling import Sampling
from zeropoint.serve import grammar
from zeropoint.serve.http.errors import ApiError
from zeropoint.serve.http.fields import (
    anything,
    boolean,
    either,
    listing,
    mapping,
    missing,
    number,
    one_of,
    option,
    record,
    required,
    string,
    whole,
)
from zeropoint.serve.request import Model
from zeropoint.serve.text import TextOptions

MAX_ANSWERS = 128
MAX_LOGPROBS = 20
MAX_STOPS = 64

#: Options whose default comes from the model's generation_config.json, as in vLLM.
_FROM_MODEL = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")

#: Kind and description of options that several APIs have: the arguments of `option`.
MODEL = string(), "name of the model; may be left out if the server has one only"
STREAM = boolean(), "answer as server-sent events"
TEMPERATURE = number(0), "0 is greedy; default: the model's, else 1"
TOP_P = number(above=0, high=1), "sample from the most likely tokens whose probabilities add up to this"
TOP_K = whole(-1), "sample from this many most likely tokens; 0 and -1: from all"
SEED = whole(-(1 << 63), (1 << 63) - 1), "the same seed gives the same answer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """vLLM's `structured_outputs`: the grammar that the answer must follow."""

    json: Any = option(either(mapping(anything()), string()), "JSON Schema")
    json_object: bool | None = option(boolean(), "any JSON object")
    regex: str | None = option(string(empty=False), "regular expression")
    choice: tuple[str, ...] | None = option(listing(string(empty=False), 1, 1024), "one of these texts")
    grammar: str | None = option(string(empty=False), "Lark or GBNF grammar")

    def compiled(self, param: str) -> str | None:
        """Return the grammar as text for `zeropoint.serve.grammar.Grammars`, or None if no field is set.

        Raises `ApiError`, which names `param`, if several fields are set.
        """
        compilers: dict[str, Callable[[Any], str | None]] = {
            "json": grammar.of_schema,
            "json_object": lambda value: grammar.of_schema({"type": "object"}) if value else None,
            "regex": grammar.of_regex,
            "choice": grammar.of_choices,
            "grammar": grammar.of_lark,
        }
        names = [name for name in compilers if getattr(self, name) is not None]
        if len(names) > 1:
            raise ApiError(
                400, f"Give one of {' and '.join(names)}, not several.", param=param, code="invalid_value"
            )
        return compilers[names[0]](getattr(self, names[0])) if names else None


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonSchema:
    """The named JSON Schema in OpenAI's `response_format`."""

    name: str = required(string(), "name of the schema")
    schema: Any = option(either(mapping(anything()), boolean()), "the JSON Schema that the answer follows")
    strict: bool | None = option(boolean(), "ignored: the answer always follows the schema")
    description: str | None = option(string(), "ignored")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseFormat:
    """OpenAI's `response_format`."""

    type: str = required(one_of("text", "json_object", "json_schema"), "kind of answer")
    json_schema: JsonSchema | None = option(record(JsonSchema), "with type json_schema: the schema")


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamOptions:
    """OpenAI's `stream_options`."""

    include_usage: bool | None = option(boolean(), "end the stream with a chunk that counts the tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """Request fields that OpenAI's generation APIs share, and the fields that vLLM adds to them."""

    model: str | None = option(*MODEL)
    stream: bool | None = option(*STREAM)
    stream_options: StreamOptions | None = option(record(StreamOptions), "options of the stream")
    temperature: float | None = option(*TEMPERATURE)
    top_p: float | None = option(*TOP_P)
    top_k: int | None = option(*TOP_K)
    min_p: float | None = option(
        number(0, 1), "sample from tokens whose probability is at least this share of the largest one"
    )
    repetition_penalty: float | None = option(
        number(above=0), "above 1: tokens of the text so far are less likely"
    )
    presence_penalty: float | None = option(
        number(-2, 2), "above 0: tokens of the answer so far are less likely"
    )
    frequency_penalty: float | None = option(
        number(-2, 2), "like presence_penalty, multiplied by how often the token occurred"
    )
    logit_bias: Mapping[str, float] | None = option(
        mapping(number(-100, 100)), "maps token ids to numbers that are added to their logits"
    )
    seed: int | None = option(*SEED)
    n: int | None = option(whole(1, MAX_ANSWERS), "number of answers")
    stop: Any = option(either(string(), listing(string(), 0, MAX_STOPS)), "texts that end the answer")
    stop_token_ids: tuple[int, ...] | None = option(
        listing(whole(0), 0, 1024), "further token ids that end the answer"
    )
    ignore_eos: bool | None = option(boolean(), "go on after the model's end-of-sequence token")
    skip_special_tokens: bool | None = option(
        boolean(), "leave special tokens out of the text (default: true)"
    )
    include_stop_str_in_output: bool | None = option(boolean(), "show the stop text")
    return_token_ids: bool | None = option(boolean(), "also return the ids of the tokens")
    response_format: ResponseFormat | None = option(record(ResponseFormat), "grammar of the answer")
    structured_outputs: Structure | None = option(record(Structure), "grammar of the answer, as in vLLM")
    guided_json: Any = option(either(mapping(anything()), string()), "JSON Schema of the answer")
    guided_regex: str | None = option(string(empty=False), "regular expression of the answer")
    guided_choice: tuple[str, ...] | None = option(
        listing(string(empty=False), 1, 1024), "the possible answers"
    )
    guided_grammar: str | None = option(string(empty=False), "Lark or GBNF grammar of the answer")

    @property
    def include_usage(self) -> bool:
        """Return whether a stream ends with a chunk that counts the tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @property
    def answers(self) -> int:
        """Return the number of answers to each prompt."""
        return self.n or 1


def sampling_of(options: SamplingOptions, model: Model) -> Sampling:
    """Return the sampling options. Options that the request omits come from the model, else temperature is 1.

    Without a seed, a random one is drawn. Raises `ApiError` if `logit_bias` names a token that the model lacks.
    """
    values: dict[str, Any] = {"temperature": 1.0}
    values |= _model_defaults(model)
    for name in (*_FROM_MODEL, "presence_penalty", "frequency_penalty"):
        if getattr(options, name) is not None:
            values[name] = getattr(options, name)
    values["top_k"] = max(values.get("top_k", 0), 0)
    if options.logit_bias:
        values["logit_bias"] = _bias(options.logit_bias, model)
    seed = int.from_bytes(os.urandom(7), "big") if options.seed is None else options.seed
    return Sampling(**values, seed=seed & ((1 << 63) - 1))


def with_seed(sampling: Sampling, index: int) -> Sampling:
    """Return the sampling options of the answer with this index: each answer has its own seed."""
    return replace(sampling, seed=(sampling.seed + index) & ((1 << 63) - 1)) if index else sampling


def _model_defaults(model: Model) -> dict[str, Any]:
    """Return the sampling options in the model's generation_config.json, without invalid values."""
    config = model.tokenizer.generation_config
    out = {}
    for name in _FROM_MODEL:
        value = config.get(name)
        if value is not None and not isinstance(value, bool):
            try:
                Sampling(**{name: value})
            except Exception:
                continue
            out[name] = value
    return out


def _bias(bias: Mapping[str, float], model: Model) -> tuple[tuple[int, float], ...]:
    """Return pairs of a token id and the number to add to its logit, in order of the ids.

    Raises `ApiError` for a key that is no token id of the model.
    """
    out = {}
    for key, value in bias.items():
        if not (key.isascii() and key.isdecimal() and int(key[:12]) < model.vocab_size):
            raise ApiError(
                400, f"Invalid key in 'logit_bias': {key[:60]!r} is not a token id from 0 to {model.vocab_size - 1}.",
                param="logit_bias", code="invalid_value",
            )  # fmt: skip
        out[int(key)] = value
    return tuple(sorted(out.items()))


def text_options(options: SamplingOptions, model: Model, *, keep_special: bool = False) -> TextOptions:
    """Return the stop conditions and which tokens are shown.

    `keep_special` keeps special tokens in the text, for a parser of tool calls.
    """
    stop = (options.stop,) if isinstance(options.stop, str) else options.stop or ()
    own = frozenset() if options.ignore_eos else model.tokenizer.stop_tokens()
    return TextOptions(
        stop=tuple(each for each in stop if each),
        stop_tokens=own | frozenset(options.stop_token_ids or ()),
        skip_special=options.skip_special_tokens is not False and not keep_special,
        include_stop=bool(options.include_stop_str_in_output),
    )


def grammar_of(options: SamplingOptions) -> str | None:
    """Return the grammar that the answer must follow, or None. Raises `ApiError` if the request has several."""
    grammars: dict[str, str] = {}
    guided = Structure(
        json=options.guided_json,
        regex=options.guided_regex,
        choice=options.guided_choice,
        grammar=options.guided_grammar,
    )
    for param, structure in (("structured_outputs", options.structured_outputs), ("guided_json", guided)):
        compiled = structure.compiled(param) if structure is not None else None
        if compiled is not None:
            grammars[param] = compiled
    wanted = _format_grammar(options.response_format)
    if wanted is not None:
        grammars["response_format"] = wanted
    if len(grammars) > 1:
        raise ApiError(400, f"Give one of {' and '.join(grammars)}, not several.", code="invalid_value")
    return next(iter(grammars.values()), None)


def _format_grammar(wanted: ResponseFormat | None) -> str | None:
    """Return the grammar of OpenAI's `response_format`."""
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return grammar.of_schema({"type": "object"})
    if wanted.json_schema is None:
        raise missing("response_format.json_schema")
    schema = wanted.json_schema.schema
    return grammar.of_schema({} if schema is None or schema is True else schema)
