"""A vocabulary in a GGUF header, and in the tokenizer files of a model folder.

`to_header.py` converts a folder's tokenizer to header fields, `to_tokenizer.py` is the inverse. Both share the splits
of byte-level BPE (`splits.py`) and the scores of SentencePiece (`sentencepiece.py`).
"""

from zeropoint.gguf.vocabulary.to_header import Vocabulary, read_vocabulary
from zeropoint.gguf.vocabulary.to_tokenizer import HeaderTokenizer

__all__ = ["HeaderTokenizer", "Vocabulary", "read_vocabulary"]
