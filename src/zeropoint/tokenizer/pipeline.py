"""The steps that turn text into tokens: those of tokenizer.json, or of the class that transformers builds instead.

For most folders transformers runs tokenizer.json as it stands. A few classes (`LlamaTokenizer`, `GPT2Tokenizer`, ...)
take only vocabulary, merges and post-processor from the file, and bring the other steps themselves;
`transformers_class` says when. A Llama 2 file, for one, then gets no space after a special token. Both engines and
every command read text in this one way, which the tests compare with transformers token for token.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tokenizers import AddedToken as FastToken
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from zeropoint.tokenizer.special import SpecialTokens

_BACKEND = "TokenizersBackend"
_GENERIC = (_BACKEND, "PreTrainedTokenizer", "PythonBackend")

#: The class that transformers has for a model type; types that are not here have none.
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
#: Types whose folders on the hub often name a wrong class: the registered one is taken.
_OVERRIDING = ("phi3", "qwen2")

_QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)


def transformers_class(
    config: Mapping[str, Any], settings: Mapping[str, Any], *, byte_level: bool
) -> str | None:
    """Return the class that transformers builds for a folder; None where it runs tokenizer.json as it stands.

    `config` is config.json, `settings` tokenizer_config.json; `byte_level`: the file has a byte-level step.
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
    """Give a tokenizer the steps of a transformers class."""
    if isinstance(fast.model, models.BPE):
        _STEPS[name](fast, settings)


def add_tokens(fast: Tokenizer, special: SpecialTokens) -> None:
    """Make the folder's special tokens known: those of the vocabulary are found in text, new ones get the next ids."""
    present = {token.content for token in fast.get_added_tokens_decoder().values()}
    for token in special.add:
        if token.content not in present or token.listed:
            fast.add_tokens([FastToken(token.content, **token.flags)])


def _llama(fast: Tokenizer, settings: Mapping[str, Any]) -> None:
    prefix = settings.get("add_prefix_space") is not False
    scheme = "never" if not prefix else "always" if settings.get("legacy") else "first"
    fast.normalizer = None
    fast.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    fast.decoder = decoders.Sequence([*steps, decoders.Strip(content=" ", left=1)] if prefix else steps)


def _gemma(fast: Tokenizer, settings: Mapping[str, Any]) -> None:
    fast.normalizer = normalizers.Replace(" ", "\u2581")
    fast.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous", invert=False)
    fast.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )


def _byte_level(fast: Tokenizer, settings: Mapping[str, Any], *, nfc: bool = False) -> None:
    prefix = bool(settings.get("add_prefix_space"))
    fast.normalizer = normalizers.NFC() if nfc else None
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    fast.decoder = decoders.ByteLevel()


def _gpt_neox(fast: Tokenizer, settings: Mapping[str, Any]) -> None:
    _byte_level(fast, settings, nfc=True)
    # This class alone drops the file's post-processor, and with it a BOS
    fast.post_processor = processors.TemplateProcessing(single="$A:0", pair="$A:0 $B:1", special_tokens=[])


def _qwen2(fast: Tokenizer, settings: Mapping[str, Any]) -> None:
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
