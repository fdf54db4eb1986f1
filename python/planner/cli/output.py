"""What commands write: JSON in one line, and text that has colours only on a terminal."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, NoReturn

from planner.spelling import one_line

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_PIPED_WIDTH = 100  # columns of a picture that is not shown on a terminal


class _ClosedOutput(io.TextIOBase):
    """Stands where Python has None, because the process was started without standard output."""

    def write(self, text: str) -> NoReturn:
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))

    def reconfigure(self, **_: Any) -> None:
        """Nothing: there is nothing to encode for."""


def replace_closed_streams() -> None:
    """Gives a process that was started with a closed output something that can be written to: an error that can be told is the
    answer where the answer itself cannot be; messages go nowhere."""
    if sys.stdout is None:
        sys.stdout = _ClosedOutput()
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (it is open as long as the process runs)


def write(text: str) -> None:
    """One text for people, and a line break, on standard output."""
    sys.stdout.write(f"{visible(text)}\n")


def write_remark(text: str) -> None:
    """One line beside the answer, on standard error, so that what reads the answer is not disturbed."""
    sys.stdout.flush()
    sys.stderr.write(f"planner: {visible(text)}\n")


def write_json(data: object) -> None:
    """One line of JSON on standard output."""
    write_json_text(json_text(data))


def write_json_text(text: str) -> None:
    """JSON that is text already, in one line on standard output."""
    sys.stdout.write(f"{text}\n")


def json_text(data: object) -> str:
    """JSON in one line, keys in the order given.

    Example:
        >>> json_text({"device": 0, "free": float("inf")})
        '{"device":0,"free":"inf"}'
    """
    return json.dumps(plain_data(data), ensure_ascii=False, separators=(",", ":"))


def visible(text: str) -> str:
    """Text with what a terminal would obey, or could not show, spelled out; line breaks stay.

    Example:
        >>> visible("layers\\x1b[31m.0")
        'layers\\\\x1b[31m.0'
    """
    return "\n".join(map(one_line, text.split("\n")))


def plain_data(value: object) -> object:
    """The same as JSON can say it; what it has no word for becomes text.

    Example:
        >>> plain_data({0: (1, float("inf")), "cpu": {3}})
        {'0': [1, 'inf'], 'cpu': '{3}'}
    """
    if isinstance(value, Mapping):
        return {_key(key): plain_data(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_data(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain_data(getattr(value, name)) for name in value.__dataclass_fields__}
    is_plain = value is None or isinstance(value, str | bool | int)
    return value if is_plain or (isinstance(value, float) and math.isfinite(value)) else str(value)


def _key(key: object) -> str:
    """A key as json writes it, so that null and true are read again as what they are."""
    return json.dumps(key) if key is None or isinstance(key, bool) else str(key)


def console(stream: IO[str] | None = None) -> Console:
    """rich's console for a stream, standard output by default."""
    from rich.console import Console

    class Piped(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError  # rich would end the process with the code that means "no" here

    made = Piped(file=stream or sys.stdout, highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.width = _PIPED_WIDTH
    return made


def show(*pictures: RenderableType) -> None:
    """Draws on standard output."""
    target = console()
    for picture in pictures:
        target.print(picture)


def show_table(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Sequence[str] = ()) -> None:
    """Rows below their headings, in columns; never cut off where the output is no terminal.

    Args:
        columns: headings.
        rows: one cell for each column.
        right: headings of columns that are aligned to the right.
    """
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    cells = [[one_line(str(cell)) for cell in row] for row in rows]
    for row in cells:
        table.add_row(*row)
    target = console()
    if not target.is_terminal:
        target.width = sum(max(map(len, column)) + 2 for column in zip(columns, *cells, strict=True))
    target.print(table)
