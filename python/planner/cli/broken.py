"""What is said of an installation that lacks a part; imports nothing that could be lacking."""

from __future__ import annotations


def broken_words(error: ImportError) -> str:
    """Which part, and what to do."""
    return (
        f"the installation is broken: {error}\n"
        "Install it again: pip install --force-reinstall device-map-planner"
    )
