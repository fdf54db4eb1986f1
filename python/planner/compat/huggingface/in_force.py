"""Which integration decides where: in the context that entered it, else in the whole process."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from planner.compat.huggingface import replacing
from planner.compat.huggingface.aside import reason_to_step_aside
from planner.errors import InvalidInputError

if TYPE_CHECKING:
    from torch import nn

    from planner.compat.huggingface.sites import Site
    from planner.config import Stack
    from planner.plans.plan import Plan
    from planner.settings.schema import Settings

__all__ = ["Integration", "in_force", "install_for_all", "plan_of", "uninstall_for_all"]

logger = logging.getLogger(__name__)


class Integration:
    """Our planner and our dispatch in the place of transformers', from entering to leaving.

    Made by :func:`planner.integrate` and :func:`planner.install`. As a context manager it may be entered again, also inside of
    itself and from several threads.

    Args:
        auto: what ``device_map="auto"`` means: a plan of ours ("best"), or transformers' map by our functions.
        outside: what reading an offloaded weight outside of its module's forward gives, as for :func:`planner.dispatch`.
        settings: keywords of :func:`planner.plan`.
        said: the same as a configuration that remembers who said what.
    """

    def __init__(
        self,
        *,
        auto: Literal["best", "transformers"],
        outside: Literal["raise", "fetch"],
        settings: Mapping[str, Any],
        said: Stack[Settings],
    ) -> None:
        self.auto = auto
        self.outside = outside
        self.settings = MappingProxyType(dict(settings))
        self.said = said
        self._plans: list[Plan] = []
        self._sites: tuple[Site, ...] = ()
        self._entries: list[_Entry] = []
        self._logged: set[str] = set()

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plans that models were loaded by while this was in force, newest last."""
        return tuple(self._plans)

    @property
    def sites(self) -> tuple[Site, ...]:
        """What is replaced, with its module and the version of its library; after leaving, what was."""
        with replacing.LOCK:
            return replacing.sites() if self._entries else self._sites

    def note(self, model: nn.Module, plan: Plan) -> None:
        """Remembers by which plan a model is loaded. Guarantee: the model is not kept alive."""
        self._plans.append(plan)
        _PLANS.put(model, plan)

    def _is_as(self, other: Integration) -> bool:
        """Whether both were asked for the same."""
        asked = (self.auto, self.outside, self.settings)
        return asked == (other.auto, other.outside, other.settings)

    def _is_first(self, line: str) -> bool:
        """Whether a line of the log is one that this integration has not written yet."""
        with replacing.LOCK:
            is_first = line not in self._logged
            self._logged.add(line)
        return is_first

    def __enter__(self) -> Self:
        """In force for this context. Raises IntegrationError, with nothing replaced."""
        entry = _Entry(self, _newest())
        try:
            self._put_in(entry)
            _ENTERED.set(entry)
        except BaseException:
            self._take_out(entry)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """In force for this context no more. Raises InvalidInputError if it had not been entered."""
        entry = None
        with replacing.LOCK:
            try:
                entry = self._left()
                self._end(entry)
            except InvalidInputError:
                raise
            except BaseException:  # an interrupt; what was begun is ended first
                self._end(entry or self._left())
                raise

    def _end(self, entry: _Entry) -> None:
        self._take_out(entry)
        if _ENTERED.get() is entry:
            _ENTERED.set(_newest())

    def _put_in(self, entry: _Entry) -> None:
        replacing.put_in(entry, _deciding)
        with replacing.LOCK:
            self._entries.append(entry)
            entry.is_over = False

    def _take_out(self, entry: _Entry) -> None:
        """Done twice, it does nothing: an interrupt may come between any two lines."""
        with replacing.LOCK:
            entry.is_over = True
            self._sites = replacing.sites()
            self._entries = [each for each in self._entries if each is not entry]
            replacing.take_out(entry)

    def _left(self) -> _Entry:
        """The entry that ends: the newest of this context; of any, if it was entered in another one."""
        entry = _ENTERED.get()
        while entry is not None and (entry.is_over or entry.integration is not self):
            entry = entry.earlier
        if entry is not None:
            return entry
        entered = [each for each in self._entries if each not in _INSTALLED]
        if not entered:
            raise InvalidInputError("the integration is left, and had not been entered")
        return entered[-1]


@dataclass(eq=False, slots=True)
class _Entry:
    """One entering of an integration, in one context."""

    integration: Integration
    earlier: _Entry | None
    is_over: bool = True


_ENTERED: ContextVar[_Entry | None] = ContextVar("planner_integration", default=None)


def _newest() -> _Entry | None:
    """The newest entry of this context that is not over. Contexts that were copied may have entries that others ended."""
    entry = _ENTERED.get()
    while entry is not None and entry.is_over:
        entry = entry.earlier
    return entry


# What is installed for the whole process; the last one counts. Others are there only while one takes the place of another.
_INSTALLED: Final[list[_Entry]] = []


def install_for_all(integration: Integration) -> Integration:
    """In force in every context and thread that has entered none. Raises IntegrationError, with nothing replaced.

    Returns:
        What is in force there: what had been before, if that was asked for the same.
    """
    before = _installed()
    if before is not None and before.integration._is_as(integration) and _is_put_back(before):
        return before.integration
    entry = _Entry(integration, None)
    try:
        integration._put_in(entry)
        _INSTALLED.append(entry)
    except BaseException:
        integration._take_out(entry)
        raise
    with replacing.LOCK:
        _uninstall(_INSTALLED[: _INSTALLED.index(entry)] if entry in _INSTALLED else [])
    return integration


def uninstall_for_all() -> None:
    """In force for the whole process no more; nothing happens if nothing was."""
    with replacing.LOCK:
        _uninstall(list(_INSTALLED))


def _installed() -> _Entry | None:
    return next((entry for entry in reversed(_INSTALLED) if not entry.is_over), None)


def _uninstall(entries: list[_Entry]) -> None:
    for entry in entries:
        entry.integration._take_out(entry)
        _INSTALLED.remove(entry)


def _is_put_back(entry: _Entry) -> bool:
    """Puts in again what others have taken out; False if another thread has uninstalled it meanwhile."""
    try:
        replacing.put_in(entry, _deciding)
    finally:
        with replacing.LOCK:
            if entry.is_over:
                replacing.take_out(entry)
    return not entry.is_over


def in_force() -> Integration | None:
    """What decides in this context."""
    entry = _newest() or _installed()
    return None if entry is None else entry.integration


def _deciding(arguments: tuple[object, ...]) -> Integration | None:
    """What decides for a call in this context; None where something else than a device map distributes the model."""
    integration = in_force()
    reason = None if integration is None else reason_to_step_aside(arguments)
    if integration is None or reason is None:
        return integration
    if integration._is_first(reason):
        logger.warning("planner steps aside: %s", reason)
    return None


class _PlansByModel:
    """Plans by the identity of their model: a model's class may have an equality of its own."""

    def __init__(self) -> None:
        self._rows: dict[int, tuple[weakref.ref[nn.Module], Plan]] = {}

    def put(self, model: nn.Module, plan: Plan) -> None:
        key = id(model)

        def forget(reference: weakref.ref[nn.Module]) -> None:
            row = self._rows.get(key)
            if row is not None and row[0] is reference:  # the number may be another model's by now
                del self._rows[key]

        self._rows[key] = (weakref.ref(model, forget), plan)

    def get(self, model: object) -> Plan | None:
        row = self._rows.get(id(model))
        return row[1] if row is not None and row[0]() is model else None


_PLANS = _PlansByModel()


def plan_of(model: nn.Module) -> Plan | None:
    """The plan that a model was loaded by, inside of :func:`planner.integrate` or :func:`planner.install`.

    Args:
        model: the very object that was loaded.

    Returns:
        Also where all of it fits one device; None of a model that was loaded by another map, or by none.

    Guarantee: no model is kept alive.
    """
    return _PLANS.get(model)
