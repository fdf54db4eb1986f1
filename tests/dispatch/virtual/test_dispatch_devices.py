"""What a model makes on the device of an offloaded weight: as in the undispatched model, whoever dispatched it."""

from __future__ import annotations

import copy
import pickle
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import planner
from planner import OffloadError

X = torch.linspace(-1, 1, 16).reshape(2, 8)
META = torch.device("meta")

Use = Callable[[torch.Tensor, torch.Tensor, "Net"], torch.Tensor]


class Net(nn.Module):
    """Asks a weight of one part for something while that part does not run."""

    def __init__(self, use: Use) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enc, self.dec, self.use = nn.Linear(8, 8), nn.Linear(8, 8), use

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.enc(x)
        made: torch.Tensor = self.dec(self.use(y, self.enc.weight, self))
        return made


def add_lora(y: torch.Tensor, w: torch.Tensor, net: Net) -> torch.Tensor:
    lora = nn.Linear(8, 8, bias=False, device=w.device)
    nn.init.constant_(lora.weight, 0.5)
    made: torch.Tensor = lora(y)
    return made


def by_buffer(y: torch.Tensor, w: torch.Tensor, net: Net) -> torch.Tensor:
    net.register_buffer("scale", torch.full((8,), 2.0, device=w.device), persistent=False)
    return y * net.scale  # type: ignore[no-any-return,operator]


def by_kind(y: torch.Tensor, w: torch.Tensor, net: Net) -> torch.Tensor:
    return y * 2 if (w.device.type, w.is_cpu, w.is_cuda) == (y.device.type, y.is_cpu, y.is_cuda) else y


def in_thread(y: torch.Tensor, w: torch.Tensor, net: Net) -> torch.Tensor:
    made: list[torch.Tensor] = []
    worker = threading.Thread(target=lambda: made.append(y @ torch.ones(8, 8, device=w.device)))
    worker.start()
    worker.join()
    return made[0]


def in_pool(y: torch.Tensor, w: torch.Tensor, net: Net) -> torch.Tensor:
    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(lambda row: row + torch.arange(8, device=w.device), y))
    return torch.stack(parts)


def by_number(y: torch.Tensor, w: torch.Tensor, net: Net) -> torch.Tensor:
    return y * 2 if w.get_device() == torch.get_device(w) == y.get_device() else y


USES: dict[str, Use] = {
    "ones": lambda y, w, net: y @ torch.ones(8, 8, device=w.device),
    "eye": lambda y, w, net: y @ torch.eye(8, device=w.device),
    "full": lambda y, w, net: y @ torch.full((8, 8), 2.0, device=w.device),
    "tensor": lambda y, w, net: y + torch.tensor(2.0, device=w.device),
    "as_tensor": lambda y, w, net: y + torch.as_tensor([2.0] * 8, device=w.device),
    "arange": lambda y, w, net: y + torch.arange(8, device=w.device),
    "linspace": lambda y, w, net: y + torch.linspace(0, 1, 8, device=w.device),
    "index": lambda y, w, net: y[:, torch.arange(7, -1, -1, device=w.device)],
    "mask": lambda y, w, net: y.masked_fill(torch.ones(8, device=w.device).bool(), 1.0),
    "where": lambda y, w, net: torch.where(torch.ones(8, 8, device=w.device)[0] > 0, y, -y),
    "one hot": lambda y, w, net: y @ functional.one_hot(torch.arange(8, device=w.device)).float(),
    "embedding": lambda y, w, net: (
        y + functional.embedding(torch.arange(2, device=w.device), torch.ones(2, 8, device=w.device))
    ),
    "context": lambda y, w, net: add_in_context(y, w),
    "zeros_like": lambda y, w, net: y @ (torch.zeros_like(w) + 1),
    "ones_like": lambda y, w, net: y @ torch.ones_like(w),
    "full_like": lambda y, w, net: y @ torch.full_like(w, 0.5),
    "empty_like": lambda y, w, net: y @ torch.empty_like(w).fill_(1.0),
    "rand_like": lambda y, w, net: y @ (torch.rand_like(w) * 0 + 1),
    "randint_like": lambda y, w, net: y @ (torch.randint_like(w, 4) * 0 + 1),
    "zeros_like, int": lambda y, w, net: y + torch.zeros_like(w, dtype=torch.long)[0],
    "new_zeros": lambda y, w, net: y + w.new_zeros(8),
    "new_ones": lambda y, w, net: y @ w.new_ones(8, 8),
    "new_full": lambda y, w, net: y + w.new_full((8,), 3.0),
    "new_empty": lambda y, w, net: y + w.new_empty(8).zero_(),
    "new_tensor": lambda y, w, net: y + w.new_tensor([2.0] * 8),
    "new": lambda y, w, net: y + w.new([2.0] * 8),  # type: ignore[attr-defined]
    "new, sized": lambda y, w, net: y + w.new(8).fill_(2.0),  # type: ignore[attr-defined]
    "to tensor": lambda y, w, net: y + torch.ones(8, dtype=torch.float64).to(w),
    "to device": lambda y, w, net: y + torch.ones(8).to(w.device),
    "to itself": lambda y, w, net: y if w.to(w.device) is w else -y,
    "type_as": lambda y, w, net: y + torch.ones(8, dtype=torch.int32).type_as(w),
    "type": lambda y, w, net: y if w.type() == y.type() else -y,
    "kind": by_kind,
    "number": by_number,
    "compare": lambda y, w, net: y * 2 if w.device == y.device else y,
    "model": lambda y, w, net: y + torch.ones(8, device=net.device),
    "parameters": lambda y, w, net: y + torch.ones(8, device=next(net.enc.parameters()).device),
    "bias": lambda y, w, net: y + torch.ones(8, device=net.enc.bias.device),
    "later part": lambda y, w, net: y + torch.ones(8, device=net.dec.weight.device),
    "data": lambda y, w, net: y + torch.ones(8, device=w.data.device),
    "detached": lambda y, w, net: y + torch.ones(8, device=w.detach().device),
    "view": lambda y, w, net: y + torch.ones(8, device=w.T[0].device) + torch.zeros_like(w[0]),
    "adapter": add_lora,
    "buffer": by_buffer,
    "thread": in_thread,
    "pool": in_pool,
    "random": lambda y, w, net: y + torch.randn(8, device=w.device) * 0,
}


def add_in_context(y: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    with w.device:
        return y + torch.arange(8)


def dispatch(net: nn.Module, device: Any) -> nn.Module:
    return planner.dispatch(net, {"": "cpu"}, execution_map={"": device})


def in_part(net: nn.Module, device: Any) -> nn.Module:
    return planner.dispatch(net, {"enc": "cpu", "dec": device}, execution_map={"enc": device})


def dispatch_model(net: nn.Module, device: Any) -> nn.Module:
    return planner.dispatch_model(net, {"enc": "cpu", "dec": "cpu"}, main_device=device, force_hooks=True)


def from_state_dict(net: nn.Module, device: Any) -> nn.Module:
    return planner.cpu_offload(net, device, state_dict=net.state_dict())


def disk_offload(net: nn.Module, device: Any) -> nn.Module:
    return planner.disk_offload(net, tempfile.mkdtemp(), device)


def attach(net: nn.Module, device: Any) -> nn.Module:
    planner.attach_align_device_hook(net, execution_device=device, offload=True)
    return net


def attach_on_blocks(net: nn.Module, device: Any) -> nn.Module:
    names = {"enc": device, "dec": device}
    planner.attach_align_device_hook_on_blocks(net, names, dict.fromkeys(names, True), dict(net.state_dict()))
    return net


OURS: dict[str, Callable[[nn.Module, Any], nn.Module]] = {"dispatch": dispatch, "in part": in_part}
THEIRS: dict[str, Callable[[nn.Module, Any], nn.Module]] = {
    "dispatch_model": dispatch_model,
    "cpu_offload": planner.cpu_offload,
    "from a state dict": from_state_dict,
    "disk_offload": disk_offload,
    "attach_align_device_hook": attach,
    "attach_align_device_hook_on_blocks": attach_on_blocks,
}
EVERY = {**OURS, **THEIRS}


@pytest.mark.parametrize("device", ["cpu", 0])
@pytest.mark.parametrize("way", EVERY)
@torch.no_grad()
def test_what_is_made_beside_an_offloaded_weight_has_its_values(way: str, device: Any) -> None:
    wrong = []
    for name, use in USES.items():
        net, x = Net(use), X.to(device)
        want = copy.deepcopy(net).to(device)(x)
        net = EVERY[way](net, device)
        try:
            same = [torch.allclose(net(x), want, atol=1e-6) for _ in range(2)]
        except (RuntimeError, OffloadError) as error:
            same = [False]
            name += f": {error}"
        if not all(same):
            wrong.append(name)
    assert not wrong


@pytest.mark.parametrize("way", EVERY)
def test_what_a_stand_in_says_outside_of_a_forward(way: str) -> None:
    """Ours where its module runs; under accelerate's names "meta", as its readers expect, but a model's device is where it runs."""
    net = EVERY[way](Net(USES["ones"]), 0)
    said = torch.device(0) if way in OURS else META
    weight = net.enc.weight
    assert weight.device == weight.data.device == weight.T.device == said
    assert net.device == torch.device(0)
    assert (weight.get_device(), weight.is_meta) == (0 if way in OURS else -1, True)
    assert {tensor.device for tensor in net.enc.state_dict().values()} == {META}
    assert {tensor.is_meta for tensor in net.enc.state_dict().values()} == {True}
    for _ in range(2):
        net(X)
        assert net.enc.weight.device == said
    with planner.align_module_device(net.enc, "cpu"):
        assert net.enc.weight.device == torch.device("cpu")
    assert net.enc.weight.device == said


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
@pytest.mark.parametrize("way", EVERY)
@torch.no_grad()
def test_a_copy_says_the_same(way: str, copied: Callable[[nn.Module], nn.Module]) -> None:
    net = EVERY[way](Net(at_ones), 0)
    want = net(X.to(0))
    twin = copied(net)
    assert twin.enc.weight.device == net.enc.weight.device
    assert twin(X.to(0)).equal(want) and twin.enc.weight is not net.enc.weight
    where, own = twin.enc.weight.whereabouts, twin.enc._hf_hook.offloaded_modules[0].store
    assert where.store is own


def at_ones(y: torch.Tensor, w: torch.Tensor, net: Net) -> torch.Tensor:
    return y @ torch.ones(8, 8, device=w.device)


def test_a_copy_of_a_stand_in_holds_no_model() -> None:
    net = planner.cpu_offload(Net(at_ones), 0)
    assert copy.deepcopy(net.enc.weight).whereabouts is None
    twins = copy.deepcopy(net.state_dict())
    assert all(twin.whereabouts is None and twin.is_meta for twin in twins.values())


class Both(nn.Module):
    """A model inside another one."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Net(at_ones)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.inner(x) + torch.ones(8, device=self.inner.dec.weight.device)
        return made


@pytest.mark.parametrize("is_inner", [True, False])
@pytest.mark.parametrize("way", THEIRS)
@torch.no_grad()
def test_nested_models(way: str, is_inner: bool) -> None:
    if way == "attach_align_device_hook_on_blocks" and not is_inner:
        pytest.skip("its keys are those of the inner model")
    plain, net, x = Both().to(0), Both(), X.to(0)
    if way == "dispatch_model" and not is_inner:
        planner.dispatch_model(net, {"inner": "cpu"}, main_device=0)
    else:
        THEIRS[way](net.inner if is_inner else net, 0)
    assert torch.allclose(net(x), plain(x), atol=1e-6)
    assert torch.allclose(net.inner(x), plain.inner(x), atol=1e-6)
    assert torch.allclose(net.forward(x), plain.forward(x), atol=1e-6)


class Part(nn.Module):
    """No hook stands here: it has no tensors of its own, and no key names it."""

    def __init__(self) -> None:
        super().__init__()
        self.body = Net(at_ones)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.body(x + torch.ones(8, device=self.body.enc.weight.device))
        return made


@pytest.mark.parametrize("way", ["cpu_offload", "disk_offload", "attach_align_device_hook"])
@torch.no_grad()
def test_a_part_that_is_called_alone(way: str) -> None:
    plain, net, x = nn.ModuleDict({"part": Part()}).to(0), nn.ModuleDict({"part": Part()}), X.to(0)
    THEIRS[way](net, 0)
    assert torch.allclose(net["part"](x), plain["part"](x), atol=1e-6)


@pytest.mark.parametrize("way", THEIRS)
def test_only_the_thread_and_the_model_that_run_are_told(way: str) -> None:
    inside, asked, found = threading.Event(), threading.Event(), list[torch.device]()

    def wait(y: torch.Tensor, w: torch.Tensor, net: Net) -> torch.Tensor:
        inside.set()
        assert asked.wait(30)
        found.append(w.device)
        return y

    net = THEIRS[way](Net(wait), 0)
    running = threading.Thread(target=net, args=(X,))
    running.start()
    assert inside.wait(30)
    elsewhere = net.enc.weight.device
    other = Net(lambda y, w, _: y if net.enc.weight.device == META else -y)
    is_right = torch.equal(other(X), other.dec(other.enc(X)))
    asked.set()
    running.join()
    assert (elsewhere, found, is_right) == (META, [torch.device(0)], True)
    with pytest.raises(ZeroDivisionError):
        THEIRS[way](Net(lambda y, w, _: y / (1 // 0)), 0)(X)
    assert net.enc.weight.device == META


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("way", EVERY)
def test_a_part_that_is_computed_again_for_backward(way: str, use_reentrant: bool) -> None:
    def again(y: torch.Tensor, w: torch.Tensor, net: Net) -> torch.Tensor:
        def part(y: torch.Tensor) -> torch.Tensor:
            return (y * torch.ones(8, device=net.enc.weight.device)).sin()

        made: torch.Tensor = checkpoint(part, y, use_reentrant=use_reentrant)
        return made

    plain, net = Net(again).requires_grad_(False).to(0), Net(again).requires_grad_(False)
    EVERY[way](net, 0)
    gradients = []
    for each in (plain, net):
        x = X.to(0).requires_grad_()
        each(x).sum().backward()
        gradients.append(x.grad)
    assert torch.allclose(*gradients)


@pytest.mark.parametrize("device", ["cpu", 0])
@pytest.mark.parametrize("way", ["dispatch", "cpu_offload"])
@torch.no_grad()
def test_a_compiled_model(way: str, device: Any) -> None:
    torch._dynamo.reset()
    net = Net(at_ones)
    want = copy.deepcopy(net).to(device)(X.to(device))
    EVERY[way](net, device)
    assert torch.allclose(torch.compile(net, backend="eager")(X.to(device)), want, atol=1e-6)


TRANSFORMERS: dict[str, Callable[[], nn.Module]] = {
    "layer": lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
    "encoder": lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2),
    "decoder": lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), 2),
    "whole": lambda: nn.Transformer(8, 2, 2, 2, 16, batch_first=True),
    "attention": lambda: nn.MultiheadAttention(8, 2, batch_first=True),
}


def arguments(name: str, device: Any) -> tuple[tuple[torch.Tensor, ...], dict[str, torch.Tensor]]:
    x = torch.linspace(-1, 1, 48, device=device).reshape(2, 3, 8)
    padding = torch.tensor([[False, False, True], [False, False, False]], device=device)
    if name == "attention":
        return (x, x, x), {"key_padding_mask": padding}
    if name in ("layer", "encoder"):
        # With padding, the encoder makes nested tensors, which the virtual accelerators do not have.
        return (x,), {"src_key_padding_mask": padding} if name == "layer" or device == "cpu" else {}
    return (x, x * 2), {}


@pytest.mark.parametrize("is_trainable", [False, True])
@pytest.mark.parametrize("device", ["cpu", 0])
@pytest.mark.parametrize("way", ["dispatch", "cpu_offload", "attach_align_device_hook", "disk_offload"])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_layers_that_read_the_weights_of_their_parts(
    name: str, way: str, device: Any, is_trainable: bool
) -> None:
    """torch's transformer layers compute with those at once, where they lie on known devices."""
    if way == "attach_align_device_hook" and (is_trainable or name not in ("layer", "encoder")):
        pytest.skip("one hook for each module: the attention reads a weight of its part, which is an error")
    torch.manual_seed(0)
    net = TRANSFORMERS[name]().eval().requires_grad_(is_trainable)
    args, kwargs = arguments(name, device)
    plain = copy.deepcopy(net).to(device)
    EVERY[way](net, device)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            want, found = plain(*args, **kwargs), net(*args, **kwargs)
        want, found = (made[0] if isinstance(made, tuple) else made for made in (want, found))
        assert torch.allclose(found, want, atol=1e-6)


@pytest.mark.parametrize("part", ["self_attn", "self_attn.out_proj", "linear1", "norm2"])
@torch.no_grad()
def test_a_layer_with_an_offloaded_part_reads_its_weights(part: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)).eval()
    x = torch.linspace(-1, 1, 48, device=0).reshape(2, 3, 8)
    want = copy.deepcopy(net).to(0)(x)
    planner.dispatch(net, {"": 0, f"0.{part}": "cpu"})
    assert torch.allclose(net(x), want, atol=1e-6)


def test_what_has_no_values_raises_when_they_are_read() -> None:
    """Outside of a forward under accelerate's names, a tensor made like a placeholder is on the meta device."""
    weight = planner.cpu_offload(Net(at_ones), 0).enc.weight
    for made in (torch.zeros_like(weight), torch.rand_like(weight), weight.new_zeros(8, 8)):
        with pytest.raises(OffloadError, match=r"'enc\.weight' is offloaded"):
            torch.ones(8, 8) @ made
    for make in (weight.new_tensor, weight.new):  # type: ignore[attr-defined]
        with pytest.raises(OffloadError, match=r"'enc\.weight' is offloaded"):
            make([1.0])
    assert weight.new_tensor([1.0], device="cpu").equal(torch.ones(1))
    assert torch.zeros_like(weight, device="cpu").equal(torch.zeros(8, 8))
    assert not weight.is_pinned() and weight.to("meta").is_meta


def test_a_hook_that_is_told_another_device() -> None:
    net = planner.dispatch(Net(at_ones), {"": "cpu"}, execution_map={"": 0})
    for module in (net, net.enc, net.dec):
        module._hf_hook.execution_device = 1
    assert net.enc.weight.device == torch.device(1)
    assert torch.allclose(net(X), Net(at_ones)(X), atol=1e-6)


def test_kernels_past_the_dispatcher_find_no_address() -> None:
    """They ask for the device first, and then read."""
    weight = planner.dispatch(Net(at_ones), {"": "cpu"}, execution_map={"": 0}).enc.weight
    assert weight.device == torch.device(0) and weight.data_ptr() == weight.untyped_storage().data_ptr() == 0
    for found in (weight, weight.T, weight.detach()):
        with pytest.raises(RuntimeError, match="data pointer"):
            torch.Tensor.data_ptr(found)
