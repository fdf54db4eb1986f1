"""Layered configuration: every value knows where it came from. Knows nothing of planning; see docs/configuration.md."""

from planner.config.layer import UNSET, Layer, Replace
from planner.config.problem import Origin, Problem, Rank, UserSource
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
    "Problem",
    "Rank",
    "Replace",
    "Resolved",
    "Stack",
    "UserSource",
    "config",
    "diff",
    "rule",
    "setting",
]
