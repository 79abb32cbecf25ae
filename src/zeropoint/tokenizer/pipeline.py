"""The steps that turn text into tokens, as in transformers: those of tokenizer.json, or of a tokenizer class.

For most folders transformers runs tokenizer.json unchanged. A few classes (`LlamaTokenizer`, `GPT2Tokenizer`, ...) take
only vocabulary, merges and post-processor from the file and replace the other steps, which changes tokens: for example,
a Llama 2 tokenizer then adds no space after a special token. `transformers_class` decides whether a folder has such a
class. The tests compare the tokens with those of transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tokenizers import AddedToken as FastToken
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from zeropoint.tokenizer.special import SpecialTokens

_BACKEND = "TokenizersBackend"
_GENERIC = (_BACKEND, "PreTrainedTokenizer", "PythonBackend")

#: Model type -> the tokenizer class that transformers registers for it. Other types have none.
REGISTERED = {
    "cohere": "CohereTokenizer",
    "cohere2": "CohereTokenizer",
    "gemma": "GemmaTokenizer",
    "gemma2": "GemmaTokenizer",
    "gemma3": "GemmaTokenizer",
    "gemma3_text": "GemmaTokenizer",
    "gpt2": "GPT2Tokenizer",
    "gpt_neox": "GPTNeoXTokenizer",
    "granite": _BACKEND,
    "mistral": _BACKEND,
    "mixtral": _BACKEND,
    "olmo": "GPTNeoXTokenizer",
    "olmo2": _BACKEND,
    "olmo3": _BACKEND,
    "opt": "GPT2Tokenizer",
    "phi": "GPT2Tokenizer",
    "phi3": _BACKEND,
    "qwen2": "Qwen2Tokenizer",
    "qwen2_moe": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    "qwen3_moe": "Qwen2Tokenizer",
    "stablelm": _BACKEND,
    "starcoder2": "GPT2Tokenizer",
}
#: Model types whose registered class replaces the folder's, because folders on the hub often state a wrong one.
_OVERRIDING = ("phi3", "qwen2")

_QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def transformers_class(
    config: Mapping[str, Any], settings: Mapping[str, Any], *, byte_level: bool
) -> str | None:
    """Return the tokenizer class that transformers uses for a folder; None if it runs tokenizer.json unchanged.

    `config` is config.json, `settings` tokenizer_config.json. `byte_level` states whether tokenizer.json has a
    byte-level step.
    """
    declared = settings.get("tokenizer_class") or config.get("tokenizer_class")
    declared = declared.removesuffix("Fast") if isinstance(declared, str) else None
    kind = config.get("model_type")
    registered = REGISTERED.get(kind) if isinstance(kind, str) else None
    if declared == "LlamaTokenizer" and byte_level and registered != _BACKEND and kind not in _OVERRIDING:
        return None
    if declared is None:
        chosen = registered
    elif registered is None or registered == declared:
        chosen = declared
    elif registered == _BACKEND:
        chosen = None
    else:
        chosen = registered if kind in _OVERRIDING else declared
    return None if chosen in _GENERIC or chosen not in _STEPS else chosen


def apply_class(fast: Tokenizer, name: str, settings: Mapping[str, Any]) -> None:
    """Replace a BPE tokenizer's steps by those of the transformers class `name`."""
    if isinstance(fast.model, models.BPE):
        _STEPS[name](fast, settings)


def add_tokens(fast: Tokenizer, special: SpecialTokens) -> None:
    """Add the folder's special tokens to a tokenizer. Tokens outside the vocabulary get the next free ids."""
    present = {token.content for token in fast.get_added_tokens_decoder().values()}
    for token in special.add:
        if token.content not in present or token.listed:
            fast.add_tokens([FastToken(token.content, **token.flags)])


def _llama(fast: Tokenizer, settings: Mapping[str, Any]) -> None:
    """Set the steps of `LlamaTokenizer`."""
    prefix = settings.get("add_prefix_space") is not False
    scheme = "never" if not prefix else "always" if settings.get("legacy") else "first"
    fast.normalizer = None
    fast.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    fast.decoder = decoders.Sequence([*steps, decoders.Strip(content=" ", left=1)] if prefix else steps)


def _gemma(fast: Tokenizer, settings: Mapping[str, Any]) -> None:
    """Set the steps of `GemmaTokenizer`."""
    fast.normalizer = normalizers.Replace(" ", "\u2581")
    fast.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous", invert=False)
    fast.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )


def _byte_level(fast: Tokenizer, settings: Mapping[str, Any], *, nfc: bool = False) -> None:
    """Set the steps of `GPT2Tokenizer` and `CodeGenTokenizer`."""
    prefix = bool(settings.get("add_prefix_space"))
    fast.normalizer = normalizers.NFC() if nfc else None
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    fast.decoder = decoders.ByteLevel()


def _gpt_neox(fast: Tokenizer, settings: Mapping[str, Any]) -> None:
    """Set the steps of `GPTNeoXTokenizer`."""
    _byte_level(fast, settings, nfc=True)
    # Unlike the other classes, this one drops the file's post-processor, and with it BOS
    fast.post_processor = processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])


def _qwen2(fast: Tokenizer, settings: Mapping[str, Any]) -> None:
    """Set the steps of `Qwen2Tokenizer`."""
    prefix = bool(settings.get("add_prefix_space"))
    fast.normalizer = normalizers.NFC()
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN_SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=False),
        ]
    )
    fast.decoder = decoders.ByteLevel()


def _cohere(fast: Tokenizer, settings: Mapping[str, Any]) -> None:
    """Set the steps of `CohereTokenizer`."""
    prefix = bool(settings.get("add_prefix_space"))
    fast.normalizer = normalizers.NFC()
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=prefix, trim_offsets=True),
        ]
    )
    fast.decoder = decoders.ByteLevel()


_STEPS: dict[str, Callable[[Tokenizer, Mapping[str, Any]], None]] = {
    "CodeGenTokenizer": _byte_level,
    "CohereTokenizer": _cohere,
    "GPT2Tokenizer": _byte_level,
    "GPTNeoXTokenizer": _gpt_neox,
    "GemmaTokenizer": _gemma,
    "LlamaTokenizer": _llama,
    "Qwen2Tokenizer": _qwen2,
}
