"""Tests of measuring the virtual accelerators; `rig.collecting` says how they run."""

from __future__ import annotations

from rig.collecting import *  # noqa: F403 - hooks and fixtures, which pytest finds here by name
