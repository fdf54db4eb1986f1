"""The strategy `auto` against enumeration: small models, unlike devices, ties, pins, forbids and groups.

The oracle takes the definition by its word: for each device that could execute what is offloaded, and each size up to
which blocks are streamed to it, it looks at every subset of blocks that could stay. It knows the instance as it was drawn,
and nothing of how the planner cuts models into blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, product
from random import Random
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import planner
from planner import Plan
from planner.checker.check import check, is_valid
from planner.errors import InfeasibleError, InvalidConstraintError

Device = int | str
Cost = tuple[int, int]  # bytes offloaded, bytes on disk
TIERS = ("cpu", "disk")


class Block(nn.Module):
    pass


@dataclass(frozen=True)
class Instance:
    """A model by the sizes of its blocks, and what is asked of a plan.

    `sizes`: bytes that only this block has; `shared`: a tensor's bytes and the blocks that hold it.
    """

    sizes: tuple[int, ...]
    shared: tuple[tuple[int, tuple[int, ...]], ...]
    numbered: range
    silent: frozenset[int]
    budgets: dict[Device, int]
    headroom: dict[Device, int] = field(default_factory=dict)
    pin: dict[int, Device] = field(default_factory=dict)
    forbid: dict[int, tuple[Device, ...]] = field(default_factory=dict)
    together: tuple[tuple[int, ...], ...] = ()
    mode: str = "any"
    execute_offloaded: str = "accelerator"
    staging_blocks: int = 1
    fill: str = "even"

    def name(self, block: int) -> str:
        return f"layers.{block - self.numbered.start}" if block in self.numbered else f"b{block}"

    def model(self) -> nn.Module:
        root = nn.Module()
        if self.numbered:
            root_list = nn.ModuleList()
        tensors = [(size, holders, meta(size)) for size, holders in self.shared]
        for index, size in enumerate(self.sizes):
            block = Block()
            if index in self.silent:
                block.register_buffer("scale", meta(size).data)
            else:
                block.w = meta(size)
            for number, (_, holders, tensor) in enumerate(tensors):
                if index in holders:
                    setattr(block, f"shared{number}", tensor)
            if index in self.numbered:
                if index == self.numbered.start:
                    root.layers = root_list
                root_list.append(block)
            else:
                root.add_module(f"b{index}", block)
        return root

    def settings(self) -> dict[str, Any]:
        return {
            "max_memory": self.budgets,
            "headroom": self.headroom or None,
            "pin": {self.name(block): device for block, device in self.pin.items()},
            "forbid": {self.name(block): devices for block, devices in self.forbid.items()},
            "keep_together": [[self.name(block) for block in group] for group in self.together],
            "mode": self.mode,
            "execute_offloaded": self.execute_offloaded,
            "staging_blocks": self.staging_blocks,
            "strategy": {"type": "auto", "fill": self.fill},
        }


def meta(size_bytes: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(size_bytes, dtype=torch.uint8, device="meta"), requires_grad=False)


# ---- Drawing


def draw(rng: Random, most_blocks: int) -> Instance:
    count = max(rng.randint(1, most_blocks), rng.randint(1, most_blocks))
    palette = [rng.randint(1, 24) for _ in range(rng.choice([1, 2, 3, 12]))]
    sizes = tuple(rng.choice(palette) for _ in range(count))
    shared = tuple(
        (rng.randint(1, 16), tuple(sorted(rng.sample(range(count), rng.randint(2, min(3, count))))))
        for _ in range(rng.choice([0, 0, 0, 1, 2]) if count > 1 else 0)
    )
    start = rng.randint(0, count)
    stop = rng.randint(start, count)
    total = sum(sizes) + sum(size for size, _ in shared)
    budgets = draw_budgets(rng, total)
    is_constrained = rng.random() < 0.4
    devices = list(budgets)
    return Instance(
        sizes=sizes,
        shared=shared,
        numbered=range(start, stop) if stop - start > 1 else range(0),
        silent=frozenset(index for index in range(count) if rng.random() < 0.1),
        budgets=budgets,
        headroom={device: rng.randint(0, 5) for device in devices} if rng.random() < 0.2 else {},
        pin={
            rng.randrange(count): rng.choice(devices)
            for _ in range(rng.choice([0, 1, 1, 2]) * is_constrained)
        },
        forbid={
            rng.randrange(count): tuple(rng.sample(devices, rng.randint(1, max(1, len(devices) - 1))))
            for _ in range(rng.choice([0, 1, 1, 2]) * is_constrained)
        },
        together=tuple(
            tuple(rng.sample(range(count), 2)) for _ in range(rng.choice([0, 0, 0, 0, 1]) if count > 1 else 0)
        ),
        mode=rng.choice(["any"] * 5 + ["no_disk", "gpu_only"]),
        execute_offloaded=rng.choice(["accelerator", "accelerator", "accelerator", "cpu"]),
        staging_blocks=rng.choice([1, 1, 1, 2]),
        fill=rng.choice(["even", "fewest", "in_order"]),
    )


def draw_budgets(rng: Random, total: int) -> dict[Device, int]:
    """At most four devices, at least one: equal, unlike or empty cards, with cpu and disk or without."""
    tiers = [tier for tier, chance in (("cpu", 0.8), ("disk", 0.4)) if rng.random() < chance]
    fewest = 0 if "cpu" in tiers and rng.random() < 0.3 else 1
    cards = sorted(rng.sample(range(6), rng.randint(fewest, 4 - len(tiers))))
    share = rng.uniform(0.3 if tiers else 0.8, 1.6) / max(1, len(cards))
    is_equal = rng.random() < 0.3
    budgets: dict[Device, int] = {
        card: int(total * share * (1 if is_equal else rng.uniform(0.2, 1.8))) for card in cards
    }
    for device in cards:
        if rng.random() < 0.05:
            budgets[device] = 0
    for tier in tiers:
        budgets[tier] = int(total * rng.choice([0.0, 0.2, 0.5, 0.8, 1.2, 2.0, 5.0, 5.0]))
    return budgets


# ---- Oracle


@dataclass(frozen=True)
class Unit:
    """What shares a home; `blocks` are streamed, or run on the cpu, one by one. Of each, `stays` is where it runs in any case."""

    bytes: int
    blocks: tuple[int, ...]
    homes: frozenset[Device]
    stays: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.stays:
            object.__setattr__(self, "stays", (0,) * len(self.blocks))


def units_of(instance: Instance) -> list[Unit]:
    """Blocks that share a tensor or a group, joined."""
    groups: list[set[int]] = [{index} for index in range(len(instance.sizes))]
    for joined in (*(holders for _, holders in instance.shared), *instance.together):
        touched = [group for group in groups if group & set(joined)]
        groups = [group for group in groups if group not in touched] + [set().union(*touched)]
    return [unit_of(instance, group) for group in sorted(groups, key=min)]


def unit_of(instance: Instance, group: set[int]) -> Unit:
    shared = [(size, set(holders)) for size, holders in instance.shared if group & set(holders)]
    homes = set(instance.budgets)
    for block in group:
        homes &= {instance.pin.get(block, device) for device in homes}
        homes -= set(instance.forbid.get(block, ()))
    return Unit(
        bytes=sum(instance.sizes[block] for block in group) + sum(size for size, _ in shared),
        blocks=tuple(
            instance.sizes[block] + sum(size for size, holders in shared if block in holders)
            for block in sorted(group)
        ),
        homes=frozenset(homes),
        stays=tuple(instance.sizes[block] if block in instance.silent else 0 for block in sorted(group)),
    )


class Oracle:
    """Least bytes offloaded, and least bytes on disk among those, by looking at everything."""

    def __init__(self, instance: Instance, extra: dict[Device, int] | None = None) -> None:
        self.units = units_of(instance)
        self.staging = instance.staging_blocks
        rooms = {
            device: max(0, size + (extra or {}).get(device, 0) - instance.headroom.get(device, 0))
            for device, size in instance.budgets.items()
        }
        cards = [device for device, room in rooms.items() if room and device not in TIERS]
        self.has_card = bool(cards)
        # A full card is still one: with "gpu_only" the cpu takes its place only where none is named.
        is_named = instance.mode == "gpu_only" and any(device not in TIERS for device in rooms)
        self.executors = cards or [
            device for device in rooms if device == "cpu" and rooms[device] and not is_named
        ]
        self.rooms = {device: rooms[device] for device in self.executors}
        self.cpu = rooms.get("cpu", 0) if self.has_card and instance.mode != "gpu_only" else 0
        self.disk = rooms.get("disk", 0) if instance.mode == "any" else 0
        widest = max(self.rooms.values(), default=0)
        most = -1 if instance.execute_offloaded == "cpu" else widest  # what is larger runs on the cpu

        def parts(unit: Unit, by_cpu: bool) -> list[tuple[int, int]]:
            pairs = zip(unit.blocks, unit.stays, strict=True)
            return [(size - stay, stay) for size, stay in pairs if (self.has_card and size > most) == by_cpu]

        streamed = [parts(unit, False) for unit in self.units]
        hosted = [parts(unit, True) for unit in self.units]
        self.streamed = [[size for size, _ in pairs] for pairs in streamed]
        self.hosted = [[size for size, _ in pairs] for pairs in hosted]
        self.stays = [sum(stay for _, stay in pairs) for pairs in streamed]
        self.hosted_stays = [sum(stay for _, stay in pairs) for pairs in hosted]

    def best(self) -> Cost | None:
        """None where there is no plan."""
        if any(self.stays):
            return self.best_with_many_streamers()  # one that streams all would have all that stays
        sizes = {size for sizes in self.streamed for size in sizes}
        ways: list[dict[Device, int]] = [{}]
        ways += [{device: size} for device in self.executors for size in sizes]
        return self._best_of_all(ways)

    def _best_of_all(self, ways: list[dict[Device, int]]) -> Cost | None:
        total, room = sum(unit.bytes for unit in self.units), sum(self.rooms.values())
        best: Cost | None = None
        bounds = [(total - room + self.staging * sum(way.values()) if way else 0, way) for way in ways]
        for bound, way in sorted(bounds, key=lambda pair: pair[0]):
            if best is not None and bound > best[0]:
                break  # so much cannot stay with that much room kept
            cost = self._best_of(way)
            best = cost if best is None or (cost is not None and cost < best) else best
        return best

    def best_with_many_streamers(self) -> Cost | None:
        """The same, where several devices may execute what is offloaded, each up to a size of its own."""
        sizes = [-1, *sorted({size for sizes in self.streamed for size in sizes})]
        ways = [
            {device: size for device, size in zip(self.executors, chosen, strict=True) if size >= 0}
            for chosen in product(sizes, repeat=len(self.executors))
        ]
        return self._best_of_all(ways)

    def _best_of(self, streams: dict[Device, int]) -> Cost | None:
        """With room kept for streaming pieces of the sizes given."""
        rooms = dict(self.rooms)
        for device, size in streams.items():
            rooms[device] -= self.staging * size
        if any(room < 0 for room in rooms.values()):
            return None
        largest = max(streams.values(), default=-1)
        everything = (1 << len(self.units)) - 1
        offloads = sorted(
            (self._bytes(everything & ~kept), everything & ~kept) for kept in self._packable(rooms)
        )
        best: Cost | None = None
        for size, off in offloads:
            if size > self.cpu + self.disk or (best is not None and size > best[0]):
                break
            if not self._has_room_for_stays(off, rooms, streams):
                continue
            on_disk = self._least_on_disk(off, largest)
            if on_disk is not None and (best is None or (size, on_disk) < best):
                best = (size, on_disk)
        return best

    def _has_room_for_stays(self, off: int, rooms: dict[Device, int], streams: dict[Device, int]) -> bool:
        """What is kept has a place on a device, and so has what stays of the rest."""
        if not any(self.stays[index] for index in self._members(off)):
            return True  # what is kept was packed before
        items: list[tuple[int, list[Device]]] = []
        for index, unit in enumerate(self.units):
            if off >> index & 1:
                largest = max(self.streamed[index], default=-1)
                items.append(
                    (self.stays[index], [device for device in streams if streams[device] >= largest])
                )
            else:
                items.append((unit.bytes, [device for device in rooms if device in unit.homes]))
        items.sort(key=lambda item: -item[0])

        def fits(at: int, left: dict[Device, int]) -> bool:
            if at == len(items) or not items[at][0]:
                return True
            size, devices = items[at]
            return any(
                fits(at + 1, {**left, device: left[device] - size})
                for device in devices
                if left[device] >= size
            )

        return fits(0, rooms)

    def _members(self, mask: int) -> list[int]:
        return [index for index in range(len(self.units)) if mask >> index & 1]

    def _bytes(self, mask: int) -> int:
        return sum(self.units[index].bytes for index in self._members(mask))

    def _packable(self, rooms: dict[Device, int]) -> Iterator[int]:
        """Subsets that have room on the executing devices: for each, the least (device, bytes there) it ends at."""
        order = list(rooms)
        if not order:
            return iter((0,))
        ends: dict[int, tuple[int, int]] = {0: (0, 0)}
        for mask in range(1 << len(self.units)):
            if mask not in ends:
                continue
            at, used = ends[mask]
            for index in range(len(self.units)):
                if mask >> index & 1:
                    continue
                unit = self.units[index]
                for device in range(at, len(order)):
                    start = used if device == at else 0
                    if order[device] in unit.homes and start + unit.bytes <= rooms[order[device]]:
                        end = (device, start + unit.bytes)
                        wider = mask | 1 << index
                        ends[wider] = min(ends.get(wider, end), end)
                        break
        return iter(ends)

    def _least_on_disk(self, off: int, largest: int) -> int | None:
        members = self._members(off)
        for index in members:
            if max(self.streamed[index], default=-1) > largest:
                return None
            if self.hosted[index] and not self.cpu:
                return None
        best = None
        for count in range(len(members) + 1):
            for on_disk in combinations(members, count):
                size = sum(self.units[index].bytes for index in on_disk)
                if (best is None or size < best) and self._can_hold(members, on_disk, size):
                    best = size
            if best == 0:
                break
        return best

    def _can_hold(self, members: Sequence[int], on_disk: Sequence[int], disk_bytes: int) -> bool:
        on_cpu = [index for index in members if index not in on_disk]
        streamed = max((size for index in on_disk for size in self.hosted[index]), default=0)
        cpu_bytes = sum(self.units[index].bytes for index in on_cpu) + self.staging * streamed
        cpu_bytes += sum(self.hosted_stays[index] for index in on_disk)
        return (
            all("disk" in self.units[index].homes for index in on_disk)
            and all("cpu" in self.units[index].homes for index in on_cpu)
            and (disk_bytes <= self.disk)
            and (cpu_bytes <= self.cpu)
            and not (on_disk and not self.disk)
            and not (on_cpu and not self.cpu)
        )


# ---- Judging


def has_contradiction(instance: Instance) -> bool:
    return any(not unit.homes for unit in units_of(instance))


def contradicts_mode(instance: Instance) -> bool:
    """Some block may only lie where the mode allows nothing."""
    shut = {"gpu_only": {"cpu", "disk"}, "no_disk": {"disk"}}.get(instance.mode, set())
    return any(unit.homes <= shut for unit in units_of(instance))


def judge(instance: Instance) -> str:
    """What a plan turned out to be, in a word; asserts all that must hold."""
    model = instance.model()
    try:
        plan = planner.plan(model, **instance.settings())
    except InvalidConstraintError:
        assert has_contradiction(instance) or contradicts_mode(instance)
        return "contradiction"
    except InfeasibleError as error:
        assert not has_contradiction(instance)
        expected = Oracle(instance).best()
        assert expected is None or not error.is_proven, f"a plan with {expected} exists"
        return "infeasible" if error.is_proven else "unproven infeasible"
    assert not has_contradiction(instance)
    judge_validity(instance, model, plan)
    expected = Oracle(instance).best()
    assert expected is not None, "a plan where there is none"
    certificate = plan.certificate
    cost = (sum(plan.offloaded_bytes.values()), plan.offloaded_bytes["disk"])
    assert cost >= expected, f"{cost} is better than the oracle's {expected}"
    assert certificate.lower_bound_bytes <= expected[0]
    assert certificate.gap_bytes == cost[0] - certificate.lower_bound_bytes
    assert certificate.returns_lower_bound <= certificate.returns
    assert certificate.proven == (certificate.gap_bytes == 0)
    if certificate.proven:
        assert cost[0] == expected[0]
        return certificate.stage
    return "unproven " + certificate.stage


def judge_validity(instance: Instance, model: nn.Module, plan: Plan) -> None:
    budgets = {device.id: device.budget_bytes - device.headroom_bytes for device in plan.devices}
    budgets = {device: max(0, size) for device, size in budgets.items()}
    assert set(budgets) == set(instance.budgets)
    assert set(plan.device_map.values()) <= set(budgets), "only what was named"
    findings = check(model, dict(plan.device_map), budgets)
    assert is_valid(findings), findings
    for device in plan.devices:
        taken = device.used_bytes + device.reserved_bytes + device.buffer_bytes
        assert taken + device.headroom_bytes <= device.budget_bytes or not taken, device
    homes = [device_of(instance.name(block), plan.device_map) for block in range(len(instance.sizes))]
    executors = [
        device_of(instance.name(block), plan.execution_map, homes[block])
        for block in range(len(instance.sizes))
    ]
    for block, device in instance.pin.items():
        assert homes[block] == device
    for block, devices in instance.forbid.items():
        assert homes[block] not in devices
    for group in (*instance.together, *(holders for _, holders in instance.shared)):
        assert len({homes[block] for block in group}) == 1
    judge_bytes(instance, plan, homes, executors)


def judge_bytes(instance: Instance, plan: Plan, homes: Sequence[Device], executors: Sequence[Device]) -> None:
    """Used and reserved bytes, and buffers that stay, counted again from the two maps."""
    used: Counter[Device] = Counter()
    stays: Counter[Device] = Counter()
    reserved: dict[Device, int] = {}
    for block, size in enumerate(instance.sizes):
        used[homes[block]] += size
        streamed = sum(more for more, holders in instance.shared if block in holders)
        streamed += 0 if block in instance.silent else size
        if homes[block] != executors[block]:
            stays[executors[block]] += size if block in instance.silent else 0
            room = instance.staging_blocks * streamed
            reserved[executors[block]] = max(reserved.get(executors[block], 0), room)
    for size, holders in instance.shared:
        used[homes[holders[0]]] += size
    for device in plan.devices:
        assert device.used_bytes == used[device.id]
        assert device.reserved_bytes == reserved.get(device.id, 0)
        assert device.buffer_bytes == stays[device.id]
    has_card = any(d.kind == "accelerator" and d.budget_bytes > d.headroom_bytes for d in plan.devices)
    assert "disk" not in executors
    assert dict(plan.offloaded_bytes) == {"cpu": used["cpu"] if has_card else 0, "disk": used["disk"]}
    assert (plan.shortfall is None) == (sum(plan.offloaded_bytes.values()) == 0)
    if instance.execute_offloaded == "cpu":
        moved = [block for block in range(len(homes)) if homes[block] in TIERS]
        assert {executors[block] for block in moved} <= {"cpu"}


def device_of(name: str, device_map: Any, default: Device | None = None) -> Any:
    while name not in device_map and name:
        name = name.rpartition(".")[0]
    return device_map.get(name, default)


def instance_of(seed: int, most_blocks: int) -> Instance:
    return draw(Random(seed), most_blocks)


def judge_many(seeds: range, most_blocks: int) -> Counter[str]:
    totals: Counter[str] = Counter()
    for seed in seeds:
        instance = instance_of(seed, most_blocks)
        try:
            totals[judge(instance)] += 1
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, {most_blocks} blocks: {error}\n{instance}") from error
    return totals


# ---- Tests


def test_small_instances_are_planned_as_enumeration_plans_them() -> None:
    totals = judge_many(range(300), 9)
    proven = sum(count for word, count in totals.items() if not word.startswith("unproven"))
    assert proven >= 290, totals
    for word in ("in_order", "other_order", "scattered", "offload", "infeasible", "contradiction"):
        assert totals[word] > 0, totals


@pytest.mark.sweep
@pytest.mark.parametrize("start", range(0, 10_000, 1_000))
def test_ten_thousand_instances_are_planned_as_enumeration_plans_them(start: int) -> None:
    totals = judge_many(range(start, start + 1_000), 12)
    print(dict(totals))
    assert sum(count for word, count in totals.items() if word.startswith("unproven")) <= 20, totals


def test_several_devices_that_execute_what_is_offloaded_keep_no_more() -> None:
    """The definition takes one; here the oracle may take all of them."""
    looked_at = 0
    for seed in range(400):
        instance = instance_of(seed, 5)
        oracle = Oracle(instance)
        if len(oracle.executors) in (2, 3) and not has_contradiction(instance):
            looked_at += 1
            one, many = oracle.best(), oracle.best_with_many_streamers()
            assert (one is None) == (many is None), instance
            assert one is None or many is None or one[0] == many[0], instance
    assert looked_at > 50


def test_what_is_said_to_be_missing_is_enough_and_a_byte_less_is_not() -> None:
    """Of plans that offload, and of models that do not fit."""
    tried = 0
    for seed in range(2_000, 2_250):
        instance = instance_of(seed, 6)
        if has_contradiction(instance) or contradicts_mode(instance):
            continue
        try:
            plan = planner.plan(instance.model(), **instance.settings())
        except InfeasibleError as error:
            wanted, more = instance, error.more_bytes
        else:
            if plan.shortfall is None:
                continue
            wanted, more = replace(instance, mode="gpu_only"), plan.shortfall.more_bytes
        for device, size in more.items():
            tried += 1
            assert Oracle(wanted, {device: size}).best() is not None, (seed, device, size)
            assert Oracle(wanted, {device: size - 1}).best() is None, (seed, device, size)
    assert tried > 60


def test_one_instance_gives_one_plan() -> None:
    for seed in range(40):
        instance = instance_of(seed, 8)
        if has_contradiction(instance) or contradicts_mode(instance):
            continue
        said = []
        for _ in range(2):
            try:
                said.append(planner.plan(instance.model(), **instance.settings()).to_json(provenance=False))
            except InfeasibleError as error:
                said.append(error.message)
        assert said[0] == said[1], seed


def test_many_budgets_give_what_each_gives_alone() -> None:
    for seed in range(3_000, 3_030):
        instance = instance_of(seed, 7)
        if has_contradiction(instance) or contradicts_mode(instance) or instance.headroom:
            continue
        rows = [
            {device: int(size * share) for device, size in instance.budgets.items()} for share in (1, 0.6, 2)
        ]
        settings = {name: value for name, value in instance.settings().items() if name != "max_memory"}
        together = planner.plan_many(instance.model(), rows, **settings)
        for row, found in zip(rows, together, strict=True):
            try:
                alone = planner.plan(instance.model(), max_memory=row, **settings)
            except InfeasibleError as error:
                assert isinstance(found, InfeasibleError), (seed, row)
                assert found.message == error.message
            else:
                assert isinstance(found, Plan), (seed, row, found)
                assert found.device_map == alone.device_map, (seed, row)
                assert found.certificate == alone.certificate, (seed, row)


def test_the_oracle_finds_what_is_known_by_hand() -> None:
    """Five blocks of 20: one card must keep 20 free for streaming, unless the cpu executes."""
    instance = Instance(
        sizes=(20, 20, 20, 20, 20), shared=(), numbered=range(0), silent=frozenset(), budgets={0: 50, 1: 25, "cpu": 100}
    )  # fmt: skip
    assert Oracle(instance).best() == (60, 0)
    assert Oracle(replace(instance, execute_offloaded="cpu")).best() == (40, 0)
    assert Oracle(replace(instance, budgets={0: 60, 1: 40})).best() == (0, 0)
    assert Oracle(replace(instance, budgets={0: 59, 1: 40})).best() is None
    assert Oracle(replace(instance, budgets={0: 59, 1: 40, "cpu": 19, "disk": 40})).best() == (40, 40)
    assert Oracle(replace(instance, budgets={0: 59, 1: 40, "cpu": 20, "disk": 20})).best() == (40, 20)
    assert Oracle(replace(instance, budgets={0: 59, 1: 40, "cpu": 19, "disk": 39})).best() is None
    assert Oracle(replace(instance, budgets={0: 19, "cpu": 99})).best() is None
    assert Oracle(replace(instance, shared=((7, (0, 4)),))).units[0] == Unit(
        47, (27, 27), frozenset({0, 1, "cpu"})
    )
    assert Oracle(replace(instance, together=((0, 1, 2),))).best() == (60, 0), "20 at a time are streamed"


@pytest.mark.parametrize("shares", [(0.6, 0.6), (1 / 3,), (0.1, 0.2, 0.3)])
def test_siblings_that_are_joined_to_be_tried_are_no_siblings_of_what_they_became(
    shares: tuple[float, ...],
) -> None:
    """A narrowed problem has fewer units, and numbers of the whole one mean others there, or none."""
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig())
    total = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    budgets = {**{number: int(share * total) for number, share in enumerate(shares)}, "cpu": 4 * total}
    plan = planner.plan(model, max_memory=budgets, granularity="module")
    assert not planner.check(model, plan.device_map, budgets)
