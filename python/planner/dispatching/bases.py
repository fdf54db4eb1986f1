"""accelerate's classes where accelerate is installed, so that ``isinstance`` in other libraries knows ours."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

__all__ = ["hook_base", "weights_base"]

logger = logging.getLogger(__name__)


def hook_base(name: str) -> Any:
    """accelerate's class of a name; an empty one where accelerate is not installed. Nothing else of it is used."""
    try:
        from accelerate import hooks
    except ImportError as error:
        logger.debug("hooks stand alone, accelerate is not installed: %s", error)
        return type(name, (), {})
    return getattr(hooks, name)


def weights_base(name: str) -> Any:
    """accelerate's class of offloaded weights; a plain mapping where accelerate is not installed. Nothing of it is used."""
    try:
        from accelerate.utils import offload
    except ImportError as error:
        logger.debug("offloaded weights stand alone, accelerate is not installed: %s", error)
        return type(name, (Mapping,), {})
    return getattr(offload, name)
