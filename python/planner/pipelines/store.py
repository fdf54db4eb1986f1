"""What the processes of a pipeline tell each other, by a store that may be gone or stand still."""

from __future__ import annotations

from collections.abc import Callable
from queue import SimpleQueue
from threading import Event, Thread

import torch.distributed as dist

__all__ = ["AnsweringStore", "StoreGoneError"]


class StoreGoneError(Exception):
    """Who keeps a store has ended, or does not answer."""


class AnsweringStore:
    """A store whose answers are waited for only so long: torch's own clients wait for ever where their server is stopped.

    Args:
        store: what all have.
        timeout_s: how long an answer is waited for.

    Raises of each method:
        StoreGoneError: no answer.
    """

    def __init__(self, store: dist.Store, timeout_s: float) -> None:
        self._store, self._timeout_s = store, timeout_s
        self._asked: SimpleQueue[_Question | None] = SimpleQueue()
        self._is_gone = False
        self._thread = Thread(target=self._run, name="planner: store", daemon=True)
        self._thread.start()

    def get(self, key: str) -> bytes | None:
        """A value, None where there is none."""
        return self._ask(lambda: self._store.get(key) if self._store.check([key]) else None)

    def set(self, key: str, value: str) -> None:
        """Sets a value."""
        self._ask(lambda: self._store.set(key, value))

    def first(self, key: str, value: str) -> bytes:
        """Sets a value where there is none; returns what is there then."""
        found = self._ask(lambda: self._store.compare_set(key, "", value))
        return value.encode() if found is None else found

    def close(self) -> None:
        """Ends what asks."""
        self._asked.put(None)

    def _ask(self, action: Callable[[], bytes | None]) -> bytes | None:
        if self._is_gone:
            raise StoreGoneError("it did not answer before")
        question = _Question(action)
        self._asked.put(question)
        self._is_gone = not question.answered.wait(self._timeout_s)
        if self._is_gone:
            raise StoreGoneError(f"no answer within {self._timeout_s:g} s")
        if question.error is not None:
            raise StoreGoneError(str(question.error)) from question.error
        return question.answer

    def _run(self) -> None:
        while (question := self._asked.get()) is not None:
            try:
                question.answer = question.action()
            except RuntimeError as error:  # of torch's stores
                question.error = error
            question.answered.set()


class _Question:
    def __init__(self, action: Callable[[], bytes | None]) -> None:
        self.action = action
        self.answered = Event()
        self.answer: bytes | None = None
        self.error: RuntimeError | None = None
