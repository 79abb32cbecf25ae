"""The native engine: whole forward steps in C++ (native/), without torch or transformers.

`zeropoint.models` turns config.json into a `ModelSpec`; `loading` builds the C++ decoder from that spec and an artifact
or checkpoint; `runner.NativeRunner` runs the decoder. A model that the engine does not support raises an
`UnsupportedError` that names the config field; `runtime.open_runner` then uses the torch runtime.
"""
