"""One read that somebody waits for, and what an offloaded module takes of it."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch

from planner.dispatching.offload.store import OffloadStore
from planner.loading.streaming.layout import BlockLayout
from planner.loading.streaming.making import tensor_in

__all__ = ["StagedRead", "Ticket"]
