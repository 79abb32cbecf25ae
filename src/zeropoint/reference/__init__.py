"""The numbers' truth in plain numpy: rounding, packing, the integer matrix product.

Written to be read and checked, not to be fast; kernels and writers are tested against it.
"""
