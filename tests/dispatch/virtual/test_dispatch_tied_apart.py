"""A tied tensor with copies on several devices is one tensor all the same: written to, trained, copied, undispatched."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

import planner
from planner import OffloadError
from planner.dispatching.install import originals
from planner.dispatching.tensors import ties
from planner.dispatching.tensors.copies import has_same_values

IDS = torch.arange(10)


class Tied(nn.Module):
    """An embedding and a head over one weight; writers say what else happens to it."""

    def __init__(self, max_norm: float | None = None, writes: str = "") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.emb = nn.Embedding(10, 8, max_norm=max_norm)
        self.mid, self.head = nn.Linear(8, 8), nn.Linear(8, 10, bias=False)
        self.head.weight = self.emb.weight
        self.writes = writes

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.mid(self.emb(ids))
        if self.writes:
            with torch.no_grad():
                getattr(self, self.writes).weight.mul_(0.9)
        found: torch.Tensor = self.head(x)
        return found


MAPS: list[dict[str, Any]] = [
    {"emb": 0, "mid": 0, "head": 1},
    {"emb": 1, "mid": 0, "head": 0},
    {"emb": "cpu", "mid": 0, "head": 1},
    {"emb": 0, "mid": "cpu", "head": "cpu"},
]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize(("max_norm", "writes"), [(0.5, ""), (None, "emb"), (None, "head")])
@pytest.mark.parametrize("device_map", MAPS)
def test_what_a_forward_writes(device_map: Any, max_norm: Any, writes: str, mode: Any) -> None:
    plain = Tied(max_norm, writes).requires_grad_(False)
    model = copy.deepcopy(plain)
    plain.to(0)
    if writes and device_map[writes] == "cpu":
        pytest.skip("writing to a placeholder outside of its module is an error")
    execution_map = {name: 1 for name, device in device_map.items() if device == "cpu" and name == "head"}
    planner.dispatch(model, device_map, execution_map=execution_map)
    with mode():
        for _ in range(3):
            assert model(IDS).equal(plain(IDS.to(0)).cpu())
    planner.undispatch(model)
    assert model.head.weight is model.emb.weight and model.emb.weight.equal(plain.emb.weight.cpu())


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.count.add_(1)
        return x + self.count


@torch.no_grad()
def test_a_shared_counter() -> None:
    def build() -> nn.Sequential:
        made = nn.Sequential(*(Counting() for _ in range(4)))
        for part in made[1:]:
            part.count = made[0].count
        return made

    # `plain.to(0)` would make four buffers of it.
    plain, model = build(), planner.dispatch(build(), {"0": 0, "1": 1, "2": 0, "3": 1})
    for _ in range(3):
        assert model(torch.zeros(2)).equal(plain(torch.zeros(2)))
    assert copy.deepcopy(model)(torch.zeros(2)).equal(plain(torch.zeros(2)))


def losses(model: nn.Module, optimizer: Any, ids: torch.Tensor) -> list[float]:
    found = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(ids), ids)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        found.append(loss.item())
    return found


@pytest.mark.parametrize("made", ["before", "after", "copied"])
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_training(kind: Any, made: str) -> None:
    options: dict[str, Any] = {"lr": 0.1, "weight_decay": 0.01}
    plain, model = Tied().to(0), Tied()
    before = kind(model.parameters(), **options)
    planner.dispatch(model, {"emb": 0, "mid": 0, "head": 1})
    if made == "copied":
        model = copy.deepcopy(model)
    optimizer = before if made == "before" else kind(model.parameters(), **options)
    want = losses(plain, kind(plain.parameters(), **options), IDS.to(0))
    assert losses(model, optimizer, IDS) == pytest.approx(want, abs=1e-6)
    planner.undispatch(model)
    assert model.head.weight is model.emb.weight
    assert torch.allclose(model.emb.weight, plain.emb.weight.cpu(), atol=1e-5)


def test_freezing_one_freezes_all() -> None:
    model = planner.dispatch(Tied(), {"emb": 0, "mid": 0, "head": 1})
    model.head.weight.requires_grad_(False)
    model(IDS).sum().backward()
    assert model.emb.weight.grad is None and not model.emb.weight.requires_grad


@torch.no_grad()
def test_the_same_write_to_all_is_one_write_and_two_others_are_an_error() -> None:
    model = planner.dispatch(Tied().requires_grad_(False), {"emb": 0, "mid": 0, "head": 1})
    for parameter in model.parameters():
        parameter.mul_(0.5)
    want = Tied()
    for parameter in want.parameters():
        parameter.mul_(0.5)
    assert model(IDS).equal(want.to(0)(IDS.to(0)).cpu())
    model.emb.weight.add_(1)
    model.head.weight.add_(2)
    for act in (lambda: model(IDS), lambda: planner.undispatch(model)):
        with pytest.raises(OffloadError, match=r"'emb.weight' and 'head.weight'.*both were written"):
            act()
    model.head.weight.copy_(model.emb.weight)
    assert model(IDS).shape == (10, 10)


@torch.no_grad()
def test_a_write_that_torch_does_not_count_is_not_lost_by_undispatching() -> None:
    model = planner.dispatch(Tied().requires_grad_(False), {"emb": 0, "mid": 0, "head": 1})
    model.head.weight.data.mul_(0.5)
    with pytest.raises(OffloadError, match=r"'emb.weight' and 'head.weight'.*does not count"):
        planner.undispatch(model)
    assert model.head.weight.device.index == 1
    model.emb.weight.copy_(model.head.weight)
    planner.undispatch(model)
    assert model.head.weight is model.emb.weight and model.emb.weight.equal(Tied().emb.weight * 0.5)


@torch.no_grad()
@pytest.mark.parametrize(("device_map", "count"), zip(MAPS, [1, 1, 1, 0], strict=True))
def test_undispatching_compares_copies_once(
    device_map: Any, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the offloaded head of the last map runs, the embedding lies: there is one copy."""
    model = Tied()
    planner.dispatch(model.requires_grad_(False), device_map)
    compared = []

    def counted(one: torch.Tensor, other: torch.Tensor) -> bool:
        compared.append((one, other))
        return has_same_values(one, other)

    monkeypatch.setattr(ties, "has_same_values", counted)
    monkeypatch.setattr(originals, "has_same_values", counted)
    planner.undispatch(model)
    assert model.head.weight is model.emb.weight
    assert len(compared) == count


def test_what_is_replaced_is_no_longer_tied() -> None:
    model = planner.dispatch(Tied().requires_grad_(False), {"emb": 0, "mid": 0, "head": 1})
    model.head.weight = nn.Parameter(torch.zeros(10, 8, device=1), requires_grad=False)
    model.emb.weight.add_(1)
    assert not model(IDS).any() and not model.head.weight.any()


def through_a_file(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.parametrize("copied", [copy.deepcopy, through_a_file])
@pytest.mark.parametrize("before", [True, False])
@torch.no_grad()
def test_a_write_just_before_or_after_the_model_is_copied(copied: Any, before: bool) -> None:
    model, plain = planner.dispatch(Tied(), {"emb": 0, "mid": 0, "head": 1}), Tied()
    plain.emb.weight.mul_(2)
    if before:
        model.head.weight.mul_(2)
    other = copied(model)
    if not before:
        other.emb.weight.mul_(2)
    assert torch.allclose(other(IDS), plain(IDS), atol=1e-6)
    other = planner.undispatch(other)
    assert other.head.weight is other.emb.weight and other.emb.weight.equal(plain.emb.weight)


@torch.no_grad()
def test_a_weight_that_is_not_a_number_stays_tied() -> None:
    model = planner.dispatch(Tied(), {"emb": 0, "mid": 0, "head": 1})
    model.emb.weight[0] = float("nan")
    model(IDS)
    model = planner.undispatch(model)
    assert model.head.weight is model.emb.weight


@torch.no_grad()
def test_compiled_inference_is_one_graph() -> None:
    model = planner.dispatch(Tied().requires_grad_(False), {"emb": 0, "mid": 0, "head": 1})
    want = model(IDS)
    torch._dynamo.reset()
    assert torch.compile(model, backend="eager", fullgraph=True)(IDS).equal(want)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_training(backend: str) -> None:
    plain, model = Tied().to(0), planner.dispatch(Tied(), {"emb": 0, "mid": 0, "head": 1})
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    want = losses(plain, torch.optim.SGD(plain.parameters(), lr=0.1), IDS.to(0))
    assert losses(compiled, torch.optim.SGD(model.parameters(), lr=0.1), IDS) == pytest.approx(want, abs=1e-6)
    assert model.emb.weight.grad is not None and model.head.weight.grad is None
    with torch.no_grad():
        compiled(IDS)
        for each in (plain, model):
            each.emb.weight.mul_(0.5)
    assert torch.allclose(model(IDS), plain(IDS.to(0)).cpu(), atol=1e-5)


def as_it_is(model: nn.Module) -> nn.Module:
    return model


def pickled(model: nn.Module) -> Any:
    held = io.BytesIO()
    torch.save(model, held)
    held.seek(0)
    return torch.load(held, weights_only=False)


READERS: dict[str, Any] = {
    "state_dict": lambda model: model.state_dict()["head.weight"],
    "part": lambda model: model.head.state_dict()["weight"],
    "planner": lambda model: planner.state_dict(model)["head.weight"],
    "weight": lambda model: model.head.weight.detach(),
}


@pytest.mark.parametrize("copied", [as_it_is, copy.deepcopy, pickled])
@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
def test_what_an_optimizer_has_written_is_saved_and_read_by_every_name(read: Any, copied: Any) -> None:
    plain = Tied()
    model = copied(planner.dispatch(Tied(), {"emb": 0, "mid": 0, "head": 1}))
    for each in (plain, model):
        optimizer = torch.optim.SGD(each.parameters(), 0.5)
        nn.functional.cross_entropy(each(IDS), IDS).backward()
        optimizer.step()
    assert torch.allclose(read(model).cpu(), plain.head.weight.detach(), atol=1e-6)


def test_a_write_to_one_copy_is_in_every_state_dict_and_may_follow_a_step() -> None:
    plain, model = Tied(), planner.dispatch(Tied(), {"emb": 0, "mid": 0, "head": 1})
    for each in (plain, model):
        optimizer = torch.optim.AdamW(each.parameters(), 0.1)
        for written in (each.head, each.emb):
            nn.functional.cross_entropy(each(IDS), IDS).backward()
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                written.weight.mul_(0.5)
    for name, tensor in plain.state_dict().items():
        assert torch.allclose(model.state_dict()[name].cpu(), tensor, atol=1e-6)
    assert torch.allclose(model(IDS), plain(IDS), atol=1e-5)
    planner.undispatch(model)
    assert not any(module._state_dict_pre_hooks for module in model.modules())
