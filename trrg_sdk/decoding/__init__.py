"""The token loop: from prompt embeddings to token ids."""

from trrg_sdk.decoding.greedy import Generation, generate

__all__ = ["Generation", "generate"]
