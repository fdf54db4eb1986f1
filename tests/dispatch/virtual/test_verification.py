"""`verify` says what dispatching does, without dispatching: the same verdict, the same crossings, and nothing touched."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner import PlannerError, Verification
from rig import Accelerators
from tiny_models import TINY

X = torch.linspace(-1, 1, 16).reshape(2, 8)


class Res(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = x + self.fc(x)
        return made


class Summed(nn.Module):
    """The parent adds what its parts give."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = self.parts[0](x)
        for part in list(self.parts)[1:]:
            total = total + part(x)
        return total


class Skipping(nn.Module):
    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        for index, part in enumerate(parts):
            self.add_module(f"part_{index}", part)
        self.register_buffer("scale", torch.full((8,), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = x
        for part in self.children():
            x = part(x)
        return torch.cat([x, kept], -1)[..., :8] * self.scale


class Joined(nn.Module):
    """Uses a weight of a part that it never calls."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part
        self.other = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.other(x) @ torch.ones_like(next(self.part.parameters()))[:8, :8].T
        return made


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum() > 0 else x


def drawn(draw: random.Random, depth: int = 0) -> nn.Module:
    kinds: list[Callable[[], nn.Module]] = [lambda: nn.Linear(8, 8), Res, nn.ReLU]
    if depth < 2:
        few = draw.randrange(1, 4)
        kinds += [
            lambda: nn.Sequential(*(drawn(draw, depth + 1) for _ in range(few))),
            lambda: Summed(*(drawn(draw, depth + 1) for _ in range(few))),
            lambda: Skipping(*(drawn(draw, depth + 1) for _ in range(few))),
            lambda: Joined(nn.Linear(8, 8)),
        ]
    return draw.choice(kinds)()


def drawn_map(draw: random.Random, model: nn.Module) -> dict[str, Any]:
    """Devices for disjoint parts, now and then for a single tensor."""
    found: dict[str, Any] = {}

    def place(module: nn.Module, name: str) -> None:
        if not list(module.parameters()) and not list(module.buffers()):
            return
        own = [*module._parameters, *module._buffers]
        if (name and draw.random() < 0.4) or (not module._modules and draw.random() < 0.9):
            found[name] = draw.choice([0, 0, 1, 1, "cpu"])
            return
        for key in own:
            found[f"{name}.{key}" if name else key] = draw.choice([0, 1])
        for key, child in module.named_children():
            place(child, f"{name}.{key}" if name else key)

    place(model, "")
    return found


def really(model: nn.Module, device_map: dict[str, Any], inputs: Any) -> Verification:
    """What dispatching and running gives."""
    args = inputs if isinstance(inputs, tuple) else ()
    kwargs = inputs if isinstance(inputs, dict) else {}
    devices = {str(device) for device in device_map.values()}
    if len(devices) == 1:
        # Whoever runs a model on one device takes its inputs there.
        device = next(iter(device_map.values()))
        args = tuple(tensor.to(device) for tensor in args)
        kwargs = {name: tensor.to(device) for name, tensor in kwargs.items()}
    try:
        planner.dispatch(model, device_map)
        with torch.no_grad():
            model(*args, **kwargs)
    except (PlannerError, RuntimeError) as error:
        return Verification(False, str(error), crossings_of(model))
    return Verification(True, None, crossings_of(model))


def crossings_of(model: nn.Module) -> Any:
    return planner.crossings(model) if hasattr(model, "_planner_dispatch") else ()


def snapshot(model: nn.Module) -> Any:
    return [
        (
            name,
            {
                key: (id(value), value if isinstance(value, bool) else None)
                for key, value in vars(module).items()
            },
        )
        for name, module in model.named_modules()
    ], {
        name: (id(tensor), tensor.data_ptr(), tensor._version, str(tensor.device))
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if not tensor.is_meta
    }


def agree(model: nn.Module, device_map: dict[str, Any], inputs: Any) -> Verification:
    before, state = snapshot(model), torch.get_rng_state()
    found = planner.verify(model, device_map, inputs)
    assert snapshot(model) == before and torch.get_rng_state().equal(state)
    want = really(model, device_map, inputs)
    assert found.runs == want.runs, (str(found), str(want), device_map, str(model))
    if found.runs:
        assert found.crossings == want.crossings
    return found


@pytest.mark.parametrize("seeds", range(0, 160, 20))
def test_drawn_nets(virtual_accelerators: Accelerators, seeds: int) -> None:
    for seed in range(seeds, seeds + 20):
        draw = random.Random(seed)
        torch.manual_seed(seed)
        model = nn.Sequential(*(drawn(draw) for _ in range(3)), nn.Linear(8, 8)).eval()
        agree(model, drawn_map(draw, model), (X,))


@pytest.mark.parametrize("name", TINY)
def test_classes_of_transformers(virtual_accelerators: Accelerators, name: str) -> None:
    draw = random.Random(name)
    tiny = TINY[name]
    for _ in range(4):
        model = tiny.make().eval()
        names = [*tiny.outer, *(f"{part}.{layer}" for part in tiny.lists for layer in range(4))]
        device_map = {key: draw.choice([0, 1, "cpu"]) for key in names}
        if name == "mixtral_eager":
            assert planner.verify(model, device_map, tiny.inputs("cpu")).runs is None
            continue
        agree(model, device_map, tiny.inputs("cpu"))


def test_ids_that_go_back_and_forth(virtual_accelerators: Accelerators) -> None:
    """The model's arguments go to its main device first, and the embedding is not there."""

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.body = nn.Embedding(8, 8), Res()

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = self.body(self.embed(ids))
            return made

    for device_map in ({"embed": "cpu", "body": 1}, {"embed": 1, "body": 0}):
        assert agree(Words().eval(), device_map, (torch.arange(4)[None],)).runs


class Looping(nn.Module):
    """Counts and branches by its inputs, as vision models do by sizes of pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.register_buffer("limit", torch.tensor(3))

    def forward(self, x: torch.Tensor, sizes: torch.Tensor) -> torch.Tensor:
        parts = self.a(x).split(sizes.tolist())
        mask = torch.arange(len(x), device=x.device) < int(sizes[0])
        kept = x[mask].sum() + x.masked_fill(mask[:, None].to(x.device), 0)[~mask].sum()
        for _ in range(min(int(self.limit), int((sizes > 0).sum()))):
            kept = kept + torch.cat([self.b(part) for part in parts]).sum()
        where = mask.nonzero().flatten()
        answer: torch.Tensor = kept + self.b(x)[where].sum()
        return answer


def test_values_of_inputs_are_there(virtual_accelerators: Accelerators) -> None:
    sizes = torch.tensor([1, 1])
    for device_map in ({"a": 0, "b": 1, "limit": 0}, {"a": "cpu", "b": 1, "limit": 1}, {"": 1}):
        assert agree(Looping().eval(), device_map, (X, sizes)).runs
    with torch.device("meta"):
        model = Looping()
    model.limit = torch.tensor(1)
    assert planner.verify(model, {"a": 0, "b": 1, "limit": 0}, (X, sizes)).runs


NUMBERS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "list": lambda x, y: y[: int(torch.tensor([len(x), x.sum() > 9])[0])],
    "nested": lambda x, y: y * torch.tensor(([x[0, 0], 2], [x.sum(), 1.5])).sum(),
    "new": lambda x, y: y * x.new_tensor((x.argmax(), True))[0].to(y.device),
    "of weights": lambda x, y: torch.as_tensor([y.sum(), y.mean()], device=y.device) + y[:, :2],
    "as an index": lambda x, y: y[torch.asarray([x.argmax(), 1]) % 2],
}


@pytest.mark.parametrize("name", NUMBERS)
def test_tensors_made_of_tensors_of_one_element(virtual_accelerators: Accelerators, name: str) -> None:
    class Making(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Res(), Res()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return NUMBERS[name](x, self.b(self.a(x)))

    assert agree(Making().eval(), {"a": 0, "b": 1}, (X,)).runs


def test_numbers_of_weights_in_a_list_are_unknown(virtual_accelerators: Accelerators) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Res(), Res()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.b(self.a(x))
            return y[: int(torch.tensor([y.sum(), 1])[1])]

    assert planner.verify(Counting(), {"a": 0, "b": 1}, X).runs is None


def closed_over(model: Summed) -> None:
    first, old = model.parts[0], model.parts[1].forward
    model.parts[1].forward = lambda x: old(x) * 2
    model.parts[0].register_forward_hook(lambda *given: given[2] + first.fc.bias)


def compiled(model: Summed) -> None:
    model.parts[0] = torch.compile(model.parts[0], backend="eager")
    model.parts[1].compile(backend="eager")


@pytest.mark.parametrize("change", [closed_over, compiled])
def test_functions_that_hold_the_models_modules(
    virtual_accelerators: Accelerators, change: Callable[[Summed], None]
) -> None:
    model = Summed(Res(), Res()).eval()
    change(model)
    assert len(agree(model, {"parts.0": 0, "parts.1": 1}, (X,)).crossings) == 1


def test_data_from_another_device(virtual_accelerators: Accelerators) -> None:
    class Setting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = Res(), Res()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x)
            x.data = self.b(x)
            return x

    assert agree(Setting().eval(), {"a": 0, "b": 1}, (X,)).runs


def test_values_of_weights_are_not(virtual_accelerators: Accelerators) -> None:
    model = nn.Sequential(nn.Linear(8, 8), Branching(), nn.Linear(8, 8))
    found = planner.verify(model, {"0": 0, "1": 0, "2": 1}, X)
    assert found.runs is None and found.error is not None
    assert "'1', Branching" in found.error and __file__ in found.error
    assert str(found).startswith("cannot be told: it depends on")
    assert planner.verify(nn.Sequential(Branching(), nn.Linear(8, 8)), {"": 0}, X).runs  # of inputs they are
    assert planner.verify(model, {"": 0}, X.to("meta")).runs is None


REFUSED: dict[str, tuple[Callable[[], nn.Module], Any, str]] = {
    "no such part": (Res, {"fc": 0, "gc": 1}, "which the model does not have"),
    "no device": (lambda: nn.Sequential(Res(), Res()), {"0": 0}, "no device for"),
    "half a layer": (Res, {"fc.weight": 0, "fc.bias": 1}, "splits one Linear"),
    "lazy": (lambda: nn.LazyLinear(8), {"": 0}, "not initialised yet"),
    "another library's hooks": (
        lambda: planner.add_hook_to_module(Res(), planner.ModelHook()),
        {"": 0},
        "has a hook already",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_dispatch_refuses_does_not_run(virtual_accelerators: Accelerators, case: str) -> None:
    make, device_map, words = REFUSED[case]
    model = make()
    found = planner.verify(model, device_map, X)
    assert found.runs is False and words in str(found.error)
    with pytest.raises(PlannerError) as caught:
        planner.dispatch(model, device_map)
    assert str(caught.value) == found.error


def test_a_stand_in_that_is_read(virtual_accelerators: Accelerators) -> None:
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = self.a(x) @ self.b.weight
            return made

    found = agree(Reading().eval(), {"a": 0, "b": "cpu"}, (X,))
    assert found.runs is False and "'b.weight' is offloaded" in str(found)


@pytest.mark.parametrize("plan", ["auto", None, [("0", 0)], 5, 1.5, object()])
def test_no_plan(plan: Any) -> None:
    with pytest.raises(planner.InvalidInputError, match="a plan, or a device map"):
        planner.verify(nn.Linear(8, 8), plan, X)


def test_no_device() -> None:
    with pytest.raises(planner.InvalidDevicesError):
        planner.verify(nn.Linear(8, 8), {"": "moon"}, X)


@pytest.mark.parametrize("inputs", [X[:, :3], (), (X, X), {"y": X}, 5, "x"])
def test_inputs_that_no_plan_would_take(virtual_accelerators: Accelerators, inputs: Any) -> None:
    with pytest.raises(planner.InvalidInputError, match="inputs"):
        planner.verify(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), {"0": 0, "1": 1}, inputs)


def test_without_inputs_somebody_must_tell_them() -> None:
    with pytest.raises(planner.InvalidInputError, match="give inputs"):
        planner.verify(nn.Linear(8, 8), {"": 0})


@pytest.mark.parametrize("is_meta", [False, True])
@pytest.mark.parametrize("name", TINY)
def test_main_inputs_and_models_without_weights(
    virtual_accelerators: Accelerators, name: str, is_meta: bool
) -> None:
    tiny = TINY[name]
    with torch.device("meta" if is_meta else "cpu"):
        model = tiny.make()
    device_map = {key: index % 2 for index, key in enumerate([*tiny.outer, *tiny.lists])}
    before = [id(tensor) for tensor in (*model.parameters(), *model.buffers())]
    assert planner.verify(model, device_map).runs is (None if name == "mixtral_eager" else True)
    assert [id(tensor) for tensor in (*model.parameters(), *model.buffers())] == before


def test_devices_that_are_not_there_and_disks(virtual_accelerators: Accelerators) -> None:
    model = nn.Sequential(*(Res() for _ in range(9)))
    assert planner.verify(model, {str(index): index for index in range(9)}, X).runs
    assert planner.verify(model, {str(index): index if index < 8 else "disk" for index in range(9)}, X).runs


def test_a_dispatched_model_and_another_plan(virtual_accelerators: Accelerators) -> None:
    model = nn.Sequential(Res(), Res(), Summed(Res(), Res())).eval()
    want = model(X)
    planner.dispatch(model, {"0": 0, "1": "cpu", "2": 1})
    before = [dict(vars(module)) for module in model.modules()]
    found = planner.verify(model, {"0": "cpu", "1": 1, "2.parts.0": 0, "2.parts.1": 1}, X)
    assert found.runs and [(row.operator, row.from_device, row.to_device) for row in found.crossings] == [
        ("add", 1, 0)
    ]
    assert [dict(vars(module)) for module in model.modules()] == before
    assert torch.allclose(model(X), want, atol=1e-6) and planner.crossings(model) == ()
    assert planner.verify(model[2], {"": 0}, X).runs is False  # a part, as for dispatch


class Writing(nn.Module):
    """Changes whatever it holds, draws numbers, and remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.drop = nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.seen: list[torch.Tensor] = []
        self.options = {"mode": "new"}
        self.table = torch.ones(8)
        self.itself = [self.fc]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.seen.append(x)
        self.options["mode"] = "old"
        self.eval()
        self.table.mul_(2)
        random.random()
        torch.set_grad_enabled(True)
        made: torch.Tensor = self.drop(self.norm(self.itself[0](x))) + torch.rand(8).to(x.device)
        return made


class FailingError(Exception):
    pass


@pytest.mark.parametrize("how", ["runs", "raises", "interrupted"])
def test_nothing_is_left_behind(virtual_accelerators: Accelerators, how: str) -> None:
    class Last(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if how == "interrupted":
                raise KeyboardInterrupt
            if how == "raises" and x.device.index == 1:
                raise FailingError
            return super().forward(x)

    model = nn.Sequential(Writing(), Last(8, 8)).train()
    calls: list[int] = []
    model[0].fc.register_forward_hook(lambda *_: calls.append(1))
    kept = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    attributes = [{**vars(module), "hooks": dict(module._forward_hooks)} for module in model.modules()]
    state, other, used = torch.get_rng_state(), random.getstate(), virtual_accelerators.used_bytes(1)
    if how == "interrupted":
        with pytest.raises(KeyboardInterrupt):
            planner.verify(model, {"0": 0, "1": 1}, X)
    else:
        assert planner.verify(model, {"0": 0, "1": 1}, X).runs is (how == "runs")
    assert torch.is_grad_enabled() and model.training and model[0].training
    assert all(tensor.equal(kept[key]) for key, tensor in model.state_dict().items())
    assert model[0].seen == [] and model[0].options == {"mode": "new"} and model[0].table.equal(torch.ones(8))
    assert [
        {**vars(module), "hooks": dict(module._forward_hooks)} for module in model.modules()
    ] == attributes
    assert torch.get_rng_state().equal(state) and random.getstate() == other
    assert virtual_accelerators.used_bytes(1) == used
    assert type(torch.ones(1)) is torch.Tensor


def test_what_cannot_be_copied_is_shared(virtual_accelerators: Accelerators) -> None:
    import threading

    class Holder:
        def __init__(self, part: nn.Module) -> None:
            self.part, self.lock = part, threading.Lock()

    class Locked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.lock = nn.Linear(8, 8), nn.Linear(8, 8), threading.Lock()
            self.held = {"holder": [Holder(self.b)]}

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with self.lock:
                made: torch.Tensor = self.held["holder"][0].part(self.a(x))
                return made

    assert planner.verify(Locked(), {"a": 0, "b": 1}, X).runs


def test_threads(virtual_accelerators: Accelerators) -> None:
    from concurrent.futures import ThreadPoolExecutor

    model = nn.Sequential(Res(), Summed(Res(), Res()))
    want = model(X)
    with ThreadPoolExecutor(3) as pool:
        found = [
            pool.submit(planner.verify, model, {"0": 0, "1.parts.0": 0, "1.parts.1": 1}, X) for _ in range(9)
        ]
        assert all(torch.allclose(model(X), want) for _ in range(20))
    assert all(each.result().runs and len(each.result().crossings) == 1 for each in found)


def test_words() -> None:
    row = planner.verify(Summed(Res(), Res()), {"parts.0": 0, "parts.1": 1}, X).crossings[0]
    assert row.size_bytes == 64 and row.count == 1 and row.where.startswith(__file__)
    assert str(Verification(True, None, (row,))) == f"runs; 1 crossing (64 B) in each forward\n  {row}"
    assert str(Verification(False, "why", ())) == "does not run: why"
