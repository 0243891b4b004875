"""Report → JSON of schema 2, for programs."""

from __future__ import annotations

from trrg_sdk.reading import Reading

NAME = "json"
EXTENSION = ".json"
SHOWS_IMAGE = False


def render(reading: Reading) -> bytes:
    """UTF-8 JSON, indented, a line break at the end; it holds the images' UIDs and is to be kept like them."""
    return (reading.report.to_json() + "\n").encode()


def unavailable_reason() -> None:
    """Nothing is needed."""
