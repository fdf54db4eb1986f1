"""Flattening live models: what is counted, what is refused."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import nn

from planner.errors import InvalidTreeError
from planner.model.tree import ModuleTree
from planner.strategies.sequential import Layout


def stored_bytes(model: nn.Module, **options: object) -> float:
    return Layout(ModuleTree.from_module(model), **options).stored_sizes()[""]  # type: ignore[arg-type]


def holder(tensor: torch.Tensor) -> nn.Module:
    module = nn.Module()
    module.register_buffer("t", tensor)
    return module


ALL_DTYPES = sorted(
    {value for value in vars(torch).values() if isinstance(value, torch.dtype)}, key=lambda dtype: str(dtype)
)


@pytest.mark.parametrize("dtype", ALL_DTYPES, ids=str)
def test_every_dtype_counts_what_its_storage_takes(dtype: torch.dtype) -> None:
    try:
        tensor = torch.empty(24, dtype=dtype, device="meta")
    except (RuntimeError, NotImplementedError) as error:
        pytest.skip(f"torch makes no such tensor: {error}")
    assert stored_bytes(holder(tensor)) == tensor.untyped_storage().nbytes()


def test_bool_is_a_byte_and_int4_is_not_free() -> None:
    assert stored_bytes(holder(torch.empty(8, dtype=torch.bool, device="meta"))) == 8
    assert stored_bytes(nn.Linear(4, 4, bias=False, device="meta"), dtype=torch.int4) == 16


def test_an_upcast_is_counted_and_integers_are_not_cast() -> None:
    module = nn.Linear(4, 4, bias=False, device="meta", dtype=torch.float16)
    module.register_buffer("ids", torch.empty(5, dtype=torch.int64, device="meta"))
    assert stored_bytes(module) == 32 + 40
    assert stored_bytes(module, dtype=torch.float32) == 64 + 40
    assert stored_bytes(module, dtype="torch.float32", special_dtypes={"weight": "bfloat16"}) == 32 + 40


def test_a_tensor_under_three_names_counts_once_and_is_one_group() -> None:
    model = nn.Sequential(
        nn.Linear(3, 3, device="meta"), nn.Linear(3, 3, device="meta"), nn.Linear(3, 3, device="meta")
    )
    model[1].weight = model[0].weight
    model[2].weight = model[0].weight
    layout = Layout(ModuleTree.from_module(model))
    assert layout.stored_sizes()[""] == 3 * 12 + 36
    assert layout.tied_groups() == [["0.weight", "1.weight", "2.weight"]]


def test_meta_tensors_are_told_apart_though_all_have_the_same_data_pointer() -> None:
    model = nn.Sequential(nn.Linear(3, 3, device="meta"), nn.Linear(3, 3, device="meta"))
    assert model[0].weight.data_ptr() == model[1].weight.data_ptr() == 0
    assert Layout(ModuleTree.from_module(model)).tied_groups() == []


def test_none_entries_and_scratch_buffers() -> None:
    module = nn.Module()
    module.register_parameter("absent", None)
    module.register_buffer("nothing", None)
    module.add_module("gone", None)
    module.register_buffer("kept", torch.empty(2, device="meta"))
    module.register_buffer("scratch", torch.empty(3, device="meta"), persistent=False)
    tree = ModuleTree.from_module(module)
    assert tree.uncovered([]) == ([], ["kept", "scratch"])
    assert tree.uncovered([], "saved") == ([], ["kept"])


class Packed(torch.Tensor):
    """A wrapper subclass: looks like float32, holds bytes and scales."""

    @staticmethod
    def __new__(cls, packed: torch.Tensor, scales: torch.Tensor, shape: tuple[int, ...]) -> Packed:
        self = torch.Tensor._make_wrapper_subclass(cls, shape, dtype=torch.float32, device=packed.device)
        self.packed, self.scales = packed, scales
        return self

    def __tensor_flatten__(self) -> tuple[list[str], tuple[int, ...]]:
        return ["packed", "scales"], tuple(self.shape)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func is torch.ops.aten.detach.default:
            return cls(args[0].packed, args[0].scales, tuple(args[0].shape))
        raise NotImplementedError(func)


def test_a_wrapper_subclass_counts_the_tensors_inside_it() -> None:
    inner = (
        torch.empty(10, dtype=torch.uint8, device="meta"),
        torch.empty(2, dtype=torch.float16, device="meta"),
    )
    module = nn.Module()
    module.register_parameter("w", nn.Parameter(Packed(*inner, (4, 5)), requires_grad=False))
    assert stored_bytes(module) == 14
    assert stored_bytes(module, dtype=torch.float64) == 14, "a packed tensor is not cast"
    nested = Packed(Packed(*inner, (4, 5)), inner[1], (4, 5))
    assert stored_bytes(holder(nested)) == 18


def test_a_dtensor_counts_its_local_shard() -> None:
    import torch.distributed as dist
    from torch.distributed.tensor import DeviceMesh, Shard, distribute_tensor
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=4)
    try:
        sharded = distribute_tensor(torch.empty(8, 4), DeviceMesh("cpu", torch.arange(4)), [Shard(0)])
        assert stored_bytes(holder(sharded)) == 8 * 4 * 4 // 4
    finally:
        dist.destroy_process_group()


def test_a_module_inside_itself_is_named() -> None:
    model = nn.Module()
    model.a = nn.Module()
    model.a.b = nn.Module()
    model.a.b.add_module("c", model.a)
    with pytest.raises(InvalidTreeError, match=r"'a\.b\.c' is 'a' again") as caught:
        ModuleTree.from_module(model)
    assert caught.value.name == "a.b.c"


def test_a_lazy_parameter_is_named() -> None:
    with pytest.raises(InvalidTreeError, match="not initialised") as caught:
        ModuleTree.from_module(nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3)))
    assert caught.value.name == "1.weight"


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (
            lambda m: m.inner._parameters.update(weight=3),
            r"'inner\.weight' is registered as a tensor but is a int",
        ),
        (lambda m: m._modules.update({5: nn.Linear(1, 1)}), "has a member named 5"),
        (lambda m: m._modules.update({"\ud800": nn.Linear(1, 1)}), "not a plain string"),
        (lambda m: m._modules.update(x=object()), r"'x' \(object\) has no _parameters"),
        (lambda m: m.inner.__dict__.pop("_modules"), r"'inner' \(Linear\) has no _modules"),
    ],
)
def test_members_that_are_no_tensors_or_modules_are_named(break_it, words: str) -> None:  # type: ignore[no-untyped-def]
    model = nn.Module()
    model.inner = nn.Linear(2, 2)
    break_it(model)
    with pytest.raises(InvalidTreeError, match=words):
        ModuleTree.from_module(model)


def test_depth_is_no_limit() -> None:
    model = inner = nn.Module()
    for _ in range(10_000):
        inner.w = nn.Parameter(torch.empty(1, device="meta"))
        inner.x = nn.Module()
        inner = inner.x
    tree = ModuleTree.from_module(model)
    assert tree.module_count == 10_001
    assert Layout(tree).stored_sizes()[""] == 40_000


def test_shared_modules_that_double_at_each_level_end_in_an_error() -> None:
    model: nn.Module = nn.Linear(2, 2, device="meta")
    for _ in range(40):
        outer = nn.Module()
        outer.a = outer.b = model
        model = outer
    with pytest.raises(InvalidTreeError, match="more than"):
        ModuleTree.from_module(model)


def test_a_script_module_is_walked_through_its_own_dicts() -> None:
    script = torch.jit.script(nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)))
    assert stored_bytes(script) == sum(p.nbytes for p in script.parameters())


def test_one_layout_serves_many_threads() -> None:
    from planner.strategies.sequential import sequential

    layout = Layout(
        ModuleTree.from_module(nn.Sequential(*(nn.Linear(8, 8, device="meta") for _ in range(50))))
    )
    expected = sequential(layout, {0: 5000, "cpu": 9000}).device_map()
    found: list[object] = []

    def plan() -> None:
        found.extend(sequential(layout, {0: 5000, "cpu": 9000}).device_map() == expected for _ in range(50))

    threads = [threading.Thread(target=plan) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 400
