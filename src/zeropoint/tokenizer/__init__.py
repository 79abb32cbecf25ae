"""Tokenizers and chat templates without transformers: text to token ids and back, conversations to text.

`folder.py` reads a model folder's tokenizer and `hub.py` wraps a transformers tokenizer. Both are subclasses of `Text`
(`text.py`), which handles prefixes, prompts and chat. `pipeline.py` reproduces transformers' steps, `special.py` reads
the special tokens, `templates.py` finds and renders chat templates.
"""

from zeropoint.tokenizer.folder import Tokenizer, load_tokenizer
from zeropoint.tokenizer.hub import HubTokenizer, reader
from zeropoint.tokenizer.templates import Message, chat_template, compile_template, render
from zeropoint.tokenizer.text import Text, prefix_of

__all__ = [
    "HubTokenizer",
    "Message",
    "Text",
    "Tokenizer",
    "chat_template",
    "compile_template",
    "load_tokenizer",
    "prefix_of",
    "reader",
    "render",
]
