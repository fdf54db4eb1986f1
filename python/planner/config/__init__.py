"""Layered configuration: every value knows where it came from. Knows nothing of planning; see docs/configuration.md."""

from planner.config.layer import UNSET, Layer, Replace
from planner.config.problem import Origin, Place, Problem, Rank
from planner.config.resolved import Difference, Resolved, diff
from planner.config.schema import config, rule, setting
from planner.config.stack import Stack
from planner.config.types import Leaf

__all__ = [
    "UNSET",
    "Difference",
    "Layer",
    "Leaf",
    "Origin",
    "Place",
    "Problem",
    "Rank",
    "Replace",
    "Resolved",
    "Stack",
    "config",
    "diff",
    "rule",
    "setting",
]
