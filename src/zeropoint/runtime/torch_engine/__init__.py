"""The torch runtime (engine `universal`): any Hugging Face causal LM, with quantized layers run by integer kernels."""
