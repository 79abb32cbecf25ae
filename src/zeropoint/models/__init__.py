"""Model families: config.json becomes a `ModelSpec`, which both engines and the GGUF and ONNX exporters use.

`families/` has one file per `model_type`. `spec.py` defines `ModelSpec`, `config.py` reads config.json, `rope.py`
computes rotary tables, and `parts.py` holds the building blocks that families share. Nothing here imports torch.
"""
