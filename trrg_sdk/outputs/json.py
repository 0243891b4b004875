"""Report → JSON of schema 1, for programs."""

from __future__ import annotations

from trrg_sdk.report import Report

NAME = "json"
EXTENSION = ".json"


def render(report: Report) -> bytes:
    """UTF-8 JSON, indented, a line break at the end; it holds the images' UIDs and is to be kept like them."""
    return (report.to_json() + "\n").encode()
