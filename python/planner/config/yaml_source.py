"""YAML as events: a plain subset of YAML 1.2, with the line and column of every value."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from planner.config.compose import Event
from planner.config.layer import UNSET, SourceError
from planner.config.scalars import core_scalar

__all__ = ["yaml_events"]


def yaml_events(text: str) -> Iterator[Event]:
    """The events of one YAML document.

    Args:
        text: the document. ``!unset`` stands for a deletion, ``!replace`` before a mapping replaces it.

    Raises:
        SourceError: not YAML, or an anchor, alias, merge key, other tag or second document, which are left out
            because a value could then not say where it was written.
    """
    import yaml  # here, so that importing planner.config stays light

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    documents = 0
    try:
        parsed: Iterator[Any] = yaml.parse(text, Loader=loader)
        for event in parsed:
            documents += isinstance(event, yaml.DocumentStartEvent)
            if documents > 1:
                raise SourceError(f"line {event.start_mark.line + 1}: a second document")
            if isinstance(event, yaml.NodeEvent):
                yield _opening(event, yaml)
            elif isinstance(event, yaml.CollectionEndEvent):
                yield Event("end", None, 0, 0)
    except (yaml.YAMLError, UnicodeError) as error:
        raise SourceError(f"not YAML: {' '.join(str(error).split())}"[:300]) from error


def _opening(event: Any, yaml: Any) -> Event:
    line, column = event.start_mark.line + 1, event.start_mark.column + 1
    if event.anchor is not None:
        raise SourceError(f"line {line}: anchors and aliases are not supported")
    replace, unset = event.tag == "!replace", event.tag == "!unset"
    if not (event.tag is None or replace or unset):
        raise SourceError(f"line {line}: tag {event.tag[:50]!r} is not supported")
    if isinstance(event, yaml.SequenceStartEvent):
        return Event("list", None, line, column)
    if isinstance(event, yaml.MappingStartEvent):
        return Event("map", None, line, column, replace)
    if event.value == "<<" and event.implicit[0]:
        raise SourceError(f"line {line}: merge keys are not supported")
    plain = core_scalar(event.value) if event.implicit[0] else event.value
    return Event("scalar", UNSET if unset else plain, line, column)
