"""The virtual accelerators behave as real ones do, as far as dispatching needs it."""

from __future__ import annotations

import copy
import io
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from rig import Accelerators, CompileError, build

KIB = 1024


def test_integers_name_the_two_devices() -> None:
    assert torch.device(0) == torch.device("virtual:0")
    assert torch.accelerator.device_count() == 2
    assert torch.ones(2).to(1).device == torch.device("virtual", 1)
    with pytest.raises(RuntimeError, match="invalid device ordinal 2"):
        torch.ones(1, device="virtual:2")


def test_values_are_real() -> None:
    x = torch.arange(6.0).view(2, 3)
    y = x.to(0)
    assert (y @ y.T).cpu().equal(x @ x.T)
    assert y[:, 1:].t().contiguous().cpu().equal(x[:, 1:].t())
    assert (y + 1).device == y.device


@pytest.mark.parametrize("other", ["cpu", "virtual:1"])
def test_mixing_devices_raises(other: str) -> None:
    here, there = torch.ones(2, 2, device="virtual:0"), torch.ones(2, 2, device=other)
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        here + there
    with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device"):
        nn.functional.linear(here, there)


def test_numbers_of_the_host_mix_as_on_cuda() -> None:
    x = torch.ones(2, device="virtual:1")
    assert (x * torch.tensor(3.0)).cpu().tolist() == [3.0, 3.0]


def test_memory_is_counted(virtual_accelerators: Accelerators) -> None:
    before = virtual_accelerators.used_bytes(1)
    x = torch.empty(KIB, dtype=torch.uint8, device="virtual:1")
    assert virtual_accelerators.used_bytes(1) == before + KIB
    del x
    assert virtual_accelerators.used_bytes(1) == before
    assert virtual_accelerators.peak_bytes(1) == before + KIB
    virtual_accelerators.reset()
    assert virtual_accelerators.peak_bytes(1) == before


def test_a_limit_is_kept(virtual_accelerators: Accelerators) -> None:
    with virtual_accelerators.memory_limit_bytes(0, KIB):
        kept = torch.empty(KIB, dtype=torch.uint8, device="virtual:0")
        assert torch.accelerator.get_memory_info(0) == (0, KIB)
        with pytest.raises(torch.OutOfMemoryError, match="Tried to allocate 1 bytes"):
            torch.empty(1, dtype=torch.uint8, device="virtual:0")
        torch.empty(KIB, dtype=torch.uint8, device="virtual:1")
    del kept
    torch.empty(2 * KIB, dtype=torch.uint8, device="virtual:0")


def test_memory_can_run_out_anywhere(virtual_accelerators: Accelerators) -> None:
    model = nn.Linear(2, 2)
    with (
        virtual_accelerators.out_of_memory_after(1, 1),
        pytest.raises(torch.OutOfMemoryError, match="of which 0 bytes are free"),
    ):
        model.to(1)
    assert [parameter.device.type for parameter in model.parameters()] == ["virtual", "cpu"]
    assert model.to(1).bias.device.index == 1


def test_traffic_is_counted(virtual_accelerators: Accelerators) -> None:
    x = torch.ones(4, dtype=torch.float32)
    y = x.to(0)
    (y @ y).relu()
    z = y.to(1)
    z[:2].cpu()
    traffic = virtual_accelerators.traffic()
    assert (traffic.to_device_bytes, traffic.between_devices_bytes, traffic.to_host_bytes) == (16, 16, 8)


def test_gradients_flow_across_devices() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    x = torch.randn(5, 3, requires_grad=True)
    model(x).square().sum().backward()
    expected = [x.grad, *(parameter.grad for parameter in model.parameters())]
    twin = copy.deepcopy(model)
    twin.zero_grad()
    twin[:2].to(0)
    twin[2].to(1)
    y = x.detach().to(0).requires_grad_()
    twin[2](twin[:2](y).to(1)).square().sum().backward()
    found = [y.grad, *(parameter.grad for parameter in twin.parameters())]
    assert [gradient.device.index for gradient in found] == [0, 0, 0, 0, 0, 1, 1]
    assert all(torch.allclose(a, b.cpu(), atol=1e-6) for a, b in zip(expected, found, strict=True))


def test_moving_a_module_keeps_ties_and_identity() -> None:
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module[1].weight = module[0].weight
    weight = module[0].weight
    for device in (0, 1, "cpu"):
        module.to(device)
        assert module[0].weight is module[1].weight is weight
        assert weight.device == torch.device(device)


def test_copies_are_copies() -> None:
    model = nn.Linear(2, 2).to(1)
    twin = copy.deepcopy(model)
    assert twin.weight.device == model.weight.device
    assert twin.weight.equal(model.weight)
    with torch.no_grad():
        twin.weight.zero_()
    assert model.weight.count_nonzero() > 0
    storage = copy.deepcopy(model.weight.untyped_storage())
    assert storage.device == model.weight.device and storage.data_ptr() != model.weight.data_ptr()


def test_saved_tensors_come_back_where_they_were() -> None:
    file = io.BytesIO()
    torch.save(nn.Linear(2, 2).to(1).state_dict(), file)
    file.seek(0)
    assert {tensor.device.index for tensor in torch.load(file).values()} == {1}
    file.seek(0)
    assert {tensor.device.type for tensor in torch.load(file, map_location="cpu").values()} == {"cpu"}


def test_storages_can_be_emptied_and_grown(virtual_accelerators: Accelerators) -> None:
    used_bytes = virtual_accelerators.used_bytes(0)
    x = torch.arange(4.0, device="virtual:0")
    x.untyped_storage().resize_(0)
    assert virtual_accelerators.used_bytes(0) == used_bytes
    x.untyped_storage().resize_(16)
    assert virtual_accelerators.used_bytes(0) == used_bytes + 16
    assert torch.arange(4.0, device="virtual:0").resize_(2, 2).cpu().equal(torch.arange(4.0).view(2, 2))


def test_pinned_memory_is_known(virtual_accelerators: Accelerators) -> None:
    before_bytes = virtual_accelerators.pinned_bytes()
    pinned = torch.arange(4.0).pin_memory()
    assert pinned.is_pinned() and pinned[2:].is_pinned() and torch.empty(3, pin_memory=True).is_pinned()
    assert not torch.ones(2).is_pinned()
    assert pinned.to(0, non_blocking=True).cpu().equal(torch.arange(4.0))
    assert virtual_accelerators.pinned_bytes() == before_bytes + pinned.nbytes


def test_complex_views() -> None:
    x = torch.arange(6.0).view(3, 2)
    turned = torch.view_as_complex(x.to(0)).conj()
    assert turned.cpu().equal(torch.view_as_complex(x).conj())
    assert torch.view_as_real(turned.resolve_conj()).device.index == 0


@pytest.mark.parametrize("has_bias", [True, False])
def test_convolutions_have_gradients(has_bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 3, 3, bias=has_bias)
    twin = copy.deepcopy(layer).to(0)
    x = torch.randn(1, 2, 5, 5)
    layer(x).sum().backward()
    twin(x.to(0)).sum().backward()
    assert twin(x.to(0)).cpu().equal(layer(x))
    for expected, found in zip(layer.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found.grad.cpu(), expected.grad)


def test_indices_may_be_on_the_host() -> None:
    x = torch.arange(4.0).to(0)
    assert x[torch.tensor([1, 2])].cpu().tolist() == [1, 2]
    assert x[torch.tensor([1, 2]).to(0)].cpu().tolist() == [1, 2]
    with pytest.raises(RuntimeError, match="indices should be either on cpu or on the same device"):
        x[torch.tensor([1, 2]).to(1)]


def test_histograms_of_integers() -> None:
    """The host has them for floating point only; mixtures of experts count with them."""
    x = torch.tensor([0, 1, 1, 3], dtype=torch.int32).to(0)
    counts = torch.histc(x, bins=4, min=0, max=3)
    assert (counts.dtype, counts.cpu().tolist()) == (torch.int32, [1, 2, 0, 1])


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_models_compile_across_devices(backend: str) -> None:
    first, second = nn.Linear(3, 4).to(0), nn.Linear(4, 2).to(1)

    def both(x: torch.Tensor) -> torch.Tensor:
        return second(first(x).to(1)).to(0)

    x = torch.ones(2, 3, device="virtual:0")
    assert torch.compile(both, backend=backend, fullgraph=True)(x).equal(both(x))


@pytest.mark.parametrize("is_reentrant", [True, False])
def test_checkpointed_dropout_is_drawn_again(is_reentrant: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5), nn.Linear(8, 2)).to(1)
    x = torch.ones(2, 3, device="virtual:1", requires_grad=True)
    torch.manual_seed(1)
    (expected,) = torch.autograd.grad(model(x).sum(), x)
    torch.manual_seed(1)
    checkpoint(model, x, use_reentrant=is_reentrant).sum().backward()
    assert x.grad is not None and x.grad.equal(expected)


def test_models_pickle() -> None:
    layer = nn.Linear(2, 2).to(1)
    twin = pickle.loads(pickle.dumps(layer))
    assert twin.weight.device == layer.weight.device and twin.weight.equal(layer.weight)


def test_autocast_casts_matrix_products() -> None:
    with torch.autocast("virtual", dtype=torch.bfloat16):
        assert nn.Linear(2, 2).to(0)(torch.ones(1, 2, device="virtual:0")).dtype == torch.bfloat16


def test_threads_do_not_disturb_each_other(virtual_accelerators: Accelerators) -> None:
    layer = nn.Linear(8, 8).to(0)
    x = torch.ones(2, 8, device="virtual:0")
    expected = layer(x)
    used_bytes = virtual_accelerators.used_bytes(0)
    with ThreadPoolExecutor(8) as pool, virtual_accelerators.watch_streams():
        found = list(pool.map(lambda _: layer(x).equal(expected), range(400)))
    assert all(found)
    assert virtual_accelerators.used_bytes(0) == used_bytes


def test_a_process_that_ends_with_backward_ends_well() -> None:
    program = (
        "import torch; from rig import Accelerators; Accelerators(); "
        "torch.nn.Linear(2, 2).to(0)(torch.ones(1, 2).to(0)).sum().backward()"
    )
    folder = str(Path(build.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": folder})
    assert done.returncode == 0


def test_random_numbers_follow_the_seed() -> None:
    torch.manual_seed(3)
    first = torch.rand(4, device="virtual:0")
    torch.manual_seed(3)
    assert torch.rand(4, device="virtual:0").equal(first)


def test_compiling_twice_is_not_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_nothing(library: Path) -> None:
        library.write_text("compiled")

    monkeypatch.setattr(build, "compile_to", compile_nothing)
    library = build.compiled(tmp_path)
    monkeypatch.setattr(build, "compile_to", lambda library: pytest.fail("compiled again"))
    assert build.compiled(tmp_path) == library


def test_the_compilers_complaint_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = tmp_path / "csrc"
    sources.mkdir()
    (sources / "virtual_accelerators.cpp").write_text("#error on purpose")
    monkeypatch.setattr(build, "SOURCES", sources)
    with pytest.raises(CompileError, match="on purpose"):
        build.compiled(tmp_path / "cache")
    assert not list((tmp_path / "cache").glob("*.so"))
