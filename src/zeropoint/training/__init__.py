"""Training of quantized models: fake quantization with the engine's arithmetic, the recipe, and the training loop.

Reading order: `fake_quantize.py` (one weight), `modules.py` (layers), `recipe.py` (a model: prepare and convert),
`data.py` (token windows), `loop.py` (the optimizer's steps), `run.py` (`zeropoint train`, from end to end).
"""
