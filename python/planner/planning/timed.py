"""`plan()` with the strategies that go by time: which device runs what, from where, so that a step takes least."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from math import prod

from planner.choices import Objective, PieceWay, Stage
from planner.devices.keys import DeviceKey
from planner.errors import InfeasibleError, InvalidConstraintError
from planner.planning.line import PlannedLine
from planner.planning.line_problem import planned_line
from planner.planning.problem import Problem, device_plan, offloaded_bytes
from planner.planning.running import RunningRooms, running_device
from planner.plans.device_map import DeviceMap
from planner.plans.parts import Certificate, DevicePlan, DeviceUsage, Reason
from planner.plans.plan import Plan
from planner.plans.running import running_by_device
from planner.plans.timing import TimedPiece, TimedStage, Timing
from planner.settings.strategies import ByTime, Latency, Pipeline, Throughput
from planner.strategies.line_tables import LinePiece, LineProblem
from planner.strategies.staying import StayingBuffers
from planner.strategies.timed import LineAnswer, solve_line

_MOST_CHOICES = 64  # ways of choosing, for each tied unit, the block at whose place it is planned
