"""Readers and makers of training data."""
