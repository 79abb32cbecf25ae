"""Where the tokenizer's files of a model are.

Modules that only a GGUF file needs are imported when there is one: a small machine runs folders without their memory.
"""

from __future__ import annotations

import atexit
from functools import lru_cache
from pathlib import Path

from zeropoint.sources.folder import find_gguf, open_gguf


@lru_cache(maxsize=8)
def text_folder(path: Path) -> Path:
    """Return the folder that holds a model's tokenizer and generation defaults: its own, or one made from the header of
    a GGUF file, which is removed when the process ends. Raise `CheckpointError` for a damaged file."""
    file = find_gguf(path)
    if file is None:
        return path
    import shutil
    import tempfile

    made = Path(tempfile.mkdtemp(prefix="zeropoint-"))
    atexit.register(shutil.rmtree, made, ignore_errors=True)
    source = open_gguf(file, str(path))
    if source.tokenizer_files is not None:
        source.tokenizer_files(made)
    return made
