"""Precisions of the graphs that come from PyTorch, one module each: fp32 as traced, and what is made of it."""
