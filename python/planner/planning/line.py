"""A problem as a line of pieces and kinds of devices, with what each costs: what the strategies that go by time search."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from math import ceil

from planner.devices.budgets import DeviceBudget
from planner.devices.keys import DeviceKey
from planner.devices.machine import Machine
from planner.memory.demands import BlockDemand
from planner.model.blocks import Blocks
from planner.model.parts import runs_anywhere
from planner.model.work import BlockWork
from planner.planning.device_kinds import kinds_of, rates_of
from planner.planning.line_sizes import HOST, LineSizes
from planner.planning.long_steps import LongSteps
from planner.strategies.costs import fetch_ps, hop_ps, run_ps
from planner.strategies.line_tables import LineKind, LinePiece, LineTie
from planner.strategies.staying import StayingBuffers

__all__ = ["PlannedLine"]


@dataclass(frozen=True, kw_only=True)
class PlannedLine:
    """Pieces in the order of execution, and the devices that may run them.

    Args:
        blocks: the model; each block is a piece.
        order: numbers of blocks, as they are run; all that follows is in this order.
        callers: of each piece, the number of the one from which its layer is run; its own where it is a layer, or of none.
        work: of each piece.
        demands: what each piece keeps and needs beside its weights; zeros without a workload.
        staying: buffers that are where blocks run, whether or not their weights are.
        share: of what blocks keep, what the allocator may take beyond.
        machine: with rates.
        budgets: the plan's devices.
        capacity_bytes: by device, what of its budget weights and what blocks keep may take.
        allowed: by piece, where it may lie; None for anywhere.
        sizes: of the step.
        home: where offloaded blocks rest: "cpu", "disk", or None where nothing may be offloaded.
        host_runs: whether the host may run blocks.
        uses_disk: whether blocks may lie on a disk where there is one.
        fetches: whether blocks may be brought in where they run.
        host_is_first: the host's run comes before those of accelerators, and not after them, where the order is given.
        closed: numbers of blocks before which no run may end.
        cache_tokens: so many tokens of cache there is room for on each device, where as many as can be were asked for.
        too_small: devices without room for what is needed at once, which run nothing, also nothing whose weights others hold.
    """

    blocks: Blocks
    order: Sequence[int]
    callers: Sequence[int]
    work: Sequence[BlockWork]
    demands: Sequence[BlockDemand]
    staying: StayingBuffers
    share: Fraction
    machine: Machine
    budgets: Sequence[DeviceBudget]
    capacity_bytes: Mapping[DeviceKey, int]
    allowed: Sequence[frozenset[DeviceKey] | None]
    sizes: LineSizes
    home: DeviceKey | None
    host_runs: bool
    uses_disk: bool = True
    fetches: bool = True
    host_is_first: bool = False
    closed: tuple[int, ...] = ()
    cache_tokens: int | None = None
    too_small: frozenset[DeviceKey] = frozenset()

    @cached_property
    def staying_bytes(self) -> Sequence[int]:
        """Of each piece, buffers that are where it runs."""
        stays = self.staying.block_bytes
        return [sum([stays.get(name, 0) for name in names]) for names in self.names]

    @cached_property
    def names(self) -> tuple[tuple[str, ...], ...]:
        """The modules and tensors of each piece."""
        names = self.blocks.block_names
        return tuple([names[number] for number in self.order])

    @cached_property
    def runners(self) -> tuple[DeviceKey, ...]:
        """The devices that may have a run, in the order given."""
        accelerators = [
            budget.device
            for budget in self.budgets
            if budget.kind == "accelerator" and budget.device not in self.too_small
        ]
        if not self.host_runs:
            return tuple(accelerators)
        return (HOST, *accelerators) if self.host_is_first else (*accelerators, HOST)

    @cached_property
    def kinds(self) -> tuple[tuple[DeviceKey, ...], ...]:
        """The runners, those together that are alike in all that counts."""
        return kinds_of(self.runners, self._signature, self.hop_ps)

    @cached_property
    def _kind_of(self) -> Mapping[DeviceKey, int]:
        return {key: number for number, keys in enumerate(self.kinds) for key in keys}

    def device_kinds(self) -> tuple[int, ...]:
        """The kind of each runner."""
        return tuple(self._kind_of[key] for key in self.runners)

    @cached_property
    def units(self) -> tuple[int, ...]:
        """The unit of each piece: pieces of one share tensors, or are kept together."""
        units = self.blocks.block_units
        return tuple([units[number] for number in self.order])

    def ties(self) -> tuple[LineTie, ...]:
        """Units of several blocks: they have one home."""
        members: dict[int, list[int]] = {}
        if len(set(self.units)) == len(self.units):
            return ()
        for block, unit in enumerate(self.units):
            members.setdefault(unit, []).append(block)
        return tuple(
            LineTie(pieces=tuple(each), bits=8 * sum(self.work[block].weight_bytes for block in each))
            for each in members.values()
            if len(each) > 1
        )

    @property
    def has_disk(self) -> bool:
        """Whether what the host has no room for may lie on a disk."""
        return self.uses_disk and any(budget.kind == "disk" for budget in self.budgets)

    @cached_property
    def table_devices(self) -> tuple[DeviceKey, ...]:
        """Runners whose rates nobody measured or said."""
        found = []
        for key in self.runners:
            device = self.machine.device(key)
            rates = [device.memory_bytes_per_s, *device.flops_per_s.values()]
            if any(rate is not None and rate.origin == "table" for rate in rates):
                found.append(key)
        return tuple(found)

    def line_kinds(self) -> tuple[LineKind, ...]:
        """The kinds as the search takes them."""
        kinds = [
            LineKind(
                capacity_bits=8 * self.capacity_bytes[keys[0]],
                hops_ps=self.beside_ps(keys[0]),
                is_host=keys[0] == HOST and self.home != "disk",
            )
            for keys in self.kinds
        ]
        store = [LineKind(capacity_bits=0, hops_ps=0, is_host=True)] if self._has_store else []
        return (*kinds, *store)

    @property
    def _has_store(self) -> bool:
        """Whether what is fetched lies where nothing runs: the last kind stands for that, and no device is of it."""
        return self.home is not None and self.home not in self.runners

    def hop_table(self) -> tuple[tuple[int, ...], ...]:
        """By kind and kind, what passes from one run to the next takes."""
        kinds = (*self.kinds, ()) if self._has_store else self.kinds
        return tuple(tuple(self._hop(keys, others) for others in kinds) for keys in kinds)

    def beside_ps(self, key: DeviceKey) -> int:
        """What a piece takes to the host and back, where it runs there from within a device's run."""
        if key == HOST or HOST not in self.capacity_bytes or not self.host_runs:
            return 0
        return self.hop_ps(key, HOST) + self.hop_ps(HOST, key)

    def hop_ps(self, source: DeviceKey, to: DeviceKey) -> int:
        """What one activation takes from a device to another."""
        found = self._hops_ps.get((source, to))
        if found is None:
            found = 0 if source == to else hop_ps(self.machine, source, to, self.sizes.activation_bytes)
            self._hops_ps[source, to] = found
        return found

    @cached_property
    def _hops_ps(self) -> dict[tuple[DeviceKey, DeviceKey], int]:
        """What was worked out of it: kinds are told apart by all hops."""
        return {}

    @cached_property
    def passes(self) -> tuple[tuple[int, int], ...]:
        """By piece, how often a hop is made where a run begins with it: to its device, and back to that of the run before.

        Where a layer is cut, each of its parts beyond the cut is called and gives its result back before the layer goes on.
        """
        found = [(1, 0)] * len(self.callers)
        members: dict[int, list[int]] = {}
        for piece, caller in enumerate(self.callers):
            members.setdefault(caller, []).append(piece)
        for caller, pieces in members.items():
            for at, piece in enumerate(pieces[1:], 1):
                beyond = len(pieces) - at if caller < piece else at
                goes_on = int(pieces[-1] + 1 < len(found) or caller >= piece)
                found[piece] = (beyond + goes_on, beyond)
        return tuple(found)

    def crossings(
        self, runners: Sequence[DeviceKey]
    ) -> Iterator[tuple[int, int, tuple[DeviceKey, DeviceKey]]]:
        """Every hop of an activation in one step: from which piece or to it, for which one, from one device to another.

        Args:
            runners: what runs each piece.
        """
        accelerators: dict[int, set[DeviceKey]] = {}
        for runner, caller in zip(runners, self.callers, strict=True):
            accelerators.setdefault(caller, set()).update({runner} - {HOST})
        here: DeviceKey | None = None
        for piece, (runner, caller) in enumerate(zip(runners, self.callers, strict=True)):
            of_layer = runners[caller]
            if (
                of_layer == HOST and len(accelerators[caller]) == 1
            ):  # a layer runs from an accelerator that has a part of it
                (of_layer,) = accelerators[caller]
            if here is not None and here != of_layer:
                yield self.callers[piece - 1], caller, (here, of_layer)
            here = of_layer
            if runner != of_layer:
                yield caller, piece, (of_layer, runner)
                yield caller, piece, (runner, of_layer)

    def passing_ps(self, piece: int, source: DeviceKey, to: DeviceKey) -> int:
        """What passes to a piece that begins a run takes, from the device of the run before."""
        there, back = self.passes[piece]
        return there * self.hop_ps(source, to) + back * self.hop_ps(to, source)

    def rests(self, piece: int) -> DeviceKey | None:
        """Where a piece lies that is brought in: at home if it may, else on the disk; None where it may be at neither."""
        allowed = self.allowed[piece]
        if self.home is None or allowed is None or self.home in allowed:
            return self.home
        return "disk" if self.may_spill(piece) else None

    def may_spill(self, piece: int) -> bool:
        """Whether a piece that the host has no room for may lie on a disk."""
        allowed = self.allowed[piece]
        return self.has_disk and (allowed is None or "disk" in allowed)

    def pieces(self) -> tuple[LinePiece, ...]:
        """Each block as the search takes it."""
        return self._pieces

    @cached_property
    def _pieces(self) -> tuple[LinePiece, ...]:
        made: dict[int, LinePiece] = {}
        for number, alike in enumerate(self.alike):
            if alike not in made:
                made[alike] = self._piece(number)
        return tuple([made[alike] for alike in self.alike])

    @cached_property
    def alike(self) -> Sequence[int]:
        """By block, the number of those that cost the same: most blocks of a model are alike."""
        numbers: dict[object, int] = {}
        found = []
        for number, (work, kept, stays, allowed) in enumerate(
            zip(self.work, self.demands, self.staying_bytes, self.allowed, strict=True)
        ):
            moves, is_brought = number in self.movable, number in self.brought_whole
            passes = self.passes[number]
            key = (work, kept.cache_bytes, kept.lasting_bytes, stays, allowed, moves, is_brought, passes)
            found.append(numbers.setdefault(key, len(numbers)))
        return found

    def run_ps(self, piece: int, key: DeviceKey) -> int:
        """What running a piece takes on a device."""
        known = (self.alike[piece], key)
        found = self._run_ps.get(known)
        if found is None:
            cache_bytes = self.demands[piece].cache_bytes
            # Each number of the cache meets every head that reads it, once for scores and once for what they weigh.
            state_flops = 2 * self.sizes.heads_per_key * cache_bytes // self.sizes.item_bytes
            found = self._run_ps[known] = run_ps(
                self.machine.device(key),
                self.work[piece],
                dtype=self.sizes.dtype,
                tokens=self.sizes.tokens,
                state_bytes=cache_bytes,
                state_flops=state_flops,
            )
        return found

    @cached_property
    def _run_ps(self) -> dict[tuple[int, DeviceKey], int]:
        """What was worked out of it."""
        return {}

    def fetch_ps(self, piece: int, key: DeviceKey, home: DeviceKey) -> int:
        """What bringing a piece's weights in takes."""
        return fetch_ps(self.machine, key, self.work[piece].weight_bytes, home=home)

    def host_up_to_tokens(self, piece: int, key: DeviceKey) -> int | None:
        """The most new tokens of a step up to which the host runs a part that lies there for the run of a device, and from where on
        that brings it in; None where the host always does."""
        return self._in_long_steps(piece, key).host_up_to_tokens if piece in self.brought_whole else None

    def _in_long_steps(self, piece: int, key: DeviceKey) -> LongSteps:
        known = (self.work[piece], key)
        if known not in self._long_steps:
            fetch_ps = self.fetch_ps(piece, key, HOST)
            self._long_steps[known] = LongSteps(
                self.machine, self.work[piece], self.sizes, key, fetch_ps=fetch_ps
            )
        return self._long_steps[known]

    def keeps_room(self) -> bool:
        """Whether it keeps room for what longer steps bring in, and could do without."""
        return not self.sizes.fetches_all and any(any(piece.beside_bits) for piece in self.pieces())

    def for_this_step(self) -> PlannedLine:
        """The same, with no room kept for what longer steps bring in."""
        found = replace(self, sizes=replace(self.sizes, longest_tokens=0))
        mine = vars(self)
        # All else that was worked out holds for it, too, and is most of what a line costs.
        found.__dict__.update(
            {name: mine[name] for name in mine.keys() - vars(found).keys() - {"_long_steps"}}
        )
        found.__dict__["_pieces"] = tuple(
            [replace(piece, beside_bits=(0,) * len(piece.beside_bits)) for piece in self.pieces()]
        )
        return found

    @cached_property
    def _long_steps(self) -> dict[tuple[BlockWork, DeviceKey], LongSteps]:
        """What was worked out of it."""
        return {}

    @cached_property
    def brought_whole(self) -> frozenset[int]:
        """Of the movable pieces those that are one module and share nothing: what can be brought in in some steps and not in others."""
        counts = Counter(self.units)
        names = self.names
        return frozenset(
            piece for piece in self.movable if counts[self.units[piece]] == 1 and len(names[piece]) == 1
        )

    def kept_bytes(self, piece: int) -> int:
        """What a piece keeps where it runs, with the margin."""
        kept = self.demands[piece].exec_bytes
        return ceil(kept * (1 + self.share)) if kept else 0

    @cached_property
    def movable(self) -> frozenset[int]:
        """Pieces that keep nothing, and may run on the host from within the run of another device."""
        free = runs_anywhere(self.blocks)
        return frozenset(
            number
            for number, block in enumerate(self.names)
            if free.issuperset(block) and not self.demands[number].exec_bytes
        )

    @property
    def may_move(self) -> frozenset[int]:
        """Of the movable pieces those that the strategy lets the host run."""
        return self.brought_whole if self.sizes.fetches_all else self.movable

    def _piece(self, number: int) -> LinePiece:
        work, allowed = self.work[number], self.allowed[number]
        heads = [keys[0] for keys in self.kinds]
        home = self.rests(number)
        homes = {kind for kind, key in enumerate(heads) if allowed is None or key in allowed}
        runs: list[int | None] = [self.run_ps(number, key) for key in heads]
        source = home if self.fetches else None
        fetches = [
            None if source is None or key == self.home else self.fetch_ps(number, key, source)
            for key in heads
        ]
        if HOST in heads and self.home == HOST:
            # What the search fetches lies with the host; of what may only lie on the disk, the host runs nothing.
            host = heads.index(HOST)
            homes = homes - {host} if home is None else homes | {host}
            if home == "disk":
                runs[host] = None
        elif self._has_store:
            homes |= {len(heads)} if home is not None else set()
            runs, fetches = [*runs, None], [*fetches, None]
        is_beside = self.host_runs and home == HOST and number in self.may_move
        if self.sizes.fetches_all and HOST in heads and work.flops:
            runs[heads.index(HOST)] = None
        # What longer steps bring in has room where they run it.
        beside = [
            8 * work.weight_bytes
            if is_beside
            and key != HOST
            and number in self.brought_whole
            and self._in_long_steps(number, key).is_brought_in
            else 0
            for key in heads
        ]
        # Buffers that stay are where the block runs in any case, so they are state, and no weights that could rest elsewhere.
        stays = min(self.staying_bytes[number], work.weight_bytes)
        lasts = self.kept_bytes(number)
        return LinePiece(
            bits=8 * (work.weight_bytes - stays),
            state_bits=8 * (stays + lasts),
            streamed_bits=8 * work.weight_bytes,
            homes=frozenset(homes),
            run_ps=tuple(runs),
            fetch_ps=tuple(fetches),
            host_ps=self.run_ps(number, HOST) if is_beside else None,
            beside_bits=(*beside, *(0 for _ in runs[len(heads) :])),
            passes=self.passes[number],
        )

    def _hop(self, keys: Sequence[DeviceKey], others: Sequence[DeviceKey]) -> int:
        pairs = [(key, other) for key in keys for other in others if key != other]
        return max((self.hop_ps(*pair) for pair in pairs), default=0)

    def _signature(self, key: DeviceKey) -> Hashable:
        """What two devices of a kind have in common, beside their hops: rates, room, the way from home, and what may lie there."""
        device = self.machine.device(key)
        allowed = tuple(where is None or key in where for where in self.allowed) if self._has_limits else ()
        return (
            rates_of(device),
            self.capacity_bytes[key],
            self._from_home(key),
            allowed,
            key == HOST,
        )

    @cached_property
    def _has_limits(self) -> bool:
        """Whether some block may not lie everywhere."""
        return any(where is not None for where in self.allowed)

    def _from_home(self, key: DeviceKey) -> object:
        if self.home is None or key == self.home:
            return ()
        links = self.machine.route(self.home, key).links
        return tuple((each.bytes_per_s.value, each.latency_ps and each.latency_ps.value) for each in links)

    def require_rates(self, keys: Iterable[DeviceKey]) -> None:
        """Raises InvalidDevicesError for a rate that some devices do not have, before any search."""
        for key in keys:
            if self.work:
                self.run_ps(0, key)
