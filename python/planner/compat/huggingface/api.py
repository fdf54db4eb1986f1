"""`integrate()`, `install()` and `uninstall()`: our planner behind ``device_map="auto"``."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Final, Literal, Unpack

from planner.compat.huggingface.in_force import Integration, install_for_all, uninstall_for_all
from planner.dispatching.api import require_outside
from planner.errors import InvalidInputError
from planner.names import listed
from planner.planning.understanding import settings_stack
from planner.settings.keywords import PlanSettings
from planner.spelling import shown

__all__ = ["install", "integrate", "uninstall"]

# What `from_pretrained` is told itself, and would not hear of here.
_SAID_ELSEWHERE: Final = {
    "dtype": "write it into from_pretrained(…, dtype=…), which loads by it and is planned by it",
    "special_dtypes": "which modules stay in float32 is the model class's to say, and is planned by it",
    "offload_folder": "write it into from_pretrained(…, offload_folder=…)",
    "offload_buffers": "write it into from_pretrained(…, offload_buffers=…)",
}


def integrate(
    *,
    auto: Literal["best", "transformers"] = "best",
    outside: Literal["raise", "fetch"] = "fetch",
    **settings: Unpack[PlanSettings],
) -> Integration:
    """Puts our planner and our dispatch in the place of transformers' own, as a context manager.

    Inside, ``from_pretrained(…, device_map="auto")`` is planned and carried out by ours, and so are a plan, ``plan.device_map`` and
    any other mapping; adapters of PEFT go where their layers run. In other threads and tasks nothing changes.

    Args:
        auto: what ``device_map="auto"`` means: :func:`planner.plan` ("best"), or the map that transformers would make, by our
            functions ("transformers"). "balanced", "balanced_low_0" and "sequential" name strategies of transformers, and give its
            maps.
        outside: what reading an offloaded weight outside of its module's forward gives: the values ("fetch"), or an error
            ("raise").
        settings: as for :func:`planner.plan`: ``headroom``, ``mode``, ``pin``, …

    Returns:
        What ``with … as here`` gives, with ``plans`` and ``sites``. It may be entered again, and inside of itself.

    Raises:
        InvalidConfigError: settings that are wrong, all at once. Fields: ``problems``.
        InvalidInputError: another word for ``auto`` or ``outside``; a setting that would be without effect: ``dtype`` and what else
            ``from_pretrained`` takes itself, and with ``auto="transformers"`` all but ``max_memory``.
        IntegrationError: on entering, a library that ours was not written for. Fields: ``library``, ``version``, ``problems``.

    Guarantee: nothing is replaced where anything does not fit. When it is left, in whatever order, thread or context, what was
        replaced is as before, but for what others have put there meanwhile. Models that were loaded inside keep working.
    """
    return _integration(auto, outside, settings)


def install(
    *,
    auto: Literal["best", "transformers"] = "best",
    outside: Literal["raise", "fetch"] = "fetch",
    **settings: Unpack[PlanSettings],
) -> Integration:
    """Puts our planner and our dispatch in the place of transformers' own, for the whole process and all threads.

    Args:
        auto, outside, settings: as for :func:`planner.integrate`. Other ones take the place of those from before.

    Returns:
        What is in force wherever no :func:`planner.integrate` is.

    Raises:
        As :func:`planner.integrate`.
    """
    return install_for_all(_integration(auto, outside, settings))


def uninstall() -> None:
    """Takes out what :func:`planner.install` has put in; nothing happens if nothing is installed."""
    uninstall_for_all()


def _integration(auto: Any, outside: Any, settings: Mapping[str, Any]) -> Integration:
    """Checked before anything is replaced, and a copy of its own. Raises InvalidInputError, InvalidConfigError."""
    _require_auto(auto)
    require_outside(outside)
    said = settings_stack(None, settings)
    said.resolve()
    _require_effect(auto, settings)
    return Integration(auto=auto, outside=outside, settings=copy.deepcopy(dict(settings)), said=said)


def _require_auto(auto: Any) -> None:
    if not (isinstance(auto, str) and auto in ("best", "transformers")):
        raise InvalidInputError(f"auto is 'best' or 'transformers', not {shown(auto)}")


def _require_effect(auto: str, settings: Mapping[str, Any]) -> None:
    """Raises InvalidInputError for settings that no load would heed."""
    said = [name for name, value in settings.items() if value is not None]
    elsewhere = [
        f"{name}= would be without effect: {_SAID_ELSEWHERE[name]}"
        for name in said
        if name in _SAID_ELSEWHERE
    ]
    if elsewhere:
        raise InvalidInputError("; ".join(elsewhere))
    unheeded = [name for name in said if name != "max_memory"]
    if auto == "transformers" and unheeded:
        raise InvalidInputError(
            f"{listed(f'{name}=' for name in unheeded)} would be without effect: auto='transformers' gives transformers' maps, which "
            "know max_memory alone; leave auto away, or say less in max_memory"
        )
