"""A dispatched model is safe to use as a model: threads, errors, copies, other people's hands on its weights."""

from __future__ import annotations

import copy
import inspect
import io
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

import planner
from planner import OffloadError, PlanMismatchError
from planner.dispatching.tensors.placeholder import is_offloaded
from rig import Accelerators
from tiny_models import built, mapped
from wrapper_tensors import Flat, Telling

MIXED = mapped("llama", (0, "cpu", 1, "cpu"))
IDS = torch.arange(3, 13)[None]


def dispatched(device_map: dict[str, Any] | None = None, **options: Any) -> nn.Module:
    return planner.dispatch(built("llama"), MIXED if device_map is None else device_map, **options)


def expected() -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = built("llama").to(0)(IDS.to(0)).logits.cpu()
    return logits


@torch.no_grad()
def answer(model: nn.Module) -> torch.Tensor:
    logits: torch.Tensor = model(IDS).logits
    return logits


def materialised(model: nn.Module) -> list[str]:
    """Weights of the offloaded layers that are not placeholders."""
    layers = [
        (name, p) for name, p in model.named_parameters() if ".layers.1." in name or ".layers.3." in name
    ]
    assert layers
    return [name for name, tensor in layers if not is_offloaded(tensor)]


def test_eight_threads_get_the_same_answers() -> None:
    """Two hundred forwards each on one offloaded model, nothing left behind."""
    model, plain, ids = built("llama"), built("llama"), torch.tensor([[3, 4]])
    for each in (model, plain):
        del each.model.layers[2:]
    names = ("model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head")
    planner.dispatch(model, {**dict.fromkeys(names, 0), "model.layers.0": "cpu", "model.layers.1": "cpu"})
    with torch.no_grad():
        want = plain.to(0)(ids.to(0), use_cache=False).logits.cpu()
    wrong: list[Any] = []

    @torch.no_grad()
    def work() -> None:
        try:
            wrong.extend("unequal" for _ in range(200) if not model(ids, use_cache=False).logits.equal(want))
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong
    assert all(is_offloaded(p) for p in model.model.layers.parameters())


class StopHereError(Exception):
    pass


def blocks(model: nn.Module) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in model.named_modules() if hasattr(module, "_hf_hook")]


def test_an_error_in_any_block_leaves_nothing_behind(virtual_accelerators: Accelerators) -> None:
    model, want = dispatched(), expected()
    answer(model)
    used_bytes = [virtual_accelerators.used_bytes(index) for index in (0, 1)]
    tried = 0
    for _, module in [*blocks(model), *((n, m) for n, m in model.named_modules() if not list(m.children()))]:

        def stop(*_: Any) -> None:
            raise StopHereError

        for register in (module.register_forward_pre_hook, module.register_forward_hook):
            handle = register(stop)
            try:
                answer(model)
            except StopHereError:
                tried += 1
            handle.remove()
            assert not materialised(model)
            assert [virtual_accelerators.used_bytes(index) for index in (0, 1)] == used_bytes
    assert tried > 60
    assert answer(model).equal(want)


class Again(nn.Module):
    """Calls itself from inside."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, depth: int = 2) -> torch.Tensor:
        x = self.linear(x)
        return self(x, depth - 1) + self.linear(x) if depth else x


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.again = Again()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.again(self.first(x))


def test_a_block_that_calls_itself() -> None:
    torch.manual_seed(0)
    model, x = Nested(), torch.ones(2, 4)
    want = copy.deepcopy(model).to(0)(x.to(0)).cpu()
    planner.dispatch(model, {"first": 0, "again": "cpu"})
    assert model(x).equal(want)
    assert is_offloaded(model.again.linear.weight)


def test_no_room_for_a_block_raises_and_leaves_nothing(virtual_accelerators: Accelerators) -> None:
    model, want = dispatched(), expected()
    used_bytes = virtual_accelerators.used_bytes(0)
    with (
        virtual_accelerators.memory_limit_bytes(0, used_bytes + 6000),
        pytest.raises(torch.OutOfMemoryError),
    ):
        answer(model)
    assert not materialised(model)
    assert virtual_accelerators.used_bytes(0) == used_bytes
    assert answer(model).equal(want)


def snapshot(model: nn.Module) -> dict[str, Any]:
    tensors = {
        name: tensor
        for name, module in model.named_modules()
        for tensor in (*module._parameters.values(), *module._buffers.values())
    }
    return {"tensors": tensors, "vars": {name: dict(vars(module)) for name, module in model.named_modules()}}


def same(before: dict[str, Any], after: dict[str, Any]) -> bool:
    names = before["vars"].keys()
    return names == after["vars"].keys() and all(
        before["vars"][name].keys() == after["vars"][name].keys()
        and all(before["vars"][name][key] is after["vars"][name][key] for key in before["vars"][name])
        for name in names
    )


@pytest.mark.parametrize("is_dispatched_before", [False, True])
def test_a_dispatch_without_room_changes_nothing(
    is_dispatched_before: bool, virtual_accelerators: Accelerators
) -> None:
    model, want = built("llama"), expected()
    if is_dispatched_before:
        planner.dispatch(model, MIXED)
    before, parameters = snapshot(model), list(model.parameters())
    used_bytes = virtual_accelerators.used_bytes(1)
    with (
        virtual_accelerators.memory_limit_bytes(1, used_bytes + 20_000),
        pytest.raises(torch.OutOfMemoryError),
    ):
        planner.dispatch(model, mapped("llama", (1, 1, 1, 1), outer=1))
    assert same(before, snapshot(model))
    assert all(old is new for old, new in zip(parameters, model.parameters(), strict=True))
    assert virtual_accelerators.used_bytes(1) == used_bytes
    if is_dispatched_before:
        assert answer(model).equal(want)


@pytest.mark.parametrize("after_writes", [0, 1, 40, 120])
def test_an_interrupted_dispatch_changes_nothing(after_writes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from planner.dispatching.tensors.journal import Journal

    model = built("llama")
    before = snapshot(model)
    writes, write = iter(range(10_000)), Journal.set

    def interrupted(journal: Journal, table: Any, key: str, value: Any) -> None:
        if next(writes) == after_writes:
            raise KeyboardInterrupt
        write(journal, table, key, value)

    monkeypatch.setattr(Journal, "set", interrupted)
    with pytest.raises(KeyboardInterrupt):
        planner.dispatch(model, MIXED)
    assert same(before, snapshot(model))


READERS: dict[str, Callable[[Any], Any]] = {
    "linear": lambda weight: functional.linear(torch.ones(1, weight.shape[1]), weight),
    "transpose": lambda weight: torch.ones(1, weight.shape[1]) @ weight.T,
    "data": lambda weight: weight.data.sum(),
    "detach": lambda weight: weight.detach() + 1,
    "view": lambda weight: weight.view(-1)[0] * 2,
    "clone": lambda weight: weight.clone(),
    "cpu": lambda weight: weight.cpu(),
    "numpy": lambda weight: weight.detach().numpy(),
    "tolist": lambda weight: weight.tolist(),
    "item": lambda weight: weight[0, 0].item(),
    "float": lambda weight: weight.to(torch.float64),
    "compare": lambda weight: weight == 0,
    "write": lambda weight: weight.detach().zero_(),
    "copy": lambda weight: weight.detach().copy_(torch.ones(weight.shape)),
    "norm": lambda weight: torch.linalg.vector_norm(weight),
    "conv1d": lambda weight: functional.conv1d(torch.ones(1, weight.shape[1], 3), weight[:, :, None]),
    "embedding": lambda weight: functional.embedding(torch.tensor([0]), weight),
    "cat": lambda weight: torch.cat([weight, weight]),
}


@pytest.mark.parametrize("reader", READERS)
def test_reading_an_offloaded_weight_raises(reader: str) -> None:
    """Where torch alone would compute garbage with a tensor on the meta device."""
    weight = dispatched().model.layers[1].mlp.gate_proj.weight
    with pytest.raises(
        OffloadError, match=r"layers\.1\.mlp\.gate_proj\.weight.*align_module_device"
    ) as caught:
        READERS[reader](weight)
    assert caught.value.name == "model.layers.1.mlp.gate_proj.weight"


def test_what_an_offloaded_weight_tells() -> None:
    model, plain = dispatched(), built("llama")
    guard, weight = (m.model.layers[1].mlp.gate_proj.weight for m in (model, plain))
    assert isinstance(guard, nn.Parameter) and guard.is_leaf
    assert (guard.shape, guard.dtype, guard.stride()) == (weight.shape, weight.dtype, weight.stride())
    assert guard.device == torch.device(0) and guard.numel() == weight.numel()
    assert guard.requires_grad and guard.grad is None
    assert "offloaded" in repr(guard)
    assert torch.zeros_like(guard, device="cpu").equal(torch.zeros(weight.shape))
    assert list(model.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]


@pytest.mark.parametrize("reader", sorted(READERS.keys() - {"write", "copy", "conv1d"}))
@torch.no_grad()
def test_reading_fetches_where_the_setting_says_so(reader: str) -> None:
    model, plain = dispatched(outside="fetch"), built("llama").to(0)
    guard, weight = (m.model.layers[1].mlp.gate_proj.weight for m in (model, plain))
    before = torch.get_default_device()
    torch.set_default_device(torch.device(0))  # the readers' own tensors
    try:
        want, found = (READERS[reader](tensor.cpu() if reader == "numpy" else tensor) for tensor in (weight, guard)) \
            if reader != "numpy" else (weight.detach().cpu().numpy(), guard.detach().cpu().numpy())  # fmt: skip
    finally:
        torch.set_default_device(before)
    assert torch.as_tensor(found).cpu().equal(torch.as_tensor(want).cpu())
    assert not materialised(model)


@pytest.mark.parametrize("reader", ["write", "copy"])
def test_what_is_fetched_for_reading_cannot_be_written(reader: str) -> None:
    with pytest.raises(OffloadError):
        READERS[reader](dispatched(outside="fetch").model.layers[1].mlp.gate_proj.weight)


def test_a_weight_can_be_read_and_written_while_its_module_is_aligned() -> None:
    model = dispatched()
    layer = model.model.layers[1].mlp.gate_proj
    with planner.align_module_device(layer), torch.no_grad():
        assert layer.weight.device == torch.device(0)
        layer.weight.mul_(2)
    assert is_offloaded(layer.weight)
    original = built("llama").model.layers[1].mlp.gate_proj.weight
    assert planner.state_dict(model)["model.layers.1.mlp.gate_proj.weight"].equal(original * 2)


def test_a_replaced_weight_is_computed_with_where_it_is_left() -> None:
    """Somebody assigns a parameter in place of the placeholder."""
    model, plain = dispatched(), built("llama")
    fresh = nn.Parameter(torch.full_like(plain.model.layers[1].mlp.gate_proj.weight, 0.01))
    for each in (model, plain):
        each.model.layers[1].mlp.gate_proj.weight = copy.deepcopy(fresh)
    with torch.no_grad():
        want = plain.to(0)(IDS.to(0)).logits.cpu()
    assert answer(model).equal(want) and not want.equal(expected())
    assert materialised(model) == ["model.layers.1.mlp.gate_proj.weight"]
    assert model.model.layers[1].mlp.gate_proj.weight.device.type == "cpu"


def test_a_copy_is_a_model_of_its_own() -> None:
    model, want = dispatched(), expected()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.lm_head.weight.zero_()
        with planner.align_module_device(twin.model.layers[1].mlp.gate_proj):
            twin.model.layers[1].mlp.gate_proj.weight.zero_()
    assert answer(twin).equal(torch.zeros_like(want))
    assert answer(model).equal(want)
    planner.undispatch(twin)
    assert answer(model).equal(want) and not materialised(model)


@pytest.mark.parametrize("route", ["pickle", "torch.save"])
def test_a_dispatched_model_can_be_pickled(route: str) -> None:
    model, want = dispatched(), expected()
    if route == "pickle":
        twin = pickle.loads(pickle.dumps(model))
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)
    assert answer(twin).equal(want) and answer(model).equal(want)
    assert not materialised(twin)
    planner.undispatch(twin)
    assert answer(model).equal(want)


def test_a_state_dict_without_values_is_not_saved() -> None:
    """accelerate's would be a file of meta tensors."""
    model = dispatched()
    with pytest.raises(OffloadError, match=r"planner\.state_dict\(model\)"):
        torch.save(model.state_dict(), io.BytesIO())
    file = io.BytesIO()
    torch.save(dict(planner.state_dict(model)), file)
    file.seek(0)
    want = built("llama").state_dict()
    assert all(tensor.equal(want[name]) for name, tensor in torch.load(file).items())


def test_an_optimizer_over_all_parameters_leaves_offloaded_ones_alone() -> None:
    model = dispatched().requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    before = model.lm_head.weight.detach().clone()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(IDS).logits.square().mean().backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
    assert not model.lm_head.weight.equal(before) and not materialised(model)


def test_loading_a_state_dict_into_offloaded_weights_is_an_error() -> None:
    model = dispatched()
    with pytest.raises(RuntimeError, match=r"layers\.1\.self_attn\.q_proj\.weight.*is offloaded"):
        model.load_state_dict(built("llama").state_dict())


def test_forward_keeps_its_signature() -> None:
    model, plain = dispatched(), built("llama")
    assert inspect.signature(model.forward) == inspect.signature(plain.forward)
    assert inspect.signature(model.model.layers[1].forward) == inspect.signature(
        plain.model.layers[1].forward
    )
    assert model.forward.__name__ == "forward"


CONVERSIONS: dict[str, Callable[[nn.Module], Any]] = {
    "to": lambda model: model.to("cpu"),
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.bfloat16(),
    "double": lambda model: model.double(),
    "cpu": lambda model: model.cpu(),
    "to_empty": lambda model: model.to_empty(device="cpu"),
    "type": lambda model: model.type(torch.float64),
    "inside": lambda model: model.model.half(),
    "layer": lambda model: model.model.layers[3].half(),
    "leaf": lambda model: model.model.layers[3].mlp.down_proj.half(),
}


@pytest.mark.parametrize("conversion", CONVERSIONS)
def test_moving_or_casting_an_offloaded_model_raises_and_changes_nothing(conversion: str) -> None:
    model, want = dispatched(), expected()
    with pytest.raises(OffloadError, match=r"planner\.undispatch"):
        CONVERSIONS[conversion](model)
    assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
    assert answer(model).equal(want)


def test_parts_without_offloaded_weights_can_be_cast() -> None:
    model = dispatched()
    model.model.layers[0].double()
    assert model.model.layers[0].mlp.gate_proj.weight.dtype == torch.float64


def test_a_gradient_for_an_offloaded_weight_is_an_error() -> None:
    """It would be lost with the copy; accelerate drops it without a word."""
    model = dispatched()
    loss = model(IDS).logits.square().mean()
    with pytest.raises(OffloadError, match=r"requires_grad_\(False\)"):
        loss.backward()
    model.requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    model(IDS).logits.square().mean().backward()
    assert model.lm_head.weight.grad is not None
    assert not materialised(model)


def test_checkpointed_layers_fetch_again_for_backward() -> None:
    gradients = []
    for is_spread in (False, True):
        model = built("llama").requires_grad_(False).train()
        model.lm_head.weight.requires_grad_(True)
        model.model.layers[0].mlp.gate_proj.weight.requires_grad_(True)
        if is_spread:
            planner.dispatch(model, MIXED)
        else:
            model.to(0)
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model(IDS.to(0), use_cache=False).logits.square().mean().backward()
        gradients.append(
            [w.grad.cpu() for w in (model.lm_head.weight, model.model.layers[0].mlp.gate_proj.weight)]
        )
    assert all(found.equal(want) for want, found in zip(*gradients, strict=True))
    assert not materialised(model)


def test_a_mismatch_is_named_before_anything_moves() -> None:
    model = built("llama")
    before = snapshot(model)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({**MIXED, "model.layers.9": 0}, r"'model\.layers\.9'"),
        ({name: device for name, device in MIXED.items() if name != "model.norm"}, r"'model\.norm\.weight'"),
        ({**MIXED, "model.norm": 2}, r"accelerators \[2\]; this machine has 2"),
        ({**MIXED, "model.norm": "disk"}, r"'model\.norm'.*on disk"),
    ]
    for device_map, words in wrong:
        with pytest.raises(PlanMismatchError, match=words):
            planner.dispatch(model, device_map)
    with pytest.raises(planner.InvalidDevicesError):
        planner.dispatch(model, {**MIXED, "model.norm": "gpu7"})
    assert same(before, snapshot(model))


def test_weights_that_are_not_there_are_named() -> None:
    with planner.init_empty_weights():
        model = built("llama")
    with pytest.raises(PlanMismatchError, match=r"meta device.*model\.embed_tokens\.weight"):
        planner.dispatch(model, MIXED)


def test_hooks_of_others_are_not_built_over() -> None:
    model = built("llama")
    planner.add_hook_to_module(model.model.norm, planner.ModelHook())
    with pytest.raises(PlanMismatchError, match=r"'model\.norm' has a hook"):
        planner.dispatch(model, MIXED)


def test_undispatching_what_runs_or_what_is_not_dispatched() -> None:
    model = dispatched()
    failures: list[BaseException] = []

    def undo(*_: Any) -> None:
        try:
            planner.undispatch(model)
        except OffloadError as error:
            failures.append(error)

    handle = model.model.layers[1].mlp.register_forward_hook(undo)
    want = answer(model)
    handle.remove()
    assert len(failures) == 1 and answer(model).equal(want)
    planner.undispatch(model)
    with pytest.raises(PlanMismatchError, match="not dispatched"):
        planner.undispatch(model)


@pytest.mark.parametrize("cls", [Flat, Telling])
def test_wrapper_tensors_are_placed_and_offloaded_if_they_tell_what_they_wrap(cls: type) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).requires_grad_(False)
    want = model(torch.ones(1, 4))
    model[1].weight = nn.Parameter(cls(model[1].weight.data), requires_grad=False)
    planner.dispatch(model, {"0": 0, "1": 1})
    assert type(model[1].weight.data) is cls and model[1].weight.device == torch.device(1)
    torch.testing.assert_close(model(torch.ones(1, 4)), want)
    if cls is Flat:
        with pytest.raises(OffloadError, match=r"'1\.weight'.*Flat.*__tensor_flatten__"):
            planner.dispatch(model, {"0": 0, "1": "cpu"})
    else:
        planner.dispatch(model, {"0": 0, "1": "cpu"})
        assert is_offloaded(model[1].weight)
    torch.testing.assert_close(model(torch.ones(1, 4)), want)


class FiveLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = (nn.Linear(4, 4) for _ in range(5))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"out": self.e(self.d(self.c(self.b(self.a(x)))))}


@pytest.mark.parametrize("layers", [(0, 0, 1, 1, 0), (0, "cpu", 0, "cpu", 0)])
def test_compiled_models(layers: tuple[Any, ...]) -> None:
    """Over devices in one graph; with offloading, one break for each offloaded block."""
    torch.manual_seed(0)
    model, x = FiveLayers(), torch.ones(2, 4, device=0)
    want = copy.deepcopy(model).to(0)(x)["out"]
    planner.dispatch(model, dict(zip("abcde", layers, strict=True)))
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph="cpu" not in layers)
    for _ in range(3):
        assert compiled(x)["out"].equal(want)
    torch._dynamo.reset()
    assert torch._dynamo.explain(model)(x).graph_break_count == layers.count("cpu")
    torch._dynamo.reset()


@pytest.mark.parametrize("reader", ["linear", "transpose", "data", "detach", "view"])
def test_compiled_code_that_reads_an_offloaded_weight_raises_the_same_error(reader: str) -> None:
    weight = planner.dispatch(FiveLayers(), dict(zip("abcde", (0, "cpu", 1, 0, 1), strict=True))).b.weight
    torch._dynamo.reset()
    with pytest.raises(OffloadError, match=r"'b\.weight' is offloaded"):
        torch.compile(lambda: READERS[reader](weight), backend="eager")()
    torch._dynamo.reset()
