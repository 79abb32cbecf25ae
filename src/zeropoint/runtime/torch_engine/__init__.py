"""The universal runtime: any Hugging Face causal LM, its quantized layers swapped for integer kernels."""
