"""Signs of life: what each process of a pipeline is doing, told to the others while its main thread waits or computes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from threading import Event, Thread
from typing import Final, Literal

import torch.distributed as dist

__all__ = ["Doing", "SeenSign", "Sign", "Signs"]

Doing = Literal["preparing", "idle", "waiting", "computing", "cut off", "closed"]

_BEATS_A_TIMEOUT: Final = 20
_LONGEST_S: Final = 1.0
# Signs that may be late before a process counts as lost.
_MISSED: Final = 4


@dataclass(frozen=True, slots=True)
class Sign:
    """What a process is doing.

    Args:
        call: which call of the pipeline, from 1 on; 0 before the first.
        step: which forward of it, from 1 on; 0 before the first.
        doing: "computing" is its own work, "waiting" for the others' while it is in a call, "idle" outside of calls; "cut off" is one
            whose connections have ended, and who looks for the one to blame.
        done: of what takes as long as it takes, how much is done: another number whenever it goes on.
    """

    call: int = 0
    step: int = 0
    doing: Doing = "preparing"
    done: int = 0


@dataclass(frozen=True, slots=True)
class SeenSign:
    """The last sign of another process.

    Args:
        rank: whose.
        sign: what it was doing.
        silent_s: since when no sign has come.
        same_s: since when it is doing this.
    """

    rank: int
    sign: Sign
    silent_s: float
    same_s: float


@dataclass(slots=True)
class _Row:
    text: bytes
    sign: Sign
    came_s: float
    changed_s: float


class Signs:
    """The signs of all processes of a pipeline. A thread tells this one's, and looks at the others'.

    Args:
        store: what all have; one that may be used from another thread.
        rank: this process.
        count: how many there are.
        timeout_s: how long a process waits for another; signs come in a small part of it.
    """

    def __init__(self, store: dist.Store, rank: int, count: int, timeout_s: float) -> None:
        self.mine = Sign()
        self.every_s = min(_LONGEST_S, timeout_s / _BEATS_A_TIMEOUT)
        self.store_error: RuntimeError | None = None
        self._store = store.clone() if hasattr(store, "clone") else store
        self._rank, self._others = rank, [other for other in range(count) if other != rank]
        self._rows: dict[int, _Row] = {}
        self._beats = 0
        self._looked_s = time.monotonic()
        self._ended, self._wake = Event(), Event()
        self._thread = Thread(target=self._run, name="planner: signs of life", daemon=True)

    @property
    def patience_s(self) -> float:
        """How long a process may be silent before it counts as lost."""
        return _MISSED * self.every_s

    def begin(self) -> None:
        """Tells the first sign, and goes on until :meth:`end`."""
        self._tell()
        if self._others:
            self._thread.start()

    def end(self, doing: Doing = "closed") -> None:
        """Tells the last one, where somebody hears it."""
        self._ended.set()
        self._wake.set()
        self.mine = Sign(self.mine.call, self.mine.step, doing)
        # Only then is it known whether the store does not answer, or the thread had no turn for a while.
        if self._thread.is_alive():
            self._thread.join(self.patience_s)
        if self.is_blind:
            return
        try:
            self._tell()
        except RuntimeError as error:
            self.store_error = error  # who kept it has gone before

    @property
    def is_blind(self) -> bool:
        """Whether the others' signs cannot be seen: the store that they are told to does not answer."""
        return self.store_error is not None or (
            self._thread.is_alive() and time.monotonic() - self._looked_s > self.patience_s
        )

    def seen(self) -> Iterator[SeenSign]:
        """What is known of the others that have told a sign, as of when they were looked at."""
        for rank, row in sorted(self._rows.items()):
            yield SeenSign(rank, row.sign, self._looked_s - row.came_s, self._looked_s - row.changed_s)

    def lost(self) -> list[SeenSign]:
        """The processes whose signs have stopped to come, first the one that is to blame: others end with it, or are ended.

        Who was cut off before is not to blame, and of the rest it is who has been silent for longest.
        """
        silent = [
            each for each in self.seen() if each.silent_s > self.patience_s and each.sign.doing != "closed"
        ]
        return sorted(silent, key=lambda each: (each.sign.doing == "cut off", -each.silent_s))

    def cut_off(self) -> None:
        """Tells at once that this process's connections have ended."""
        self.mine = Sign(self.mine.call, self.mine.step, "cut off")
        self._wake.set()

    def _run(self) -> None:
        while True:
            self._wake.wait(self.every_s)
            self._wake.clear()
            if self._ended.is_set():
                return
            try:
                self._tell()
                for rank in self._others:
                    self._look_at(rank)
                self._looked_s = time.monotonic()
            except RuntimeError as error:  # of torch's stores, when the process that keeps it is gone
                self.store_error = error
                return

    def _tell(self) -> None:
        self._beats += 1
        self._store.set(_key(self._rank), json.dumps([self._beats, *astuple(self.mine)]))

    def _look_at(self, rank: int) -> None:
        if not self._store.check([_key(rank)]):
            return
        text, now_s = self._store.get(_key(rank)), time.monotonic()
        row = self._rows.get(rank)
        if row is not None and row.text == text:
            return
        sign = Sign(*json.loads(text)[1:])
        changed_s = row.changed_s if row is not None and row.sign == sign else now_s
        self._rows[rank] = _Row(text, sign, now_s, changed_s)


def _key(rank: int) -> str:
    return f"sign/{rank}"
