"""Whatever is called finds its arguments where it runs, and a name runs where all that is inside runs."""

from __future__ import annotations

import copy
import random
from typing import Any

import pytest
import torch
from torch import nn

import planner

X = torch.arange(16.0).reshape(2, 8) / 10


class Res(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.fc(x)


class Chain(nn.Module):
    """Calls modules by their full names, one after the other."""

    def __init__(self, holder: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.inp, self.mid, self.names = nn.Linear(8, 8), holder, names

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inp(x)
        for name in self.names:
            x = self.get_submodule(name)(x)
        return x


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attn, self.mlp = Res(), Res()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mlp(self.attn(x))


class Whole(Pair):
    _no_split_modules = ("Whole",)


def holding(holder: nn.Module, **parts: nn.Module) -> nn.Module:
    for name, part in parts.items():
        holder.add_module(name, part)
    return holder


CALLS: dict[str, Any] = {
    "namespace": lambda: Chain(holding(nn.Module(), part=Res()), ["mid.part"]),
    "module dict": lambda: Chain(nn.ModuleDict({"part": Res()}), ["mid.part"]),
    "namespaces in one another": lambda: Chain(
        holding(nn.Module(), a=holding(nn.Module(), b=Res())), ["mid.a.b"]
    ),
    "list of lists": lambda: Chain(nn.ModuleList([nn.ModuleList([Res(), Res()])]), ["mid.0.1", "mid.0.0"]),
    "parts of a block": lambda: Chain(
        nn.ModuleList([Pair(), Pair()]), ["mid.0.attn", "mid.0.mlp", "mid.1.mlp"]
    ),
    "parts of a part": lambda: Chain(nn.ModuleList([Pair()]), ["mid.0.attn.fc", "mid.0.mlp"]),
    "parts of a whole class": lambda: Chain(
        nn.ModuleList([Whole(), Whole()]), ["mid.0.attn", "mid.1.mlp", "mid.1"]
    ),
    "a composite": lambda: Chain(holding(Pair()), ["mid"]),
    "sequence": lambda: Chain(nn.Sequential(Res(), nn.ReLU(), Res()), ["mid.2", "mid", "mid.1"]),
}


def check(net: nn.Module, device_map: dict[str, Any], execution_map: dict[str, Any] | None = None) -> None:
    """As on one device, as given and called again; and again after it was dispatched twice."""
    want = copy.deepcopy(net).to(0)(X.to(0)).cpu()
    for _ in range(2):
        planner.dispatch(net, device_map, execution_map=execution_map)
        for _ in range(2):
            found = net(X.to(0))
            assert found.device == torch.device(0)
            assert torch.allclose(found.cpu(), want, atol=1e-6), device_map
    planner.undispatch(net)
    assert net(X).equal(copy.deepcopy(net)(X))


@pytest.mark.parametrize("where", [1, "cpu"])
@pytest.mark.parametrize("call", CALLS)
@torch.no_grad()
def test_whatever_is_called_has_a_border(call: str, where: Any) -> None:
    torch.manual_seed(0)
    check(CALLS[call](), {"inp": 0, "mid": where})
    if where == "cpu":
        check(CALLS[call](), {"inp": 0, "mid": where}, {"mid": 1})
        check(CALLS[call](), {"inp": 0, "mid": where}, {"mid": "cpu"})


@torch.no_grad()
def test_a_part_that_is_called_alone_finds_its_arguments() -> None:
    net = CALLS["parts of a block"]()
    planner.dispatch(net, {"inp": 0, "mid": 1})
    for name in ("mid.0", "mid.0.attn", "mid.1.mlp.fc"):
        assert net.get_submodule(name)(X.to(0)).device == torch.device(1)


@pytest.mark.parametrize("where", [1, "cpu"])
@torch.no_grad()
def test_keys_of_tensors_that_agree_are_as_good_as_one_of_their_module(where: Any) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), Res()).eval()
    names = [name for name in net.state_dict() if name.startswith(("1.", "2."))]
    check(net, {"0.weight": 0, "0.bias": 0, **dict.fromkeys(names, where)})
    check(net, {"0.weight": where, "0.bias": where, **dict.fromkeys(names, 0)})
    if where == "cpu":
        # One rests, the other does not; both run on the first device.
        check(net, {"0.weight": where, "0.bias": 0, **dict.fromkeys(names, 1)}, {"0.weight": 0})


@torch.no_grad()
def test_keys_that_split_a_linear_are_refused_as_ever() -> None:
    with pytest.raises(planner.PlanMismatchError, match="splits one Linear"):
        planner.dispatch(
            nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), {"0.weight": 0, "0.bias": 1, "1": 1}
        )


class Own(nn.Module):
    """Parts on several devices, and a tensor of its own that meets what they give."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((8,), 0.5))
        self.left, self.right = Res(), Res()
        self.biases = nn.ParameterList([nn.Parameter(torch.ones(8)), nn.Parameter(torch.zeros(8))])
        self.register_buffer("mean", torch.ones(8), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) * self.scale + self.left(x) + self.biases[0] + self.right(x) * self.biases[1]


@pytest.mark.parametrize("seed", range(12))
@torch.no_grad()
def test_tensors_of_a_module_whose_parts_are_apart(seed: int) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    net = Chain(holding(nn.Module(), a=Own(), b=Own()), ["mid.a", "mid.b"])
    names = [f"mid.{part}.{name}" for part in "ab" for name in ("scale", "left", "right", "biases")]
    check(net, {"inp": 0, **{name: draw.choice([0, 1, "cpu"]) for name in names}})


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.act, self.b = Res(), nn.GELU(), Res()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.b(self.act(self.a(x)))


class Net(nn.Module):
    _no_split_modules = ("Res",)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Outer(), Outer()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x))


@pytest.mark.parametrize(
    ("device_map", "runs"),
    [
        ({"first": 0, "second": "cpu"}, {"second.a": 0, "second.b": 0}),
        ({"first": 0, "second": "cpu"}, {"second": "cpu", "second.a": 0, "second.b": 0}),
        ({"first": 0, "second": "cpu"}, {"second": "cpu", "second.a": 0, "second.b": 1}),
        ({"first": 0, "second": "cpu"}, {"second": "cpu", "second.a": 0}),
        ({"first": 1, "second": "cpu"}, {"second.a": 1, "second.b": 1}),
        ({"": "cpu"}, {"first": 0, "second": 0}),
        ({"": "cpu"}, {"first.a": 0, "first.b": 0, "second.a": 0, "second.b": 0}),
        ({"": "cpu"}, {"first.a": 0, "first.b": 1, "second.a": 1, "second.b": 0}),
        ({"first": "cpu", "second": "cpu"}, {"first": 1, "second": 1}),
    ],
)
@torch.no_grad()
def test_a_name_runs_where_all_that_is_inside_runs(device_map: dict[str, Any], runs: dict[str, Any]) -> None:
    torch.manual_seed(0)
    check(Net(), device_map, runs)


@torch.no_grad()
def test_what_a_merged_key_names_does_not_compute_where_it_lies(virtual_accelerators: Any) -> None:
    """Nothing goes back to the host but the answer, which the caller's device gets."""
    for device_map, runs in (
        ({"first": 0, "second": "cpu"}, {"second": "cpu", "second.a": 0, "second.b": 0}),
        (
            {"": "cpu"},
            {"": "cpu", **{f"{outer}.{part}": 0 for outer in ("first", "second") for part in "ab"}},
        ),
    ):
        net = planner.dispatch(Net(), device_map, execution_map=runs)
        net(X.to(0))
        virtual_accelerators.reset()
        net(X.to(0))
        assert virtual_accelerators.traffic().to_host_bytes == 0
        assert planner.crossings(net) == ()


@pytest.mark.parametrize("blocks", range(5))
@torch.no_grad()
def test_plans_with_merged_keys_run(blocks: int) -> None:
    torch.manual_seed(0)
    net, one_bytes = Net(), 8 * 9 * 4
    want = copy.deepcopy(net).to(0)(X.to(0)).cpu()
    for budgets in ({0: one_bytes * blocks}, {0: one_bytes * blocks, 1: one_bytes}):
        for runs in ("gpu", "cpu"):
            try:
                plan = planner.plan(net, max_memory={**budgets, "cpu": 10**6}, execute_offloaded=runs)
            except (planner.InfeasibleError, planner.InvalidInputError):
                continue
            if plan.execution_map == {} and set(plan.device_map.values()) == {"cpu"}:
                continue  # on one device nothing is attached
            planner.dispatch(net, plan)
            assert torch.allclose(net(X.to(0)).cpu(), want, atol=1e-6), (plan.device_map, plan.execution_map)
            planner.undispatch(net)


class Residual(nn.Module):
    """Its activation and its shortcut have no tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act, self.shortcut = nn.Linear(8, 8), nn.ReLU(), nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.act(self.fc(x))
        out += self.shortcut(x)
        return self.act(out)


@torch.no_grad()
def test_a_module_without_tensors_runs_where_it_is_called_whatever_its_key_says() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(Residual(), Residual())
    for places in ((1, 0, 0), (1, 1, 0), (0, 1, 1), (0, "cpu", 1), ("cpu", 0, 1)):
        parts = dict(zip(("fc", "act", "shortcut"), places, strict=True))
        check(net, {"0": 0, **{f"1.{name}": device for name, device in parts.items()}})
    planner.dispatch(net, {"0": 0, "1.fc": 1, "1.act": 0, "1.shortcut": 0})
    net(X.to(0))
    assert planner.crossings(net) == ()


class Positions(nn.Embedding):
    """Makes its positions on a device that it is told."""

    def forward(self, shape: Any, device: Any) -> torch.Tensor:  # type: ignore[override]
        return super().forward(torch.arange(shape[0], device=device))


class Told(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.positions, self.scale = nn.Linear(8, 8), Positions(4, 8), nn.Parameter(torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.fc(x) * self.scale
        return x + self.positions(x.shape, x.device)


@pytest.mark.parametrize("where", [0, 1, "cpu"])
@torch.no_grad()
def test_a_block_that_is_told_another_device_finds_what_it_makes_there(where: Any) -> None:
    torch.manual_seed(0)
    check(Told(), {"fc": 0, "scale": 1, "positions": where})
    check(Told(), {"fc": 1, "scale": 0, "positions": where}, {"positions": "cpu"} if where == "cpu" else None)


class Twice(nn.Module):
    """One module under two names, and an activation under several."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.enc, self.dec = nn.Tanh(), Pair(), nn.Module()
        self.dec.shared, self.dec.act, self.tail = self.enc.attn, self.act, Res()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tail(self.dec.act(self.dec.shared(self.tail(self.act(self.enc(x))))))


@pytest.mark.parametrize(
    "device_map",
    [
        {"enc": 0, "dec.shared": 0, "dec.act": 0, "act": 0, "tail": 1},
        {"enc": 1, "dec.shared": 1, "dec.act": 0, "act": 1, "tail": 0},
        {"enc": "cpu", "dec": "cpu", "tail": 1, "act": 0},
    ],
)
@torch.no_grad()
def test_second_names_that_are_keys(device_map: dict[str, Any]) -> None:
    torch.manual_seed(0)
    check(Twice(), device_map)
    net = planner.dispatch(Twice(), {"enc": 0, "dec.shared": 0, "tail": 1, "act": 0, "dec.act": 0})
    assert net.dec.shared(X.to(1)).device == torch.device(0)


class Tree(nn.Module):
    """Nested modules, some without a forward, some that add what their parts give, some that chain it."""

    def __init__(self, draw: random.Random, depth: int) -> None:
        super().__init__()
        self.kind = draw.choice(["chain", "sum", "gate", "inside"])
        self.scale = nn.Parameter(torch.full((8,), 0.7)) if draw.random() < 0.3 else None
        self.parts: Any = draw.choice(
            [nn.ModuleList, lambda parts: holding(nn.Module(), **dict(zip("pqr", parts, strict=False)))]
        )(
            [
                Tree(draw, depth - 1) if depth and draw.random() < 0.6 else Res()
                for _ in range(draw.randint(1, 3))
            ]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        start, parts = x, list(self.parts.children())
        for part in parts:
            if self.kind == "chain":
                x = part(x)
            elif self.kind == "sum":
                x = x + part(start)
            elif self.kind == "gate":
                x = part(x) * torch.sigmoid(start)
            else:
                # By its parts' own names, if it has any.
                x = part.fc(x) - start if isinstance(part, Res) else part(x)
        return x if self.scale is None else x * self.scale


@pytest.mark.parametrize("seed", range(40))
@torch.no_grad()
def test_drawn_trees_run_under_drawn_keys(seed: int) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    net = Tree(draw, 3)
    if draw.random() < 0.5:
        type(net)._no_split_modules = ("Res",)
    names = [
        name for name, module in net.named_modules() if name and next(module.parameters(), None) is not None
    ]
    device_map = {
        "": draw.choice([0, 1, "cpu"]),
        **{n: draw.choice([0, 1, "cpu"]) for n in draw.sample(names, len(names) // 2)},
    }
    runs = {
        n: draw.choice([0, 1, "cpu"]) for n in draw.sample(names, len(names) // 3) if _rests(n, device_map)
    }
    # On one device nothing is attached.
    device_map[names[-1]] = 1 - device_map[""] if device_map[""] in (0, 1) else 1
    runs.pop(names[-1], None)
    try:
        check(net, device_map, runs)
    finally:
        if "_no_split_modules" in vars(Tree):
            del Tree._no_split_modules


def _rests(name: str, device_map: dict[str, Any]) -> bool:
    """Whether all of a name lies on the CPU."""
    inside = [key for key in device_map if key.startswith(f"{name}.")]
    while name not in device_map:
        name = name.rpartition(".")[0]
    return all(device_map[key] == "cpu" for key in (name, *inside))


class Attending(nn.Module):
    """torch's attention computes with the weights of its last layer and never calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.attention = nn.Linear(8, 8), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.before(x)[None]
        found: torch.Tensor = self.attention(x, x, x)[0][0]
        return found


IN = {"attention.in_proj_weight": 1, "attention.in_proj_bias": 1}


@pytest.mark.parametrize("is_trained", [False, True])
@pytest.mark.parametrize("execution_map", [{}, {"attention.out_proj": 0}, {"attention.out_proj": "cpu"}])
@pytest.mark.parametrize(
    "where",
    [
        {**IN, "attention.out_proj": "cpu"},
        {**IN, "attention.out_proj": 0},
        {"attention": 1, "attention.out_proj": "cpu"},
        {"attention": "cpu", "attention.out_proj": 1},
        {"attention": "cpu", "attention.out_proj.bias": 0},
        {**dict.fromkeys(IN, "cpu"), "attention.out_proj": 1},
    ],
)
def test_attention_with_its_last_layer_elsewhere(where: Any, execution_map: Any, is_trained: bool) -> None:
    torch.manual_seed(0)
    plain = Attending().eval().requires_grad_(False)
    plain.before.requires_grad_(is_trained)
    model = planner.dispatch(
        copy.deepcopy(plain),
        {"before": 0, **where},
        execution_map=execution_map if where.get("attention.out_proj") == "cpu" else None,
    )
    x = torch.randn(3, 8)
    for _ in range(2):
        found, want = model(x), plain(x)
        assert torch.allclose(found, want, atol=1e-6)
    if is_trained:
        found.sum().backward()
        want.sum().backward()
        assert torch.allclose(model.before.weight.grad.cpu(), plain.before.weight.grad, atol=1e-6)
    planner.undispatch(model)
    assert all(
        mine.equal(its)
        for mine, its in zip(model.state_dict().values(), plain.state_dict().values(), strict=True)
    )
