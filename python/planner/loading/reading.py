"""The core's reader: buffers of huge pages, reading into them, and what of a file the page cache has."""

from __future__ import annotations

from planner import _core

__all__ = ["PageBuffer", "cached_bytes", "map_pieces", "read_spans"]

PageBuffer = _core.PageBuffer
"""Memory in huge pages."""

read_spans = _core.read_spans
"""Reads ranges of files into a buffer."""

cached_bytes = _core.cached_bytes
"""How much of a range of a file is in the page cache."""

map_pieces = _core.map_pieces
"""Pieces of files as one piece of memory."""
