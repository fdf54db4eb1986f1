"""The model's own code between blocks: what lies on several devices is brought together there, and counted."""

from __future__ import annotations

import copy
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_dispatch_interrupts import interrupted
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

import planner
from planner.dispatching.mixed.operators import RANDOM

X = torch.arange(24.0).reshape(3, 8) / 10 - 1


class Res(nn.Module):
    def __init__(self, hidden: int = 8) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, hidden), nn.Linear(hidden, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(x).relu())


class Net(nn.Module):
    """Two parts that see the same, and whatever is done with what they give."""

    def __init__(self, mix: Callable[..., Any] = torch.add) -> None:
        super().__init__()
        self.left, self.right, self.mix = Res(), Res(), mix

    def forward(self, x: torch.Tensor) -> Any:
        return self.mix(self.left(x), self.right(x))


APART: dict[str, Any] = {"left": 0, "right": 1}


def nets(
    mix: Callable[..., Any] = torch.add, device_map: dict[str, Any] = APART
) -> tuple[nn.Module, nn.Module]:
    """On one device, and over several."""
    torch.manual_seed(0)
    net = Net(mix)
    return copy.deepcopy(net).to(0), planner.dispatch(net, device_map)


def stack_size() -> int:
    return torch._C._len_torch_function_stack()


# ---- Operators


def in_place(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    kept = a
    a += b
    a.mul_(b).addcmul_(b, b)
    assert a is kept and kept.device == torch.device(0)
    return kept


def assigned(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    a[b.argmax(0), torch.arange(8, device=b.device)] = b[0]
    view = a[1]
    view -= b[1]
    return a


def with_out(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    out = torch.empty(3, 8, device=a.device)
    torch.add(a, b, out=out)
    values, indices = torch.empty(3, 8, device=b.device), torch.empty(3, 8, dtype=torch.long, device=b.device)
    torch.sort(a, out=(values, indices))
    return out + values + indices


def statistics(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Both tensors of statistics are written, and lie elsewhere than most of the operands."""
    mean, var = b[0].clone(), b[0].abs() + 1
    out = nn.functional.batch_norm(torch.cat([a] * 4), mean, var, training=True)
    return torch.cat([out, mean[None], var[None]])


def each(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """A list, of which the first pair lies together."""
    written = [a, b]
    torch._foreach_add_(written, [a.clone(), b.clone()])
    return a + b


MIXES: dict[str, Callable[..., Any]] = {
    "add": torch.add,
    "operator": lambda a, b: 1 - a @ b.T,
    "in place": in_place,
    "assigned": assigned,
    "out": with_out,
    "lists": lambda a, b: torch.cat([torch.stack((a, b)).flatten(0, 1), torch.hstack([b, a])[:, :8]]),
    "keywords": lambda a, b: torch.where(condition=a > 0, input=b, other=a),
    "several results": lambda a, b: torch.linalg.lstsq(a.T, b.T).solution + torch.max(a, b).sum(),
    "functional": lambda a, b: nn.functional.layer_norm(a, (8,), weight=b[0], bias=b[1]),
    "linear": lambda a, b: nn.functional.linear(a, b, b[:, 0]),
    "embedding": lambda a, b: nn.functional.embedding(b.argmax(1) % 3, a),
    "indices": lambda a, b: (
        a.gather(0, b.argsort(0)) + a.index_select(0, b.argmax(1) % 3) + a[b.argmax(1) % 3]
    ),
    "masked": lambda a, b: a.masked_fill(b > 0, 0.5).masked_scatter(b > 0, a * 2),
    "scatter": lambda a, b: a.clone().scatter_add_(0, b.argsort(0), b).index_add_(0, b.argmax(1) % 3, b),
    "convolution": lambda a, b: nn.functional.conv1d(a[None], b[None]),
    "attention": lambda a, b: nn.functional.scaled_dot_product_attention(
        a[None], b[None], b[None], attn_mask=b @ b.T > 0
    ),
    "einsum": lambda a, b: torch.einsum("ij,kj->ik", a, b),
    "numbers": lambda a, b: a * b[0, 0] + b.sum() * torch.tensor(2.0) - a.sum(),
    "overloads": lambda a, b: torch.ops.aten.add.Tensor(a, b) + torch.ops.aten.mul_(a.clone(), b),
    "equal": lambda a, b: a + float(torch.equal(a, b)) + float(torch.allclose(a, b)),
    "statistics": statistics,
    "foreach": each,
    "moved by hand": lambda a, b: a + b.to(a.device) + a.clone().copy_(b) + a.to(b),
    "transforms": lambda a, b: (
        torch.vmap(lambda p, q: p @ q)(a, b)[:, None] + torch.func.grad(lambda p: (p * b).sum())(a)
    ),
    "grids": lambda a, b: torch.stack(torch.meshgrid(a[0], b[0], indexing="ij")),
}


@pytest.mark.parametrize(
    "order", [{"left": 0, "right": 1}, {"left": 1, "right": 0}, {"left": 0, "right": "cpu"}]
)
@pytest.mark.parametrize("mix", MIXES)
@torch.no_grad()
def test_operators_of_every_kind_compute_what_they_do_on_one_device(mix: str, order: dict[str, Any]) -> None:
    if mix == "in place" and order["left"] == 1:
        pytest.skip("the assertion inside is about one device")
    torch.manual_seed(0)
    net = Net(MIXES[mix])
    want = copy.deepcopy(net).to(0)(X.to(0))
    planner.dispatch(net, order, execution_map={"right": "cpu"} if "cpu" in order.values() else None)
    for _ in range(2):
        found = net(X.to(0))
        assert torch.allclose(found, want, atol=1e-6) and found.device == torch.device(0)
        if "cpu" not in order.values():
            assert found.equal(want)
    assert stack_size() == 0


def test_gradients_go_back_the_way_the_operands_came() -> None:
    plain, spread = nets(lambda a, b: (a * b).sum() + (torch.cat([a, b]) ** 2).mean())
    for net in (plain, spread):
        x = X.to(0).requires_grad_()
        net(x).backward()
        net.grad = x.grad
    # Sums of the same numbers in another order.
    assert torch.allclose(spread.grad, plain.grad, atol=1e-6)
    for one, other in zip(spread.parameters(), plain.parameters(), strict=True):
        assert one.grad.device == one.device and torch.allclose(one.grad.cpu(), other.grad.cpu(), atol=1e-5)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_every_gradient_mode(mode: Any) -> None:
    plain, spread = nets(lambda a, b: assigned(a.clone(), b) * b)
    with mode():
        assert spread(X.to(0)).equal(plain(X.to(0)))


@torch.no_grad()
def test_a_random_operator_draws_as_it_would_have_together() -> None:
    def noisy(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        drawn = torch.normal(a, b.abs()) + a.clone().bernoulli_(b.sigmoid()) + torch.rand(3, 8).to(a.device)
        return drawn + nn.functional.scaled_dot_product_attention(a, b, b, dropout_p=0.5)

    plain, spread = nets(noisy)
    found = []
    for net in (plain, spread):
        torch.manual_seed(3)
        found.append((net(X.to(0)), torch.rand(1)))
    assert found[0][0].equal(found[1][0]) and found[0][1].equal(found[1][1])


@torch.no_grad()
def test_a_generator_of_the_callers_draws_once() -> None:
    generator = torch.Generator()
    plain, spread = nets(
        lambda a, b: torch.normal(a.cpu(), b.abs().cpu(), generator=generator).to(a.device) + b
    )
    found = []
    for net in (plain, spread):
        generator.manual_seed(1)
        found.append((net(X.to(0)), torch.rand(1, generator=generator)))
    assert found[0][0].equal(found[1][0]) and found[0][1].equal(found[1][1])


CUSTOM = torch.library.Library("glued", "DEF")
CUSTOM.define("noisy(Tensor x, Tensor y) -> Tensor")
CUSTOM.define("twice(Tensor(a!) x, Tensor y) -> ()")
CUSTOM.impl(
    "noisy", lambda x, y: torch.rand(3, 8).to(x.device) + x + y, dispatch_key="CompositeExplicitAutograd"
)
CUSTOM.impl(
    "twice",
    lambda x, y: (x.add_(1), x.add_(y), None)[-1],
    dispatch_key="CompositeExplicitAutograd",
)


@torch.no_grad()
def test_a_custom_operator_draws_once() -> None:
    plain, spread = nets(torch.ops.glued.noisy)
    found = []
    for net in (plain, spread):
        torch.manual_seed(3)
        found.append((net(X.to(0)), torch.rand(1)))
    assert found[0][0].equal(found[1][0]) and found[0][1].equal(found[1][1])


def test_every_random_operator_of_two_tensors_is_known_as_one() -> None:
    names = [name for name in dir(torch.ops.aten) if not name.startswith("_")]
    seen = set()
    for name in names:
        packet = getattr(torch.ops.aten, name)
        for overload in getattr(packet, "overloads", list)():
            operator = getattr(packet, overload)
            tensors = [a for a in operator._schema.arguments if "Tensor" in str(a.type) and a.name != "out"]
            if torch.Tag.nondeterministic_seeded in operator.tags and len(tensors) > 1:
                seen.add(name)
    assert {"normal", "bernoulli_"} <= seen
    # The first are never called by name.
    assert {name for name in seen if not name.endswith(("_functional", "miopen_rnn", "_backward"))} <= RANDOM


# ---- What is not mended


@torch.no_grad()
def test_an_operator_that_was_partly_done_is_not_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def half(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        written = [a, a]
        torch._foreach_add_(written, [a.clone(), b])
        return a

    _, spread = nets(half)
    with pytest.raises(RuntimeError, match="same device") as caught:
        spread(X.to(0))
    assert any("_foreach_add_ had written" in note for note in caught.value.__notes__)
    assert stack_size() == 0


@torch.no_grad()
def test_one_whose_name_does_not_say_that_it_writes_is_not_done_again() -> None:
    _, spread = nets(torch.ops.glued.twice)
    with pytest.raises(RuntimeError, match="same device") as caught:
        spread(X.to(0))
    assert any("twice had written" in note for note in caught.value.__notes__)


@torch.no_grad()
@pytest.mark.parametrize(
    "wrong",
    [
        lambda a, b: a @ a,  # no mix at all
        lambda a, b: a @ b,  # a mix, and wrong together as well
        lambda a, b: torch.ones(2, 2, device="meta") + a + b[:2, :2],
    ],
)
def test_errors_that_one_device_shows_too_are_shown(wrong: Callable[..., Any]) -> None:
    plain, spread = nets(wrong)
    with pytest.raises(RuntimeError) as wanted:
        plain(X.to(0))
    with pytest.raises(RuntimeError) as found:
        spread(X.to(0))
    assert str(found.value) == str(wanted.value)
    assert not planner.crossings(spread)


@torch.no_grad()
def test_no_memory_is_not_a_mix(virtual_accelerators: Any) -> None:
    _, spread = nets()
    spread(X.to(0))
    used = virtual_accelerators.used_bytes(0)
    for left in range(8):
        with virtual_accelerators.out_of_memory_after(0, left):
            try:
                spread(X.to(0))
            except torch.OutOfMemoryError:
                assert stack_size() == 0
                continue
            break
    else:
        raise AssertionError("never enough")
    assert virtual_accelerators.used_bytes(0) == used


@torch.no_grad()
def test_a_function_of_somebody_elses_is_not_called_twice() -> None:
    calls = []

    def theirs(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        if torch.overrides.has_torch_function((a, b)):
            return torch.overrides.handle_torch_function(theirs, (a, b), a, b)
        calls.append(1)
        return a + b

    _, spread = nets(theirs)
    with pytest.raises(RuntimeError, match="same device"):
        spread(X.to(0))
    assert calls == [1]


# ---- The stack of modes


class Counting(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen += 1
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_modes_of_others_above_and_below_stay_in_order() -> None:
    inner, outer = Counting(), Counting()

    def mix(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        with inner, torch.device(1):
            assert torch.ones(1).device == torch.device(1)
            return a + b

    plain, spread = nets(mix)
    with outer:
        want = plain(X.to(0))
        seen = (inner.seen, outer.seen)
        assert spread(X.to(0)).equal(want)
        assert torch.overrides._get_current_function_mode_stack() == [outer]
    assert inner.seen == 2 * seen[0] and stack_size() == 0
    assert len(planner.crossings(spread)) == 1


@torch.no_grad()
def test_a_mode_that_the_model_leaves_behind_is_left_and_nothing_else() -> None:
    left = Counting()

    def mix(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        left.__enter__()
        return a + b

    _, spread = nets(mix)
    spread(X.to(0))
    assert torch.overrides._get_current_function_mode_stack() == [left]
    left.__exit__(None, None, None)
    assert stack_size() == 0


@torch.no_grad()
def test_inside_of_blocks_the_mode_is_off_and_afterwards_on() -> None:
    sizes = []

    class Looking(Res):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sizes.append(stack_size())
            return super().forward(x)

    net = Net(lambda a, b: sizes.append(stack_size()) or a + b)
    net.left, net.right = Looking(), Looking()
    planner.dispatch(net, APART)
    net(X.to(0))
    assert sizes == [0, 0, 1]
    one = planner.dispatch(copy.deepcopy(net), {"left": 0, "right": 0})
    sizes.clear()
    one(X.to(0))
    assert sizes == [0, 0, 0]


@torch.no_grad()
def test_an_error_that_the_model_catches_leaves_the_mode_on() -> None:
    class Raising(Res):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise KeyError("block")

    class Catching(Net):
        def forward(self, x: torch.Tensor) -> Any:
            try:
                self.bad(x)
            except KeyError:
                return self.left(x) + self.right(x)

    net = Catching()
    net.bad = Raising()
    planner.dispatch(net, {**APART, "bad": 1})
    net(X.to(0))
    assert len(planner.crossings(net)) == 1 and stack_size() == 0


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.sweep)])
@torch.no_grad()
def test_an_interrupt_anywhere_leaves_no_mode_behind(every: int) -> None:
    plain, spread = nets()
    want, other = plain(X.to(0)), Counting()
    for below in (False, True):
        stops = 1
        if below:
            other.__enter__()
        while interrupted(lambda: spread(X.to(0)), stops):
            assert torch.overrides._get_current_function_mode_stack() == [other] * below, stops
            stops += every
        assert stops > 50
        assert spread(X.to(0)).equal(want)
    other.__exit__(None, None, None)


@torch.no_grad()
def test_threads_have_a_mode_each() -> None:
    plain, spread = nets()
    want, wrong = plain(X.to(0)), []

    @torch.no_grad()
    def work() -> None:
        for _ in range(20):
            if not spread(X.to(0)).equal(want) or stack_size():
                wrong.append(1)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert sum(row.count for row in planner.crossings(spread)) == 80


@torch.no_grad()
def test_models_inside_of_a_models_own_code() -> None:
    """Its own, called again, and another one that is dispatched by itself."""

    class Calling(Net):
        def __init__(self, helper: nn.Module) -> None:
            super().__init__()
            self.others, self.is_inside = (helper,), False

        def forward(self, x: torch.Tensor) -> Any:
            if not self.is_inside:
                self.is_inside = True
                x = self(x)
            return self.others[0](self.left(x)) + self.right(x)

    plain_inner, inner = nets(lambda a, b: a * b)
    torch.manual_seed(1)
    plain, net = Calling(plain_inner), Calling(inner)
    net.load_state_dict(plain.state_dict())
    want = plain.to(0)(X.to(0))
    planner.dispatch(net, APART)
    assert net(X.to(0)).equal(want)
    assert stack_size() == 0
    assert [row.operator for row in planner.crossings(net)] == ["add"]
    assert {row.operator for row in planner.crossings(inner)} == {"mul"}


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.tail = Net(), Res()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tail(self.inner(x))


@torch.no_grad()
def test_a_part_that_mixes_can_be_called_alone() -> None:
    torch.manual_seed(0)
    net = Deep()
    plain = copy.deepcopy(net).to(0)
    planner.dispatch(net, {"inner.left": 0, "inner.right": 1, "tail": 1})
    assert net.inner(X.to(0)).cpu().equal(plain.inner(X.to(0)).cpu())
    assert net(X.to(0)).equal(plain(X.to(0)))


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_a_part_that_mixes_is_computed_again_for_backward(use_reentrant: bool) -> None:
    class Checkpointed(Deep):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.tail(checkpoint(self.inner, x, use_reentrant=use_reentrant))

    torch.manual_seed(0)
    net = Checkpointed()
    plain = copy.deepcopy(net).to(0)
    planner.dispatch(net, {"inner.left": 0, "inner.right": 1, "tail": 1})
    grads = []
    for model in (plain, net):
        x = X.to(0).requires_grad_()
        # torch's own checkpointing is not safe where threads of two devices ask for what is computed again.
        with torch.autograd.set_multithreading_enabled(False):
            model(x).sum().backward()
        grads.append([x.grad.cpu(), *(p.grad.cpu() for p in model.parameters())])
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(*grads, strict=True))
    assert stack_size() == 0


# ---- What is counted


@torch.no_grad()
def test_what_moved_is_told_by_line_and_counted() -> None:
    def mix(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        total = a + b
        return torch.cat([total, b[:1]])

    _, spread = nets(mix)
    assert planner.crossings(spread) == ()
    for _ in range(3):
        spread(X.to(0))
    line = mix.__code__.co_firstlineno
    assert planner.crossings(spread) == (
        planner.Crossing(f"{__file__}:{line + 1}", "add", 1, 0, 3, 3 * 96),
        planner.Crossing(f"{__file__}:{line + 2}", "cat", 1, 0, 3, 3 * 32),
    )
    again = copy.deepcopy(spread)
    assert planner.crossings(again) == ()
    again(X.to(0))
    assert [row.count for row in planner.crossings(again)] == [1, 1]
    assert [row.count for row in planner.crossings(spread)] == [3, 3]
    planner.undispatch(spread)
    with pytest.raises(planner.PlanMismatchError, match="not dispatched"):
        planner.crossings(spread)


# ---- Compilers


@pytest.mark.parametrize("mix", ["add", "in place", "lists", "linear", "numbers", "attention", "keywords"])
@torch.no_grad()
def test_a_model_that_mixes_is_one_graph_as_well(mix: str) -> None:
    torch._dynamo.reset()
    plain, spread = nets(MIXES[mix])
    compiled = torch.compile(spread, backend="aot_eager", fullgraph=True)
    for _ in range(2):
        assert compiled(X.to(0)).equal(plain(X.to(0)))
    assert stack_size() == 0


@torch.no_grad()
def test_compiled_code_writes_into_all_that_an_operator_fills() -> None:
    def filled(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        values, places = torch.zeros_like(b), torch.zeros_like(a, dtype=torch.long)
        torch.sort(a, out=(values, places))
        return values.to(a.device) + places

    torch._dynamo.reset()
    plain, spread = nets(filled)
    compiled = torch.compile(spread, backend="aot_eager")
    assert compiled(X.to(0)).equal(plain(X.to(0)))


@torch.no_grad()
def test_compiled_blocks_and_helpers_inside_of_what_runs_as_it_is() -> None:
    torch._dynamo.reset()
    plain, spread = nets(torch.compile(lambda a, b: a * b + 1, backend="aot_eager", fullgraph=True))
    want = plain(X.to(0))
    spread.left.compile(backend="aot_eager", fullgraph=True)
    spread.right = torch.compile(spread.right, backend="aot_eager")
    assert spread(X.to(0)).equal(want)
    assert stack_size() == 0


# ---- Drawn nets over drawn maps


class Drawn(nn.Module):
    """Blocks, and between them code that adds, skips, gates, sums siblings and looks up several embeddings."""

    _no_split_modules = ("Res",)

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.word, self.place, self.kind = nn.Embedding(20, 8), nn.Embedding(6, 8), nn.Embedding(2, 8)
        self.steps = [
            draw.choice(["block", "skip", "gate", "siblings", "experts", "write"]) for _ in range(5)
        ]
        self.blocks = nn.ModuleList(Res(draw.choice([4, 16, 32])) for _ in self.steps)
        self.others = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in self.steps
        )
        self.scale = nn.Parameter(torch.full((8,), 0.5))
        self.head = nn.Linear(8, 4)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.word(ids) + self.place(torch.arange(len(ids), device=ids.device)) + self.kind(ids % 2)
        kept = [x]
        for step, block, other in zip(self.steps, self.blocks, self.others, strict=True):
            if step == "block":
                x = block(x)
            elif step == "skip":
                x = torch.cat([block(x), kept[0]]).reshape(2, *x.shape).mean(0)
            elif step == "gate":
                x = block(x) * torch.sigmoid(other(x)) * self.scale
            elif step == "siblings":
                x = block(x) + other(x) + kept[-1]
            elif step == "experts":
                x = x + other(block(x))
            else:
                x = x.clone()
                x[::2] = other(x)[::2]
                x += block(x)
            kept.append(x)
        return self.head(x)


@pytest.mark.parametrize("seed", range(40))
@torch.no_grad()
def test_drawn_nets_run_over_drawn_maps(seed: int) -> None:
    draw = random.Random(seed)
    torch.manual_seed(seed)
    net, ids = Drawn(seed), torch.tensor([3, 1, 4, 1, 5])
    want = copy.deepcopy(net).to(0)(ids.to(0)).cpu()
    names = [
        *("word", "place", "kind", "scale", "head"),
        *(f"{kind}.{index}" for kind in ("blocks", "others") for index in range(5)),
    ]
    for _ in range(4):
        device_map = {name: draw.choice([0, 0, 1, 1, "cpu"]) for name in names}
        rests = [name for name, device in device_map.items() if device == "cpu"]
        # Single tensors follow their module.
        runs = {name: draw.choice([0, 1, "cpu"]) for name in rests if name != "scale"}
        planner.dispatch(net, device_map, execution_map=runs)
        found = net(ids.to(0)).cpu()
        exact = "cpu" not in runs.values()
        assert found.equal(want) if exact else torch.allclose(found, want, atol=1e-5), (device_map, runs)
        planner.undispatch(net)
    for share in (0.3, 0.5, 0.7):
        size = int(sum(p.numel() * 4 for p in net.parameters()) * share)
        planner.dispatch(net, planner.plan(net, max_memory={0: size, 1: size // 2, "cpu": 10**6}))
        assert torch.allclose(net(ids.to(0)).cpu(), want, atol=1e-5)
        planner.undispatch(net)
