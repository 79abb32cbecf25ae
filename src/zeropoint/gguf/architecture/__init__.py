"""What llama.cpp calls an architecture: which models a GGUF file can hold, as which header fields and tensors.

`families.py` is one table for reading and writing. `to_config.py` turns a header into config.json, `to_header.py` a
model spec into header fields, `tensors.py` gives each weight its GGUF name and row order. `description.py` puts them
together for a model that is written, after `differences.py` has compared the model with llama.cpp's graph.
"""
