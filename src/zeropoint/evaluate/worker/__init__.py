"""The measuring process: the cost of loading a model can only be measured in a fresh process.

`client.py` is the parent's side, `process.py` the other; `messages.py` holds what they send. `paired_models.py` and
`reference_cache.py` open the models of a quality run.
"""
