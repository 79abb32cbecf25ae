"""The GGUF format: blocks of weights, architectures, headers and vocabularies. Does not import torch.

`exporters/gguf.py` and `importers/gguf.py` both use this package. It needs the `gguf` package
(`pip install 'zeropoint[export]'`). `zeropoint.files.gguf_file` reads the files themselves.
"""
