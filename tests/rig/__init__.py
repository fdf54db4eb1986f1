"""Two virtual accelerators, `virtual:0` and `virtual:1`, for tests on a machine without a GPU.

Tensors on them are real: kernels run on the host, memory belongs to a device, mixing devices raises as CUDA does, and
bytes in use, peaks, limits and traffic are counted. Streams, events and pinned memory exist; what is not ordered by them
can be reported (:meth:`Accelerators.watch_streams`), although it never shows in the values.

What only a real card can show, and tests marked `gpu` look at: how fast anything is and what runs beside what, because kernels and
copies run at once on the host; whether the driver lets files be read directly into memory that it has pinned; what its
allocators round up, keep and hand out late; whether it refuses to capture a graph; and its own bits, such as those of
casts.

Registering a device type holds for the whole process. Tests that want it live in `tests/dispatch/virtual`, whose
`conftest.py` runs each file in a process of its own.
"""

from __future__ import annotations

from rig.accelerators import Accelerators, OutOfOrderError, Traffic
from rig.build import CompileError, missing

__all__ = ["Accelerators", "CompileError", "OutOfOrderError", "Traffic", "missing"]
