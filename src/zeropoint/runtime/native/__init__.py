"""The native engine: whole forward steps in C++ (native/), described by data, without torch or transformers.

`zeropoint.models` turns a config into a `ModelSpec`; `loading` fills it from an artifact or a checkpoint;
`runner.NativeRunner` runs it. What the engine does not cover is an `UnsupportedError` that names the field, and the
caller takes the universal runtime instead.
"""
