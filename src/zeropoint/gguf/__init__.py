"""The GGUF format, for reading and writing. Does not import torch. Needs the `gguf` package (`zeropoint[export]`).

    file.py          one file's bytes: header fields, names, types and places of tensors, checked before use
    types/           number types: the bytes of a weight in each
    architecture/    models: which ones GGUF can hold, their header fields and their tensors
    vocabulary/      tokenizers: header fields and tokenizer files
    model.py         a file as a checkpoint, for `importers/gguf.py`, `sources/` and both engines
    writer.py        a file to write, for `exporters/gguf.py`

docs/architecture.md, "gguf/ in one picture", shows how they work together.
"""
