"""Precisions of the graphs that come from PyTorch, one module each: fp32 as traced, and what is made of it."""

HALF = ("fp16", "int4-fp16")
"""Precisions of bundles that compute in fp16."""
