"""Evaluation of written reports: text and clinical scores, each beside its floor, its interval and its new part."""
