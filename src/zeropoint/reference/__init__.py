"""Numpy reference for rounding and quantized matrix products: plain code to read, against which kernels are tested."""
