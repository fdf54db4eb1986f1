"""Where all processes of a pipeline say something and hear what the others have said, without their connections."""

from __future__ import annotations

import json
import time
from typing import Any, Final

from planner.errors import PipelineError
from planner.pipelines.failing import Failing, Failure
from planner.pipelines.store import AnsweringStore, StoreGoneError

__all__ = ["Meetings"]

_FIRST_S: Final = 0.0002
_LONGEST_S: Final = 0.05
# Whatever the time-out, how long a process that makes its stage may get no further: large modules are imported in one go.
_STANDING_S: Final = 60.0


class Meetings:
    """Meetings of all processes.

    Args:
        store: what all have.
        rank: this process.
        count: how many there are.
        failing: says why one does not come.
        timeout_s: how long one waits for another that gives signs of life.
    """

    def __init__(
        self, store: AnsweringStore, rank: int, count: int, failing: Failing, timeout_s: float
    ) -> None:
        self._store, self._rank, self._count = store, rank, count
        self._failing, self._timeout_s = failing, timeout_s

    def hold(self, name: str, number: int, note: Any, *, is_patient: bool = False) -> list[Any]:
        """Says a note, and waits for those of all others.

        Args:
            name: what it is about.
            number: which meeting of this name, one after the other.
            note: what this process says, as JSON.
            is_patient: whether the others may take as long as they like, while they get on.

        Returns:
            The notes by rank.

        Raises:
            PipelineError: one has failed, is gone, or does not come.
        """
        # Nobody is two meetings ahead, so two keys are enough however often they meet.
        key = f"{name}/{number % 2}"
        until_s = time.monotonic() + self._timeout_s
        try:
            self._store.set(f"{key}/{self._rank}", json.dumps([number, note]))
            return [
                note
                if rank == self._rank
                else self._heard(f"{key}/{rank}", rank, number, until_s, is_patient)
                for rank in range(self._count)
            ]
        except StoreGoneError as error:
            raise self._failing.without_store() from error

    def _heard(self, key: str, rank: int, number: int, until_s: float, is_patient: bool) -> Any:
        pause_s, looked_s = _FIRST_S, time.monotonic()
        while True:
            said = self._store.get(key)
            if said is not None:
                found, note = json.loads(said)
                if found == number:
                    return note
            now_s = time.monotonic()
            if now_s - looked_s > _LONGEST_S:
                looked_s = now_s
                self._require_coming(rank, until_s, is_patient)
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_S)

    def _require_coming(self, rank: int, until_s: float, is_patient: bool) -> None:
        gone = self._failing.absent(rank)
        standing_s = self._failing.standing_s(rank) if is_patient else None
        if gone is None and standing_s is not None:
            if standing_s > max(self._timeout_s, _STANDING_S):
                said = f"has got no further for {standing_s:.0f} s while it made its stage: it hangs, or what it reads does not come"
                gone = self._failing.tell(Failure(rank, None, said))
        elif gone is None and time.monotonic() > until_s:
            said = (
                f"did not come within timeout_s={self._timeout_s:g} to where the others wait for it: every rank has to make the same"
                " calls of a pipeline"
            )
            gone = self._failing.tell(Failure(rank, None, said))
        if gone is not None:
            raise PipelineError(gone.message, **gone.fields)
