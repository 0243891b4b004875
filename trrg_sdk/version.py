"""The version of the distribution ``trrg-sdk``."""

__version__ = "0.1.0"
