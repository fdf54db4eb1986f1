"""The colour of each device in every picture."""

from __future__ import annotations

from typing import Final

DEVICE_COLOURS: Final = {
    "a0": "#2f6fc4",
    "a1": "#d145c1",
    "a2": "#18a440",
    "a3": "#8535ce",
    "a4": "#219ba2",
    "a5": "#067128",
    "a6": "#9e427b",
    "a7": "#9879b9",
    "a8": "#9563fe",
    "a9": "#828f67",
    "a10": "#42607e",
    "a11": "#4f4de3",
    "a12": "#5880f5",
    "a13": "#608208",
    "a14": "#a81ba3",
    "a15": "#c57118",
    "cpu": "#946d00",
    "disk": "#766858",
    "rest": "#7d8791",
}
"""By what :func:`planner.plans.bars.device_classes` says: legible on black and on white, apart from each other, and no red."""
