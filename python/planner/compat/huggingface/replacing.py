"""Putting ours in the place of other libraries' functions, and taking out what is still ours."""

from __future__ import annotations

import functools
import importlib
import inspect
import logging
import sys
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Final, TypeAlias

from planner.compat.huggingface.sites import (
    GROUPS,
    REQUIRED,
    CallSite,
    Function,
    Group,
    Site,
    misfit,
    site_of,
)
from planner.compat.huggingface.watching import Watcher
from planner.errors import IntegrationError

__all__ = ["LOCK", "Decide", "put_in", "sites", "take_out"]

logger = logging.getLogger(__name__)

Decide: TypeAlias = Callable[[tuple[object, ...]], object]
"""What is in force for a call with these arguments; None for what is replaced."""

LOCK: Final = threading.RLock()
"""Held while something is put in or taken out. Nothing is imported meanwhile: an import that is watched waits for it."""


@dataclass(eq=False, slots=True)
class _StandIn:
    """A function of ours in the place of another one."""

    holder: ModuleType | type
    name: str
    before: Function
    site: Site
    ours: Function = field(init=False)
    is_retired: bool = False

    def is_there(self) -> bool:
        """Whether it is called: it is in its place, or below wrappers that say what they wrap."""
        found: object = vars(self.holder).get(self.name)
        seen = 0
        while found is not None and found is not self.ours and seen < _MOST_WRAPPERS:
            found, seen = getattr(found, "__wrapped__", None), seen + 1
        return found is self.ours

    def retire(self) -> None:
        """Passes everything on from now, and gives its place back if nobody has taken it."""
        self.is_retired = True
        if vars(self.holder).get(self.name) is self.ours:
            setattr(self.holder, self.name, self.before)


_MOST_WRAPPERS: Final = 100


@dataclass(slots=True)
class _State:
    """Who wants ours in place, and what is."""

    holders: list[object] = field(default_factory=list)
    stand_ins: dict[CallSite, _StandIn] = field(default_factory=dict)
    # Modules whose code has run, though Python calls them unfinished while the watcher is told.
    told: set[str] = field(default_factory=set)
    decide: Decide = lambda arguments: None


_state: Final = _State()


def sites() -> tuple[Site, ...]:
    """What is replaced now."""
    return tuple(each.site for each in _state.stand_ins.values())


def put_in(holder: object, decide: Decide) -> None:
    """Ours stands in all places of the libraries that are loaded, until this holder and all others take it out.

    Raises:
        IntegrationError: a library is not there, or not one that ours was written for. Fields: ``library``, ``version``,
            ``problems``.

    Guarantee: nothing is replaced where anything does not fit. A holder that was there before stays one.
    """
    was_there = any(each is holder for each in _state.holders)
    try:
        with LOCK:
            _state.decide = decide
            _state.holders.append(holder)
            _watcher.start()  # before it is asked what is loaded, so that nothing is loaded in between
        _import_all()
        with LOCK:
            _put_in([group for group in GROUPS if group is REQUIRED or _is_loaded(group)])
    except BaseException:
        if not was_there:
            take_out(holder)
        raise


def take_out(holder: object) -> None:
    """The last holder gives the places back; done twice, it does nothing."""
    with LOCK:
        _state.holders[:] = [each for each in _state.holders if each is not holder]
        if _state.holders:
            return
        _watcher.stop()
        while _state.stand_ins:
            site = next(reversed(_state.stand_ins))
            _state.stand_ins[site].retire()
            del _state.stand_ins[site]
        _state.told.clear()


def _import_all() -> None:
    """Imports what is needed, and waits for what other threads are importing."""
    begun = {name for group in GROUPS for name in group.modules if name in sys.modules}
    for name in sorted(REQUIRED.modules | begun):
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise misfit(name.partition(".")[0], [f"{name} cannot be imported: {error}"]) from error


def _is_loaded(group: Group) -> bool:
    return all(_has_run(name) for name in group.modules)


def _has_run(name: str) -> bool:
    module = sys.modules.get(name)
    is_running = getattr(getattr(module, "__spec__", None), "_initializing", False)
    return module is not None and (not is_running or name in _state.told)


def _put_in(groups: Iterable[Group]) -> None:
    """Ours in all places of these libraries where it is not yet. Raises IntegrationError, with nothing put in."""
    lacking = [(group, [site for site in group.sites if not _is_in_place(site)]) for group in groups]
    for group, call_sites in lacking:
        problems = [problem for site in call_sites if (problem := site.problem()) is not None]
        if problems:
            raise misfit(group.library, problems)
    for group, call_sites in lacking:
        for call_site in call_sites:
            _replace(call_site, site_of(call_site, group.library))


def _is_in_place(call_site: CallSite) -> bool:
    stand_in = _state.stand_ins.get(call_site)
    return stand_in is not None and stand_in.holder is call_site.holder() and stand_in.is_there()


def _replace(call_site: CallSite, site: Site) -> None:
    holder, found = call_site.holder(), call_site.found()
    assert holder is not None and found is not None, "it has no problem"
    earlier = _state.stand_ins.get(call_site)
    if earlier is not None:  # somebody has put back what had been there before
        earlier.retire()
    stand_in = _standing_in(call_site, site, holder, _unwrapped(found))
    _state.stand_ins[call_site] = stand_in
    setattr(holder, call_site.name, stand_in.ours)


def _unwrapped(found: Function) -> Function:
    """What is below what we left in a place that somebody had put back after we had gone."""
    stand_in = getattr(found, "_planner_stand_in", None)
    while isinstance(stand_in, _StandIn) and stand_in.ours is found:
        found = stand_in.before
        stand_in = getattr(found, "_planner_stand_in", None)
    return found


def _standing_in(call_site: CallSite, site: Site, holder: ModuleType | type, before: Function) -> _StandIn:
    stand_in = _StandIn(holder, call_site.name, before, site)

    @functools.wraps(before)
    def ours(*args: object, **kwargs: object) -> object:
        integration = None if stand_in.is_retired else _state.decide((*args, *kwargs.values()))
        if integration is None:
            return before(*args, **kwargs)
        return _role(call_site.role)(integration, before, *args, **kwargs)

    # PEFT and transformers ask for the parameters of what they call.
    vars(ours).update(__signature__=inspect.signature(before), _planner_stand_in=stand_in)
    stand_in.ours = ours
    return stand_in


def _role(role: str) -> Function:
    """The function of ours for a place; loaded when it is first called."""
    module, _, name = role.partition(":")
    found: Function = getattr(importlib.import_module(f"{__package__}.{module}"), name)
    return found


def _imported(name: str) -> None:
    """Puts ours into a library that was loaded meanwhile. Raises IntegrationError where ours is in force for who loads it."""
    with LOCK:
        _state.told.add(name)
        groups = [group for group in GROUPS if name in group.modules and _is_loaded(group)]
        if not _state.holders:
            return
        try:
            _put_in(groups)
        except IntegrationError as error:
            if _state.decide(()) is not None:
                raise
            logger.warning("%s", error)


_watcher: Final = Watcher((name for group in GROUPS for name in group.modules), _imported)
