"""Model families as data: config.json is read strictly into the description that both engines, GGUF and ONNX share.

`families/` has one file per `model_type`; `record.py` says what a description holds, `config.py` reads config.json,
`rope.py` computes rotation tables, `parts.py` builds the pieces that families share. Nothing here imports torch.
"""
