"""The folder with a model's tokenizer files.

Modules that only GGUF files need are imported on demand, to save memory on small machines.
"""

from __future__ import annotations

import atexit
from functools import lru_cache
from pathlib import Path

from zeropoint.sources.folder import find_gguf, open_gguf


@lru_cache(maxsize=8)
def text_folder(path: Path) -> Path:
    """Return the folder that holds a model's tokenizer and generation defaults.

    For a model folder, this is the folder itself. For a GGUF file, it is a temporary folder written from the header and
    removed when the process ends. Raises `CheckpointError` for a damaged file.
    """
    file = find_gguf(path)
    if file is None:
        return path
    import shutil
    import tempfile

    folder = Path(tempfile.mkdtemp(prefix="zeropoint-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    source = open_gguf(file, str(path))
    if source.tokenizer_files is not None:
        source.tokenizer_files(folder)
    return folder
