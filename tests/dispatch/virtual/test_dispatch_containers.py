"""What a block does to a container that it was handed, the caller's own container shows, as in the undispatched model."""

from __future__ import annotations

import random
import threading
from collections import OrderedDict, UserDict, defaultdict
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import planner
from planner import OffloadError

X = torch.linspace(-1, 1, 4)


class Doing(nn.Module):
    """Does something to its second argument, on its own device."""

    def __init__(self, does: Callable[..., Any]) -> None:
        super().__init__()
        self.does = does
        self.weight = nn.Parameter(torch.full((4,), 2.0), requires_grad=False)

    def forward(self, x: torch.Tensor, held: Any, *more: Any, **named: Any) -> torch.Tensor:
        h = x * self.weight
        self.does(h, held, *more, **named)
        return h


class Calling(nn.Module):
    """Two layers that are handed one container."""

    def __init__(self, first: Callable[..., Any], second: Callable[..., Any] | None = None) -> None:
        super().__init__()
        self.first, self.second = Doing(first), Doing(second or first)

    def forward(self, x: torch.Tensor, make: Callable[[torch.Tensor], Any]) -> Any:
        held = make(x)
        h = self.first(x, held)
        h = self.second(h, held)
        return h, held


def both(make: Callable[[torch.Tensor], Any], *does: Callable[..., Any]) -> tuple[Any, Any]:
    """What is in the caller's container without and with dispatch."""
    _, want = Calling(*does).to(0)(X.to(0), make)
    model = planner.dispatch(Calling(*does), {"first": 0, "second": 1})
    inside: list[Any] = []

    def kept(x: torch.Tensor) -> Any:
        inside.append(make(x))
        return inside[0]

    model(X, kept)
    return want, inside[0]


class Memo(dict[str, Any]):
    """Counts what is set through its own method."""

    count = 0

    def __setitem__(self, key: str, value: Any) -> None:
        self.count += 1
        super().__setitem__(key, value)


class Store(MutableMapping[str, Any]):
    def __init__(self, **items: Any) -> None:
        self._store = items
        self.sets = 0

    def __getitem__(self, key: str) -> Any:
        return self._store[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self.sets += 1
        self._store[key] = value

    def __delitem__(self, key: str) -> None:
        del self._store[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._store)

    def __len__(self) -> int:
        return len(self._store)


class Hidden(Store):
    """Keeps its items where only its methods find them."""

    def __init__(self, items: Any = (), **more: Any) -> None:
        self._store: Any = SimpleNamespace(items={**dict(items), **more})  # type: ignore[assignment]

    def __getitem__(self, key: str) -> Any:
        return self._store.items[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._store.items[key] = value

    def __delitem__(self, key: str) -> None:
        del self._store.items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._store.items)

    def __len__(self) -> int:
        return len(self._store.items)


@dataclass
class State:
    x: Any
    log: Any = None


@dataclass(slots=True)
class Slotted:
    x: Any
    log: Any = None


class Mover:
    """Moves what it holds, and holds a list and a dict, too."""

    def __init__(self, x: Any) -> None:
        self.x, self.log, self.seen = x, [x], {"x": x}

    def to(self, device: Any) -> Mover:
        self.x = self.x.to(device)
        self.log = [item.to(device) for item in self.log]
        self.seen["x"] = self.seen["x"].to(device)
        return self


class Remade(Mover):
    """Its `to` gives another object."""

    def to(self, device: Any) -> Remade:
        made = Remade(self.x.to(device))
        made.log = self.log and [item.to(device) for item in self.log]
        return made


def words(value: Any, tensors: list[Any], seen: tuple[int, ...] = ()) -> Any:
    """A container in plain words: which tensor is where, by number, and what cannot be told apart."""
    if isinstance(value, torch.Tensor):
        for number, known in enumerate(tensors):
            if known is value:
                return number
        tensors.append(value)
        return len(tensors) - 1
    if id(value) in seen:
        return "itself"
    inner = (*seen, id(value))
    if isinstance(value, list | tuple):
        return type(value).__name__, [words(item, tensors, inner) for item in value]
    if isinstance(value, dict | MutableMapping):
        rows = [(key, words(item, tensors, inner)) for key, item in value.items()]
        return type(value).__name__, rows, getattr(value, "count", None), getattr(value, "sets", None)
    if isinstance(value, State | Slotted | Mover):
        names = sorted(value.__slots__ if isinstance(value, Slotted) else vars(value))
        return type(value).__name__, [(name, words(getattr(value, name), tensors, inner)) for name in names]
    return value


def assert_same(want: Any, got: Any) -> None:
    mine: list[Any] = []
    its: list[Any] = []
    assert words(got, mine) == words(want, its)
    for left, right in zip(mine, its, strict=True):
        assert left.cpu().equal(right.cpu())


MAPPINGS: dict[str, Callable[[torch.Tensor], Any]] = {
    "dict": lambda x: {"x": x},
    "OrderedDict": lambda x: OrderedDict(x=x),
    "defaultdict": lambda x: defaultdict(list, x=x),
    "UserDict": lambda x: UserDict(x=x),
    "subclass": lambda x: Memo(x=x),
    "custom": lambda x: Store(x=x),
    "hidden": lambda x: Hidden(x=x),
    "empty": lambda x: {},
}


def set_item(h: Any, held: Any) -> None:
    held["h"] = h + held.get("h", torch.zeros_like(h))


def update(h: Any, held: Any) -> None:
    held.update(a=h, b=[h, held.get("x")])


def pop_item(h: Any, held: Any) -> None:
    held.pop("x", None)
    held["h"] = h


def clear_dict(h: Any, held: Any) -> None:
    held.clear()
    held["x"] = h


def replace_item(h: Any, held: Any) -> None:
    held["x"] = held.pop("x", h) * 2
    held.setdefault("new", {})["h"] = (h, held["x"])


@pytest.mark.parametrize("does", [set_item, update, pop_item, clear_dict, replace_item])
@pytest.mark.parametrize("make", MAPPINGS.values(), ids=MAPPINGS)
def test_mappings(make: Callable[[torch.Tensor], Any], does: Callable[..., Any]) -> None:
    assert_same(*both(make, does))


def append(h: Any, held: Any) -> None:
    held.append(h)


def extend(h: Any, held: Any) -> None:
    held.extend([h, *held[:1]])


def insert(h: Any, held: Any) -> None:
    held.insert(0, h)


def slice_assign(h: Any, held: Any) -> None:
    held[:1] = [h, h * 2]


def pop(h: Any, held: Any) -> None:
    held.append(h)
    held.pop(0)


def sort(h: Any, held: Any) -> None:
    held.append(h)
    held.sort(key=lambda item: -float(item.abs().sum()))


def clear_list(h: Any, held: Any) -> None:
    held.clear()


class Pile(list[Any]):
    pass


@pytest.mark.parametrize("does", [append, extend, insert, slice_assign, pop, sort, clear_list])
@pytest.mark.parametrize("make", [lambda x: [x], lambda x: Pile([x, x * 3]), lambda x: []])
def test_lists(make: Callable[[torch.Tensor], Any], does: Callable[..., Any]) -> None:
    assert_same(*both(make, does))


def set_attribute(h: Any, held: Any) -> None:
    held.x = held.x + h


def fill(h: Any, held: Any) -> None:
    held.log = [*(held.log or []), h]


def grow(h: Any, held: Any) -> None:
    held.log = held.log or [h]
    held.log.append(h * 2)
    held.log[0].mul_(2)


@pytest.mark.parametrize("does", [set_attribute, fill, grow])
@pytest.mark.parametrize("make", [State, Slotted, Mover, Remade])
def test_objects(make: Callable[[torch.Tensor], Any], does: Callable[..., Any]) -> None:
    assert_same(*both(make, does))


def test_attributes_that_are_taken_away_or_new() -> None:
    def make(x: torch.Tensor) -> Any:
        held = Mover(x)
        held.extra = x
        return held

    def does(h: Any, held: Any) -> None:
        if hasattr(held, "extra"):
            del held.extra
        held.made = [h]

    want, got = both(make, does)
    assert not hasattr(got, "extra") and got.made[0].cpu().equal(want.made[0].cpu())


def test_what_a_block_writes_in_place_into_what_an_object_holds() -> None:
    want, got = both(Mover, lambda h, held: held.x.add_(h))
    assert got.x.cpu().equal(want.x.cpu()) and got.seen["x"] is got.x


def test_marks_that_a_block_sets_on_a_tensor() -> None:
    def does(h: Any, held: Any) -> None:
        held[0].scale = getattr(held[0], "scale", 1) * 3

    assert both(lambda x: [x], does)[1][0].scale == 9


def test_untouched_items_stay_the_objects_that_they_were() -> None:
    model = planner.dispatch(Calling(set_item), {"first": 0, "second": 1})
    x, nested = X.to(0), [X.to(0)]
    held = {"x": x, "nested": nested, "pair": (x, nested)}
    pair = held["pair"]
    model(X.to(0), lambda _: held)
    assert held["x"] is x and held["nested"] is nested and held["pair"] is pair and pair[1] is nested
    assert held["h"].device == torch.device(1)


def test_one_list_in_two_places_is_one_list_for_the_block() -> None:
    seen: list[bool] = []

    def does(h: Any, one: Any, two: Any, *, three: Any) -> None:
        seen.append(one is two["one"] and three is two)
        one.append(h)
        three["h"] = one

    layer = nn.Sequential(Doing(does), nn.Identity())
    planner.dispatch_model(layer, {"0": 1, "1": 0}, force_hooks=True)
    one = [X.clone()]
    two = {"one": one}
    layer[0](X, one, two, three=two)
    assert seen == [True] and len(one) == 2 and two["h"] is one and two["one"] is one


def test_a_container_that_holds_itself() -> None:
    def make(x: torch.Tensor) -> Any:
        held: dict[str, Any] = {"x": x, "log": []}
        held["self"] = held
        held["log"].append((held, x))
        return held

    def does(h: Any, held: Any) -> None:
        assert held["self"] is held and held["log"][0][0] is held
        held["self"]["log"].append(h)

    assert_same(*both(make, does))


def test_many_paths_to_one_list_are_walked_once() -> None:
    def make(x: torch.Tensor) -> Any:
        held: Any = [x]
        for _ in range(40):
            held = [held, held]
        return held

    want, got = both(make, append)
    assert len(want) == len(got) and got[0] is got[1]


class Handing(Doing):
    """Returns what it was handed, in something of its own."""

    def __init__(self, wrap: Callable[[Any, Any], Any]) -> None:
        super().__init__(lambda h, held: None)
        self.wrap = wrap

    def forward(self, x: torch.Tensor, held: Any, *more: Any, **named: Any) -> Any:
        return self.wrap(super().forward(x, held), held)


class Handed(nn.Module):
    """Two layers; keeps the container that it gave them and the one that it got back."""

    def __init__(self, wrap: Callable[[Any, Any], Any], find: Callable[[Any], Any]) -> None:
        super().__init__()
        self.first, self.second, self.find = Handing(wrap), Handing(wrap), find
        self.seen: list[tuple[Any, Any]] = []

    def forward(self, x: torch.Tensor, make: Callable[[torch.Tensor], Any]) -> torch.Tensor:
        held = make(x)
        for layer in (self.first, self.second):
            self.seen.append((held, self.find(layer(x, held))))
        return x


@pytest.mark.parametrize(
    "make", [lambda x: [x], lambda x: {"x": x}, lambda x: Store(x=x), State, Mover, Remade]
)
@pytest.mark.parametrize(
    ("wrap", "find"),
    [
        (lambda h, held: held, lambda output: output),
        (lambda h, held: (h, held), lambda output: output[1]),
        (lambda h, held: [h, (held, 1)], lambda output: output[1][0]),
        (lambda h, held: {"h": h, "in": State(held)}, lambda output: output["in"].x),
    ],
)
@torch.no_grad()
def test_a_block_returns_the_container_that_it_was_handed(make: Any, wrap: Any, find: Any) -> None:
    model = planner.dispatch(Handed(wrap, find), {"first": 0, "second": 1})
    model(X, make)
    assert len(model.seen) == 2 and all(given is got for given, got in model.seen)


def replace_data(h: Any, held: Any) -> None:
    held["x"].data = held["x"] * 3


def give_another_shape(h: Any, held: Any) -> None:
    held["x"].resize_(8).fill_(3.0)


def make_it_shorter(h: Any, held: Any) -> None:
    held["x"].resize_(1)


@pytest.mark.parametrize("does", [replace_data, give_another_shape, make_it_shorter])
@torch.no_grad()
def test_a_tensor_that_a_block_makes_another_one(does: Any) -> None:
    want, got = both(lambda x: {"x": x.clone()}, does)
    assert_same(want, got)


def test_a_block_that_raises_has_written() -> None:
    def does(h: Any, held: Any) -> None:
        held["log"].append(h)
        held["x"].add_(1)
        held["part"] = True
        if held["go"].pop():
            raise ValueError("stop")

    model = planner.dispatch(Calling(does), {"first": 0, "second": "cpu"}, execution_map={"second": 1})
    x = X.to(0)
    held: Any = {"x": x, "log": [x], "go": [True, False]}
    with pytest.raises(ValueError, match="stop"):
        model(X.to(0), lambda _: held)
    assert held["part"] and len(held["log"]) == 3 and x.cpu().equal(X + 2)


def test_what_somebody_else_appends_meanwhile_is_kept() -> None:
    outer: list[Any] = []

    def does(h: Any, held: Any) -> None:
        held.append(h)
        outer.append("outside")

    model = planner.dispatch(Calling(does), {"first": 1, "second": 0})
    outer.append(X.to(0))
    model(X.to(0), lambda _: outer)
    assert [type(item) for item in outer].count(str) == 2 and len(outer) == 5


def test_what_cannot_be_told_is_an_error() -> None:
    outer: list[Any] = [X.clone()]

    def does(h: Any, held: Any) -> None:
        held.insert(0, h)
        outer.insert(0, "outside")

    layer = nn.Sequential(Doing(does), nn.Identity())
    planner.dispatch_model(layer, {"0": 1, "1": 0}, force_hooks=True)
    with pytest.raises(planner.OffloadError, match="list of 1 items"):
        layer[0](X, outer)


def test_threads_with_containers_of_their_own() -> None:
    def does(h: Any, held: Any) -> None:
        held["log"].append(h)
        held["n"] = held.get("n", 0) + 1

    model = planner.dispatch(Calling(does), {"first": 0, "second": 1})
    held = [{"log": [X.to(0) * n]} for n in range(4)]

    def run(n: int) -> None:
        for _ in range(10):
            model(X.to(0) * n, lambda _: held[n])

    threads = [threading.Thread(target=run, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n, own in enumerate(held):
        assert own["n"] == 20 and len(own["log"]) == 21
        assert own["log"][-1].cpu().equal(X * n * 4)


class Recomputed(Calling):
    def forward(self, x: torch.Tensor, make: Any) -> Any:
        held = make(x)
        for layer in (self.first, self.second):
            x = checkpoint(layer, x, held, use_reentrant=False)
        return x, held


def test_gradient_checkpointing() -> None:
    def does(h: Any, held: Any) -> None:
        h.mul_(held["x"].detach() + 2)
        held["n"] = held.get("n", 0) + 1

    runs = []
    for device_map in (None, {"first": 0, "second": 1}):
        model = Recomputed(does)
        model = model.to(0) if device_map is None else planner.dispatch(model, device_map)
        held = {"x": X.to(0)}
        x = X.to(0).requires_grad_()
        out, _ = model(x, lambda _, held=held: held)
        out.sum().backward()
        runs.append((x.grad.cpu(), held["n"]))
    assert runs[0][0].equal(runs[1][0]) and runs[0][1] == runs[1][1]


@pytest.mark.parametrize("make", [lambda x: [x], lambda x: {"x": x}, State], ids=["list", "dict", "record"])
def test_compiled_code_gives_back_what_it_traces(make: Any) -> None:
    def does(h: Any, held: Any) -> None:
        if isinstance(held, list):
            held.append(h)
        elif isinstance(held, dict):
            held["h"] = h
        else:
            held.log = h

    class Net(Calling):
        def forward(self, x: torch.Tensor) -> Any:  # type: ignore[override]
            held = make(x)
            h = self.second(self.first(x, held), held)
            last = held[-1] if isinstance(held, list) else held["h"] if isinstance(held, dict) else held.log
            return h.to(0) + last.to(0)

    want = Net(does).to(0)(X.to(0)).cpu()
    model = planner.dispatch(Net(does), {"first": 0, "second": 1})
    torch._dynamo.reset()
    assert torch.compile(model, backend="eager", fullgraph=True)(X).equal(want)


def drawn(number: int) -> tuple[Callable[[torch.Tensor], Any], Callable[..., Any]]:
    """A nested container and a way to write to it, drawn."""
    seed = random.Random(number)

    def make(x: torch.Tensor) -> Any:
        draw = random.Random(number)

        def node(depth: int) -> Any:
            kind = draw.choice(
                ["tensor", "list", "dict", "tuple", "state", "memo", "number"]
                if depth
                else ["list", "dict", "state", "memo"]
            )
            if kind == "tensor" or depth > 3:
                return x if draw.random() < 0.5 else x * draw.random()
            if kind == "number":
                return draw.random()
            parts = [node(depth + 1) for _ in range(draw.randrange(4))]
            if kind == "list":
                return parts
            if kind == "tuple":
                return tuple(parts)
            if kind == "state":
                return State(parts[0] if parts else x, parts)
            made: Any = Memo() if kind == "memo" else {}
            dict.update(made, {f"k{at}": part for at, part in enumerate(parts)})
            return made

        return node(0)

    steps = seed.randrange(1, 6)

    def does(h: Any, held: Any) -> None:
        draw = random.Random(number)
        for _ in range(steps):
            at, places = held, [held]
            for _ in range(draw.randrange(4)):
                inner = (
                    list(at.values())
                    if isinstance(at, dict)
                    else [at.x, at.log]
                    if isinstance(at, State)
                    else list(at)
                )
                inner = [item for item in inner if isinstance(item, list | dict | State | tuple)]
                if not inner:
                    break
                at = inner[draw.randrange(len(inner))]
                places.append(at)
            new = draw.choice([h, [h], (h, places[0]), {"h": h * 2}])
            if isinstance(at, list):
                draw.choice(
                    [
                        at.append,
                        lambda item, at=at: at.insert(0, item),
                        lambda item, at=at: at.__setitem__(slice(0, 1), [item]),
                    ]
                )(new)
            elif isinstance(at, dict):
                at[draw.choice(["k0", "k1", "new"])] = new
            elif isinstance(at, State):
                at.x = new

    return make, does


@pytest.mark.parametrize("number", range(60))
def test_drawn_containers_and_writes(number: int) -> None:
    assert_same(*both(*drawn(number)))


OVERLAPPING: dict[str, Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]] = {
    "a row": lambda x: (x, x[0]),
    "columns": lambda x: (x[:, :3], x[:, 2:]),
    "steps": lambda x: (x.view(-1)[::2], x.view(-1)[::3]),
    "the same": lambda x: (x, x.detach()),
    "transposed": lambda x: (x, x.t()),
    "other numbers": lambda x: (x, x.view(torch.int32)),
}
APART: dict[str, Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]] = {
    "two rows": lambda x: (x[0], x[1]),
    "columns": lambda x: (x[:, :2], x[:, 2:]),
    "steps": lambda x: (x.view(-1)[::2], x.view(-1)[1::2]),
    "nothing": lambda x: (x, x[:0]),
    "another tensor": lambda x: (x, x.clone()),
}


class Writing(nn.Module):
    """May write into the first of two tensors that it is handed."""

    def __init__(self, writes: bool) -> None:
        super().__init__()
        self.writes = writes
        self.weight = nn.Parameter(torch.full((1,), 3.0), requires_grad=False)

    def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        if self.writes:
            x.mul_(2)
        return other.sum() * self.weight


class HandingViews(nn.Module):
    """Two layers that are handed views of one tensor, of which the second one writes."""

    def __init__(self, views: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]) -> None:
        super().__init__()
        self.views = views
        self.near, self.far = Writing(False), Writing(True)

    def forward(self, x: torch.Tensor) -> Any:
        one, other = self.views(x)
        return self.near(one, other), self.far(one, other), x


@pytest.mark.parametrize("kind", OVERLAPPING)
def test_a_write_to_one_of_two_views_of_the_same_bytes_is_refused(kind: str) -> None:
    model = planner.dispatch(HandingViews(OVERLAPPING[kind]), {"near": 0, "far": 1})
    x = torch.arange(16.0).view(4, 4).to(0)
    before = x.clone()
    with pytest.raises(OffloadError, match="another view of the same bytes"):
        model(x)
    assert x.equal(before)


@pytest.mark.parametrize("kind", APART)
def test_a_write_to_one_of_two_views_of_other_bytes_is_given_back(kind: str) -> None:
    x = torch.arange(16.0).view(4, 4)
    want = HandingViews(APART[kind]).to(0)(x.to(0))
    got = planner.dispatch(HandingViews(APART[kind]), {"near": 0, "far": 1})(x.to(0))
    assert all(mine.cpu().equal(its.cpu()) for mine, its in zip(got, want, strict=True))
