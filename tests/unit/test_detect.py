"""What a machine has free: each source alone, the least of them, and where the number comes from. With machines made up."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from torch import nn

import planner
from planner.devices import detect
from planner.devices.budgets import device_budgets
from planner.devices.detect import free_devices, free_disk, free_host_memory

GIB = 1 << 30


class Machine:
    """A host without limits and accelerators, to which a test adds what it is about."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.monkeypatch = monkeypatch
        self.cgroup = folder / "cgroup"
        self.cgroup.mkdir()
        self.memberships = folder / "self_cgroup"
        self.limits: dict[int, int] = {}
        self.available_bytes = 64 * GIB
        self.mapped_bytes = 0
        monkeypatch.setattr(detect, "_CGROUP", self.cgroup)
        real_path = Path
        monkeypatch.setattr(
            detect, "Path", lambda name: self.memberships if name == "/proc/self/cgroup" else real_path(name)
        )
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=self.available_bytes))
        memory_info = SimpleNamespace(memory_info=lambda: SimpleNamespace(vms=self.mapped_bytes, rss=0))
        monkeypatch.setattr(psutil, "Process", lambda: memory_info)
        unlimited = resource.RLIM_INFINITY
        monkeypatch.setattr(
            resource, "getrlimit", lambda which: (self.limits.get(which, unlimited), unlimited)
        )
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        monkeypatch.setattr(detect, "accelerator_backend", lambda: None)

    def belongs_to(self, *lines: str) -> None:
        self.memberships.write_text("".join(f"{line}\n" for line in lines))

    def files(self, folder: str, **contents: object) -> None:
        """Files of one level; `__` in a name stands for a dot."""
        place = self.cgroup / folder
        place.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (place / name.replace("__", ".")).write_text(f"{content}\n")

    def accelerator(self, backend: Any) -> None:
        self.monkeypatch.setattr(detect, "accelerator_backend", lambda: backend)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


# ---- Host memory


def test_without_limits_it_is_what_the_system_has(machine: Machine) -> None:
    found = free_host_memory()
    assert (found.device, found.free_bytes, found.pool) == ("cpu", 64 * GIB, None)
    assert "psutil" in found.origin


def test_a_cgroup_of_version_2_limits(machine: Machine) -> None:
    machine.belongs_to("0::/user/job")
    machine.files("user/job", memory__max=10 * GIB, memory__current=4 * GIB)
    found = free_host_memory()
    assert found.free_bytes == 6 * GIB
    assert found.origin == str(machine.cgroup / "user/job/memory.max")


def test_a_cgroup_of_version_1_limits(machine: Machine) -> None:
    machine.belongs_to("5:cpu,cpuacct:/job", "3:memory:/job", "1:name=systemd:/other")
    machine.files("memory/job", memory__limit_in_bytes=10 * GIB, memory__usage_in_bytes=7 * GIB)
    found = free_host_memory()
    assert found.free_bytes == 3 * GIB
    assert found.origin.endswith("memory/job/memory.limit_in_bytes")


def test_only_the_memory_controller_of_version_1_counts(machine: Machine) -> None:
    machine.belongs_to("5:cpu,cpuacct:/job")
    machine.files("memory/job", memory__limit_in_bytes=10 * GIB, memory__usage_in_bytes=7 * GIB)
    assert free_host_memory().free_bytes == 64 * GIB


@pytest.mark.parametrize("level", ["", "user", "user/job"])
def test_the_limit_of_every_level_above_holds(machine: Machine, level: str) -> None:
    machine.belongs_to("0::/user/job")
    for folder in ("", "user", "user/job"):
        machine.files(folder, memory__max="max", memory__current=2 * GIB)
    machine.files(level, memory__max=9 * GIB)
    found = free_host_memory()
    assert found.free_bytes == 7 * GIB
    assert found.origin == str(machine.cgroup / level / "memory.max")


@pytest.mark.parametrize(
    ("membership", "folder", "files"),
    [
        ("0::/job", "job", {"memory__max": 10 * GIB, "memory__current": 9 * GIB, "memory__stat": f"anon 5\ninactive_file {3 * GIB}"}),
        ("3:memory:/job", "memory/job", {
            "memory__limit_in_bytes": 10 * GIB, "memory__usage_in_bytes": 9 * GIB,
            "memory__stat": f"inactive_file 5\ntotal_inactive_file {3 * GIB}",
        }),
    ],
)  # fmt: skip
def test_page_cache_that_gives_way_counts_as_free(
    machine: Machine, membership: str, folder: str, files: dict[str, object]
) -> None:
    machine.belongs_to(membership)
    machine.files(folder, **files)
    assert free_host_memory().free_bytes == 4 * GIB


def test_a_cgroup_beyond_its_limit_leaves_nothing(machine: Machine) -> None:
    machine.belongs_to("0::/")
    machine.files("", memory__max=GIB, memory__current=2 * GIB)
    assert free_host_memory().free_bytes == 0


@pytest.mark.parametrize("content", ["max", "", "many", "-5"])
def test_a_limit_that_is_no_number_is_none(machine: Machine, content: str) -> None:
    machine.belongs_to("0::/")
    machine.files("", memory__max=content, memory__current=1)
    assert free_host_memory().free_bytes == 64 * GIB


def test_the_limit_that_version_1_writes_for_none_does_not_hold(machine: Machine) -> None:
    machine.belongs_to("3:memory:/")
    machine.files("memory", memory__limit_in_bytes=2**63 - 4096, memory__usage_in_bytes=GIB)
    found = free_host_memory()
    assert found.free_bytes == 64 * GIB
    assert "psutil" in found.origin


@pytest.mark.parametrize("name", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_limits_of_the_process_count_less_what_it_has_mapped(machine: Machine, name: str) -> None:
    machine.limits[getattr(resource, name)] = 20 * GIB
    machine.mapped_bytes = 5 * GIB
    found = free_host_memory()
    assert (found.free_bytes, found.origin) == (15 * GIB, name)
    machine.mapped_bytes = 30 * GIB
    assert free_host_memory().free_bytes == 0


@pytest.mark.parametrize(
    ("available", "cgroup_limit", "process_limit", "expected"),
    [(1, 2, 3, "psutil"), (3, 1, 2, "memory.max"), (3, 2, 1, "RLIMIT_AS")],
)
def test_the_least_of_all_is_taken_and_named(
    machine: Machine, available: int, cgroup_limit: int, process_limit: int, expected: str
) -> None:
    machine.available_bytes = available * GIB
    machine.belongs_to("0::/")
    machine.files("", memory__max=cgroup_limit * GIB, memory__current=0)
    machine.limits[resource.RLIMIT_AS] = process_limit * GIB
    found = free_host_memory()
    assert found.free_bytes == GIB
    assert expected in found.origin


def test_this_machine_has_host_memory() -> None:
    found = free_host_memory()
    assert 0 < found.free_bytes <= psutil.virtual_memory().total


# ---- Accelerators


def backend(
    free: list[int], reserved: list[int] | None = None, allocated: list[int] | None = None, is_integrated: bool = False
) -> ModuleType:  # fmt: skip
    """A module as `torch.cuda` is one, with as many devices as there are numbers."""
    module: Any = ModuleType("torch.fake")
    module.device_count = lambda: len(free)
    module.mem_get_info = lambda index: (free[index], 80 * GIB)
    module.get_device_properties = lambda index: SimpleNamespace(is_integrated=is_integrated)
    if reserved is not None and allocated is not None:
        module.memory_reserved = lambda index: reserved[index]
        module.memory_allocated = lambda index: allocated[index]
    return module  # type: ignore[no-any-return]


def test_each_accelerator_has_what_its_driver_says(machine: Machine) -> None:
    machine.accelerator(backend([3 * GIB, 5 * GIB]))
    found = free_devices()
    assert [(free.device, free.free_bytes, free.pool) for free in found] == [
        (0, 3 * GIB, None),
        (1, 5 * GIB, None),
        ("cpu", 64 * GIB, None),
    ]
    assert found[1].origin == "torch.fake.mem_get_info(1)"


def test_a_card_has_the_name_that_its_driver_says(machine: Machine) -> None:
    cards = backend([3 * GIB, 5 * GIB])
    names = ["NVIDIA GeForce RTX 4090", ""]
    cards.get_device_properties = lambda index: SimpleNamespace(name=names[index])  # type: ignore[attr-defined]
    machine.accelerator(cards)
    assert [free.name for free in free_devices()] == ["NVIDIA GeForce RTX 4090", None, None]
    assert [budget.name for budget in device_budgets({}, None)] == ["NVIDIA GeForce RTX 4090", None, None]
    assert [budget.name for budget in device_budgets({0: GIB}, None)] == [None], "said, not detected"


def test_what_the_allocator_holds_and_does_not_use_is_free(machine: Machine) -> None:
    machine.accelerator(backend([3 * GIB, 5 * GIB], reserved=[4 * GIB, GIB], allocated=[GIB, GIB]))
    first, second, _ = free_devices()
    assert (first.free_bytes, second.free_bytes) == (6 * GIB, 5 * GIB)
    assert "reserved but unused" in first.origin
    assert "reserved" not in second.origin


def test_a_back_end_without_an_allocator_or_properties_will_do(machine: Machine) -> None:
    plain = backend([GIB])
    del plain.get_device_properties
    machine.accelerator(plain)
    assert free_devices()[0].free_bytes == GIB


def test_a_back_end_without_devices_has_none(machine: Machine) -> None:
    machine.accelerator(backend([]))
    assert [free.device for free in free_devices()] == ["cpu"]


def test_memory_shared_with_the_host_is_one_pool(machine: Machine) -> None:
    machine.accelerator(backend([20 * GIB], is_integrated=True))
    found = free_devices()
    assert [free.device for free in found] == [0, "cpu"]
    assert found[0].pool == found[1].pool
    assert found[0].pool is not None


def test_mps_shares_the_memory_of_the_host(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    found = free_devices()
    assert [free.device for free in found] == ["mps", "cpu"]
    assert found[0].free_bytes == found[1].free_bytes == 64 * GIB
    assert found[0].pool == found[1].pool
    assert found[0].pool is not None


# ---- Disk


def test_the_disk_of_an_offload_folder_is_a_device(machine: Machine, tmp_path: Path) -> None:
    assert "disk" not in [free.device for free in free_devices()]
    found = free_devices(tmp_path)[-1]
    assert found.device == "disk"
    assert found.free_bytes > 0
    assert str(tmp_path) in found.origin


def test_a_folder_that_will_be_made_lies_on_the_disk_of_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def disk_usage(place: Any) -> SimpleNamespace:
        asked.append(Path(place))
        return SimpleNamespace(free=123)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    assert free_disk(tmp_path / "not" / "yet").free_bytes == 123
    assert asked == [tmp_path]


def test_a_relative_folder_is_meant_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert str(tmp_path) in free_disk("weights").origin


# ---- In a plan


def leaf(size_bytes: int) -> nn.Module:
    module = nn.Module()
    module.w = nn.Parameter(torch.empty(size_bytes, dtype=torch.uint8, device="meta"), requires_grad=False)
    return module


def model(*sizes: int) -> nn.Module:
    root = nn.Module()
    for index, size in enumerate(sizes):
        root.add_module(f"m{index}", leaf(size))
    return root


def test_a_plan_without_budgets_uses_what_is_free_less_a_tenth(machine: Machine) -> None:
    machine.accelerator(backend([1000, 2000]))
    plan = planner.plan(model(800, 900, 700))
    assert [(d.id, d.budget_bytes, d.headroom_bytes) for d in plan.devices[:2]] == [
        (0, 1000, 100),
        (1, 2000, 200),
    ]
    assert dict(plan.offloaded_bytes) == {"cpu": 0, "disk": 0}
    assert plan.devices[1].origin.endswith("torch.fake.mem_get_info(1)")


def test_headroom_that_is_said_replaces_the_tenth_where_it_is_said(machine: Machine) -> None:
    machine.accelerator(backend([1000, 2000]))
    plan = planner.plan(model(500), headroom={0: 7})
    assert [device.headroom_bytes for device in plan.devices[:2]] == [7, 200]


def test_headroom_beyond_the_budget_leaves_nothing_and_not_less() -> None:
    budgets = device_budgets({0: 100, "cpu": 1000}, {0: 300})
    assert [budget.capacity_bytes for budget in budgets] == [0, 1000]
    plan = planner.plan(model(500), max_memory={0: 100, "cpu": 1000}, headroom={0: 300})
    assert [(device.headroom_bytes, device.free_bytes) for device in plan.devices] == [(100, 0), (0, 500)]


def test_budgets_that_are_named_are_all_there_is(machine: Machine) -> None:
    machine.accelerator(backend([1000, 2000]))
    plan = planner.plan(model(500), max_memory={1: 600})
    assert [(device.id, device.headroom_bytes) for device in plan.devices] == [(1, 0)]


def test_shared_memory_is_not_spent_twice(machine: Machine) -> None:
    """Of 1000 bytes for both, nine tenths may be used: 900, not 1800."""
    machine.available_bytes = 1000
    machine.accelerator(backend([1000], is_integrated=True))
    plan = planner.plan(model(300, 300, 300))
    assert sum(device.used_bytes + device.reserved_bytes for device in plan.devices) <= 900
    with pytest.raises(planner.InfeasibleError):
        planner.plan(model(300, 300, 301))


def test_disk_is_used_only_where_there_is_a_folder(machine: Machine, tmp_path: Path) -> None:
    machine.available_bytes = 300
    machine.accelerator(backend([1000]))
    with pytest.raises(planner.InfeasibleError):
        planner.plan(model(400, 400, 400))
    plan = planner.plan(model(400, 400, 400), offload_folder=tmp_path)
    assert plan.offloaded_bytes["disk"] == 800


def test_where_processes_have_no_limits_none_is_asked_for(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.limits[resource.RLIMIT_AS] = 20 * GIB
    monkeypatch.setitem(sys.modules, "resource", None)
    found = free_host_memory()
    assert (found.free_bytes, found.origin) == (64 * GIB, "psutil.virtual_memory().available")


def test_the_package_is_imported_where_there_is_no_resource_module() -> None:
    code = (
        "import sys; sys.modules['resource'] = None; import planner, planner.devices.detect, planner.cli.app"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# ---- As accelerate sees it


def test_accelerate_counts_what_the_driver_and_the_system_say(machine: Machine) -> None:
    machine.accelerator(backend([3 * GIB, 5 * GIB], reserved=[4 * GIB, GIB], allocated=[GIB, GIB]))
    machine.limits[resource.RLIMIT_AS] = 20 * GIB
    assert planner.get_max_memory() == {0: 3 * GIB, 1: 5 * GIB, "cpu": 64 * GIB}


def test_accelerate_leaves_out_a_device_that_cannot_be_asked(machine: Machine) -> None:
    broken: Any = backend([3 * GIB, 5 * GIB])

    def mem_get_info(index: int) -> tuple[int, int]:
        if index == 0:
            raise RuntimeError("busy")
        return 5 * GIB, 80 * GIB

    broken.mem_get_info = mem_get_info
    machine.accelerator(broken)
    assert planner.get_max_memory() == {1: 5 * GIB, "cpu": 64 * GIB}


def test_accelerate_sees_host_memory_once(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = backend([20 * GIB], is_integrated=True)
    machine.accelerator(shared)
    assert planner.get_max_memory() == {0: 20 * GIB, "cpu": 64 * GIB}, "of cuda alone it knows that"
    monkeypatch.setattr(torch, "cuda", shared)
    assert planner.get_max_memory() == {0: 20 * GIB}
    machine.accelerator(None)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert planner.get_max_memory() == {"mps": 64 * GIB}
