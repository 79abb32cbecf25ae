"""What GGUF can say of a model: its blocks of numbers, its families, its vocabularies. No torch.

Both directions use it: `exporters/gguf.py` writes what is here, `importers/gguf.py` reads it. Needs the `gguf` package
(`pip install 'zeropoint[export]'`); the files themselves are read by `zeropoint.files.gguf_file`.
"""
