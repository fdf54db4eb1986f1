"""accelerate's loading functions on our reading of files: beside accelerate where that works, and where it does not."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from accelerate.utils import load_checkpoint_in_model as their_load_in_model
from drop_in_models import (
    HALF,
    MAPS,
    SAFE,
    WRITERS,
    Small,
    X,
    covered,
    on_meta,
    trained,
)
from safetensors.torch import save_file
from torch import nn

import planner


@pytest.mark.parametrize("offload_buffers", [False, True])
@pytest.mark.parametrize("make", [on_meta, Small], ids=["meta", "live"])
@pytest.mark.parametrize("device_map", MAPS.values(), ids=MAPS)
@pytest.mark.parametrize("kind", WRITERS)
def test_every_kind_of_files_on_every_map_gives_the_same_outputs(
    kind: str,
    device_map: Any,
    make: Callable[[], Small],
    offload_buffers: bool,
    checkpoint: Callable[..., Path],
    empty: Path,
) -> None:
    model = trained()
    loaded = planner.load_checkpoint_and_dispatch(
        make().eval(),
        checkpoint(kind, model),
        device_map=covered(device_map),
        offload_folder=empty,
        offload_buffers=offload_buffers,
    )
    assert torch.equal(loaded(X), model(X))
    is_written = kind not in SAFE and "disk" in str(device_map)
    assert ("index.json" in os.listdir(empty)) is is_written
    assert is_written or not os.listdir(empty)


@pytest.mark.parametrize("dtype", [None, torch.float16, "torch.bfloat16"])
@pytest.mark.parametrize("device_map", [None, {"": "cpu"}, HALF], ids=["none", "cpu", "half"])
@pytest.mark.parametrize("kind", WRITERS)
def test_tensors_are_those_that_accelerate_loads(
    kind: str, device_map: Any, dtype: Any, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    if device_map is None and dtype is not None:
        pytest.skip("accelerate leaves the dtype out where there is no map")
    source = str(checkpoint(kind, trained()))
    theirs, ours = Small(), Small()
    # Without offloaded buffers accelerate leaves those of what is on disk unread.
    options = {"device_map": covered(device_map), "dtype": dtype, "offload_buffers": True}
    their_load_in_model(theirs, source, **options, offload_folder=tmp_path / "theirs")
    planner.load_checkpoint_in_model(ours, source, **options, offload_folder=tmp_path / "ours")
    expected, found = theirs.state_dict(), ours.state_dict()
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].device) == (tensor.dtype, tensor.device), name
        assert tensor.is_meta or torch.equal(found[name], tensor), name


def test_without_a_dtype_the_models_own_counts_everywhere(
    checkpoint: Callable[..., Path], empty: Path
) -> None:
    source = checkpoint("one_file", trained().half())
    for device_map in (None, {"": "cpu"}, covered(HALF), {"": "disk"}):
        loaded = planner.load_checkpoint_and_dispatch(on_meta(), source, device_map=device_map)
        assert loaded(X).dtype == torch.float32
        values = planner.get_state_dict_offloaded_model(loaded)
        assert {values["linear1.weight"].dtype, values["batchnorm.weight"].dtype} == {torch.float32}
        assert values["batchnorm.num_batches_tracked"].dtype == torch.int64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_modules_that_are_kept_wide_are_so_beside_both_halves(
    dtype: torch.dtype, checkpoint: Callable[..., Path]
) -> None:
    model = on_meta()
    planner.load_checkpoint_in_model(
        model,
        checkpoint("one_file", trained()),
        device_map={"": "cpu"},
        dtype=dtype,
        keep_in_fp32_modules=["batchnorm"],
    )
    assert (model.batchnorm.weight.dtype, model.linear1.weight.dtype) == (torch.float32, dtype)


@pytest.mark.parametrize("device_map", [None, {"": "cpu"}, {"": "disk"}], ids=["none", "cpu", "disk"])
@pytest.mark.parametrize("kind", ["one_file", "one_pickle"])
def test_strict_looks_both_ways(
    kind: str, device_map: Any, checkpoint: Callable[..., Path], empty: Path
) -> None:
    state = trained().state_dict()
    more = checkpoint(kind, {**state, "foo": torch.ones(1)})
    model = Small()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options: dict[str, Any] = {"device_map": device_map, "offload_folder": empty, "strict": True}
    with pytest.raises(ValueError, match="no place for 'foo'"):
        planner.load_checkpoint_in_model(model, more, **options)
    fewer = checkpoint(kind, {name: value for name, value in state.items() if name != "linear1.bias"})
    with pytest.raises(ValueError, match=r"no file has 'linear1\.bias'"):
        planner.load_checkpoint_in_model(model, fewer, **options)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not os.listdir(empty)


def test_without_strict_what_is_too_much_is_told_and_what_is_missing_stays(
    checkpoint: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    state = trained().state_dict()
    del state["linear1.bias"]
    source = checkpoint("one_pickle", {**state, "foo": torch.ones(1), "epoch": 3})  # type: ignore[dict-item]
    model = Small()
    bias = model.linear1.bias.detach().clone()
    with caplog.at_level(logging.WARNING):
        planner.load_checkpoint_in_model(model, source)
    assert "were not used when initializing Small: foo, epoch" in caplog.text.replace("'", "")
    assert torch.equal(model.linear1.bias, bias)
    skeleton = on_meta()
    planner.load_checkpoint_in_model(skeleton, source)
    assert skeleton.linear1.bias.is_meta and not skeleton.linear1.weight.is_meta
    with pytest.raises(planner.CheckpointError, match=r"no file has 'linear1\.bias'"):
        planner.load_checkpoint_and_dispatch(on_meta(), source, device_map={"": "cpu"})


def test_scales_are_left_out_beside_an_int8_weight_and_nowhere_else(tmp_path: Path) -> None:
    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False)

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.SCB = nn.Parameter(torch.zeros(2))

    packed = nn.ModuleDict({"a": Packed()})
    save_file(
        {"a.weight": torch.ones(2, dtype=torch.int8), "a.SCB": torch.ones(2)}, tmp_path / "p.safetensors"
    )
    planner.load_checkpoint_in_model(packed, tmp_path / "p.safetensors", device_map={"": "cpu"}, strict=True)
    assert packed["a"].weight.tolist() == [1, 1]
    named = nn.ModuleDict({"a": Named()})
    save_file({"a.SCB": torch.ones(2)}, tmp_path / "n.safetensors")
    planner.load_checkpoint_in_model(named, tmp_path / "n.safetensors", device_map={"": "cpu"}, strict=True)
    assert named["a"].SCB.tolist() == [1, 1]


def test_a_live_model_keeps_its_parameters(checkpoint: Callable[..., Path]) -> None:
    model, source = Small(), checkpoint("one_file", trained())
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    planner.load_checkpoint_in_model(model, source)
    assert all(value is parameters[name] for name, value in model.named_parameters())
    loaded = model.linear1.weight.detach().clone()
    model(torch.randn(8, 3)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(model.linear1.weight, loaded)
    again = planner.load_checkpoint_and_dispatch(on_meta(), source)
    assert torch.equal(again.linear1.weight, loaded)


def test_a_dispatched_model_keeps_its_map_without_one(checkpoint: Callable[..., Path]) -> None:
    first, second = trained(), trained()
    one, other = checkpoint("one_file", first), checkpoint("several_files", second)
    model = planner.load_checkpoint_and_dispatch(on_meta(), one, device_map=covered(HALF))
    planner.load_checkpoint_and_dispatch(model, other)
    assert model.hf_device_map == covered(HALF)
    assert torch.equal(model(X), second(X))


@pytest.mark.parametrize("kind", WRITERS)
def test_a_dtype_counts_without_a_map(kind: str, checkpoint: Callable[..., Path]) -> None:
    model = on_meta()
    planner.load_checkpoint_in_model(model, checkpoint(kind, trained()), dtype="float16")
    assert {value.dtype for value in model.state_dict().values()} == {torch.float16, torch.int64}


@pytest.mark.parametrize("device_map", [None, {"": "cpu"}, {"": "disk"}], ids=["none", "cpu", "disk"])
def test_ties_are_kept_and_made_again(device_map: Any, tmp_path: Path) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=1, n_embd=8, n_head=2, vocab_size=16, n_positions=8, bos_token_id=0, eos_token_id=0
    )
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(tmp_path)
    with torch.device("meta"):
        skeleton = GPT2LMHeadModel(config).eval()
    skeleton.lm_head.weight = nn.Parameter(torch.empty(16, 8, device="meta"))
    loaded = planner.load_checkpoint_and_dispatch(skeleton, tmp_path, device_map=device_map, strict=True)
    words = torch.arange(4)[None]
    assert torch.equal(loaded(words).logits, model(words).logits)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight


def test_signatures_are_accelerates() -> None:
    import inspect

    for theirs, ours in (
        (accelerate.load_checkpoint_and_dispatch, planner.load_checkpoint_and_dispatch),
        (their_load_in_model, planner.load_checkpoint_in_model),
        (accelerate.disk_offload, planner.disk_offload),
    ):
        wanted = [(row.name, row.default) for row in inspect.signature(theirs).parameters.values()]
        assert [(row.name, row.default) for row in inspect.signature(ours).parameters.values()] == wanted
