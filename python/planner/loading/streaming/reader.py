"""The thread that reads blocks: one a model, which knows tickets, files and buffers, and nothing of the model."""

from __future__ import annotations

import atexit
import logging
import threading
import time
import weakref
from collections import deque
from queue import SimpleQueue
from typing import Final, NamedTuple, Protocol, TypeAlias

from planner.loading.streaming.buffers import BufferPlan, Lease, PageBuffers
from planner.loading.streaming.counters import StreamingCounters
from planner.loading.streaming.files import ReadableFiles
from planner.loading.streaming.making import make_tensors
from planner.loading.streaming.ticket import Ticket

__all__ = ["Reader", "ReadsItself"]

logger = logging.getLogger(__name__)

# How often one who waits looks whether the reader is still there.
_LOOK_SECONDS: Final = 0.5
# How long the interpreter's end waits for a read that is under way.
_END_SECONDS: Final = 10.0


class _Asked(NamedTuple):
    """A ticket to be read when its turn comes."""

    ticket: weakref.ref[Ticket]


class ReadsItself(Protocol):
    """A ticket that needs none of the reader's buffers."""

    def read_ahead(self) -> None:
        """Reads it, if nobody does; errors are kept for the one who waits."""


class _Sent(NamedTuple):
    """A ticket that reads itself when its turn comes."""

    ticket: weakref.ref[ReadsItself]


class _Awaited(NamedTuple):
    """A ticket that a forward waits for from now on."""

    ticket: weakref.ref[Ticket]


class _Made(NamedTuple):
    """Buffers are to be made before they are needed, or dropped."""

    is_wanted: bool


# A lease comes when its buffer is free; None is the end.
_Message: TypeAlias = _Asked | _Sent | _Awaited | _Made | Lease | None


class Reader:
    """Reads tickets in the order in which they were asked for, each as soon as a buffer is free.

    Args:
        files: where from.
        plan: of the buffers.
        counters: what was done is counted there.

    Guarantee: nobody waits for a reader that has ended, or for a buffer that is not going to be free: a ticket that is waited for and
        has none is left to the views.
    """

    def __init__(self, files: ReadableFiles, plan: BufferPlan, counters: StreamingCounters) -> None:
        # Putting something in is allowed everywhere, also where the collector runs in the middle of it.
        self._inbox: SimpleQueue[_Message] = SimpleQueue()
        buffers = PageBuffers(plan, self._inbox.put)
        self._counters = counters
        self._thread = threading.Thread(
            target=_serve,
            args=(self._inbox, files, buffers, counters),
            name="planner-reader",
            daemon=True,
        )
        self._thread.start()
        _running.add(self)

    @property
    def is_alive(self) -> bool:
        """Whether it still reads. In a forked child there is no such thread."""
        return self._thread.is_alive()

    def ask(self, ticket: Ticket) -> None:
        """Lets a ticket be read; whoever has it may drop it at any time."""
        self._inbox.put(_Asked(weakref.ref(ticket)))

    def send(self, ticket: ReadsItself) -> None:
        """Lets a ticket read itself; whoever has it may drop it at any time."""
        self._inbox.put(_Sent(weakref.ref(ticket)))

    def make_buffers(self) -> None:
        """Makes the buffers before they are needed."""
        self._inbox.put(_Made(True))

    def drop_buffers(self) -> None:
        """Gives back the memory of buffers that are not in use."""
        self._inbox.put(_Made(False))

    def wait(self, ticket: Ticket) -> None:
        """Waits until a ticket is done, or the reader has ended."""
        if ticket.is_done:
            return
        began = time.monotonic()
        self._inbox.put(_Awaited(weakref.ref(ticket)))
        # In a forked child it is not alive, and may have left the ticket's lock taken.
        while not ticket.is_done and self.is_alive:
            ticket.wait(_LOOK_SECONDS)
        self._counters.count_wait(time.monotonic() - began)

    def end(self) -> None:
        """Ends it after what it reads now; does not wait for that."""
        self._inbox.put(None)

    def join(self) -> None:
        """Waits until it has ended."""
        if self._thread is not threading.current_thread():
            self._thread.join(_END_SECONDS)


_running: weakref.WeakSet[Reader] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """A thread that comes back from native code after the interpreter's end cannot go anywhere."""
    readers = list(_running)
    for reader in readers:
        reader.end()
    for reader in readers:
        if reader.is_alive:
            reader.join()


def _serve(
    inbox: SimpleQueue[_Message],
    files: ReadableFiles,
    buffers: PageBuffers,
    counters: StreamingCounters,
) -> None:
    """The thread."""
    pending: deque[weakref.ref[Ticket]] = deque()
    while True:
        message = inbox.get()
        if message is None:
            break
        if isinstance(message, weakref.ReferenceType):
            buffers.take_back(message)
        elif isinstance(message, _Made):
            _make(buffers, counters, is_wanted=message.is_wanted)
        elif isinstance(message, _Asked):
            pending.append(message.ticket)
        elif isinstance(message, _Sent):
            _let_read(message.ticket)
        message_ticket = message.ticket if isinstance(message, _Awaited) else None
        message = None
        _read_pending(pending, files, buffers, counters)
        if message_ticket is not None and message_ticket in pending:
            _leave(message_ticket)
    for left in pending:
        _leave(left)


def _leave(reference: weakref.ref[Ticket]) -> None:
    ticket = reference()
    if ticket is not None:
        ticket.leave()


def _let_read(reference: weakref.ref[ReadsItself]) -> None:
    ticket = reference()
    if ticket is not None:
        ticket.read_ahead()


def _make(buffers: PageBuffers, counters: StreamingCounters, *, is_wanted: bool) -> None:
    if is_wanted:
        try:
            buffers.make()
        except MemoryError as error:
            logger.info("no memory for reading ahead: %s", error)
    else:
        buffers.drop_free()
    counters.note_buffers(buffers.huge_bytes, buffers.size_bytes)


def _read_pending(
    pending: deque[weakref.ref[Ticket]],
    files: ReadableFiles,
    buffers: PageBuffers,
    counters: StreamingCounters,
) -> None:
    """Reads as long as there are tickets that somebody has, and free buffers for them."""
    while pending:
        ticket = pending[0]()
        if ticket is not None and not ticket.is_done:
            before_bytes = buffers.size_bytes
            memory = None
            if ticket.layout is not None:
                memory = _lent(buffers, ticket.layout.room_bytes)
                if memory is None:
                    return
            _read(ticket, memory, files, counters)
            memory = None
            if buffers.size_bytes != before_bytes:
                # Afterwards, because looking takes milliseconds, and somebody may wait for the read.
                counters.note_buffers(buffers.huge_bytes, buffers.size_bytes)
        del ticket
        pending.popleft()


def _lent(buffers: PageBuffers, room_bytes: int) -> memoryview | None:
    try:
        return buffers.lend(room_bytes)
    except MemoryError as error:
        logger.info("no memory for reading ahead: %s", error)
        return None


def _read(
    ticket: Ticket, memory: memoryview | None, files: ReadableFiles, counters: StreamingCounters
) -> None:
    read_bytes = sum(span.end - span.begin for span in ticket.paged)
    direct_bytes = 0
    try:
        if ticket.paged:
            files.page_in(ticket.paged)
        if ticket.layout is not None and memory is not None:
            if ticket.is_direct or ticket.paged:
                done = files.read_spans(ticket.layout.spans, memory, direct=ticket.is_direct)
                read_bytes, direct_bytes = max(read_bytes, done[0]), done[1]
            else:
                files.copy_spans(ticket.layout.spans, memory)
            make_tensors(ticket.layout, memory)
    except BaseException as error:  # noqa: BLE001 (raised where the block is waited for)
        ticket.leave(error.with_traceback(None))
        return
    if ticket.is_direct or ticket.paged:
        counters.count_read(read_bytes, direct_bytes)
    else:
        counters.count_cached()
    if memory is None:
        ticket.leave()
    else:
        ticket.fill(memory)
