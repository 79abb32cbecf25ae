"""Grammars that constrain answers: JSON Schema, regular expressions, Lark grammars. `llguidance` compiles them."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from zeropoint.errors import UsageError, reason
from zeropoint.serve.request import Model
from zeropoint.values.arrays import Int32s

#: How many compiled grammars are kept, for all models together, because clients send the same schema repeatedly.
_KEPT = 64


class Grammars:
    """Compiles grammars for models and keeps the last ones. Any thread may call all methods, which may take seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tokenizers: dict[str, Any] = {}
        self._compiled: dict[tuple[str, str], Any] = {}

    def constraint(self, model: Model, grammar: str) -> Matcher:
        """Return a new constraint for one answer. `grammar` comes from a function of this module.

        Raises `UsageError` if the grammar is not valid, or too complex.
        """
        import llguidance

        key = (model.name, grammar)
        with self._lock:
            compiled = self._compiled.get(key)
            if compiled is None:
                compiled = llguidance.LLMatcher(self._tokenizer(model), grammar, log_level=0)
                if compiled.is_error():
                    raise UsageError(
                        f"the grammar is not valid: {reason(ValueError(compiled.get_error()), 300)}"
                    )
                if len(self._compiled) >= _KEPT:
                    del self._compiled[next(iter(self._compiled))]
                self._compiled[key] = compiled
            return Matcher(compiled.deep_copy(), model.vocab_size)

    def _tokenizer(self, model: Model) -> Any:
        """Return llguidance's form of a model's tokenizer."""
        import llguidance

        if model.name not in self._tokenizers:
            stop = sorted(model.tokenizer.stop_tokens())
            try:
                self._tokenizers[model.name] = llguidance.LLTokenizer(
                    model.tokenizer.to_json(), n_vocab=model.vocab_size, eos_token=stop or None
                )
            except ValueError as cause:
                raise UsageError(
                    f"the model's tokenizer does not support grammars: {reason(cause)}"
                ) from cause
        return self._tokenizers[model.name]


class Matcher:
    """A `zeropoint.serve.request.Constraint` that llguidance computes."""

    def __init__(self, matcher: Any, vocab_size: int) -> None:
        self._matcher = matcher
        self._words = -(-vocab_size // 32)

    def mask(self) -> Int32s:
        """Return the allowed tokens as bits."""
        from llguidance.numpy import fill_next_token_bitmask

        bits: Int32s = np.zeros((1, self._words), np.int32)
        fill_next_token_bitmask(self._matcher, bits)
        row: Int32s = bits[0]
        return row

    def accept(self, token: int) -> bool:
        """Add a chosen token; return whether the text is complete."""
        self._matcher.consume_token(token)
        return bool(self._matcher.is_stopped())


def of_schema(schema: Mapping[str, Any] | str) -> str:
    """Return the grammar of the JSON texts that a JSON Schema describes. Raises `UsageError` for an invalid one."""
    import llguidance

    try:
        return str(
            llguidance.LLMatcher.grammar_from_json_schema(
                schema if isinstance(schema, str) else json.dumps(schema)
            )
        )
    except ValueError as cause:
        raise UsageError(f"the JSON schema is not valid: {reason(cause)}") from cause


def of_regex(pattern: str) -> str:
    """Return the grammar of the texts that a regular expression matches as a whole."""
    import llguidance

    return str(llguidance.LLMatcher.grammar_from_regex(pattern))


def of_lark(grammar: str) -> str:
    """Return the grammar of a text in Lark's syntax or in llama.cpp's GBNF. Raises `UsageError` for invalid GBNF."""
    import llguidance

    if "::=" in grammar:
        try:
            grammar = llguidance.gbnf_to_lark.any_to_lark(grammar)
        except Exception as cause:  # its parser raises several kinds
            raise UsageError(f"the GBNF grammar is not valid: {reason(cause)}") from cause
    return str(llguidance.LLMatcher.grammar_from_lark(grammar))


def of_choices(choices: tuple[str, ...]) -> str:
    """Return the grammar that allows exactly these texts."""
    return of_lark("start: " + " | ".join(json.dumps(choice) for choice in choices))
