"""The token loop: from prompt embeddings to token ids."""

from trrg_sdk.decoding.greedy import Generation, finish, generate, write
from trrg_sdk.decoding.rules import Rules

__all__ = ["Generation", "Rules", "finish", "generate", "write"]
