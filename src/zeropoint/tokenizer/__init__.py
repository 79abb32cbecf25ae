"""Text to token ids and back, and conversations in a model's chat template, without transformers.

`folder.py` reads a model folder, `hub.py` wraps a transformers tokenizer, and `text.py` holds what both share: what
stands before a text, prompts, chat. `pipeline.py` builds the steps that transformers would take, `special.py` finds the
special tokens, `templates.py` finds and renders chat templates.
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
