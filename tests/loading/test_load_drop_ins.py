"""accelerate's loading functions on our reading of files: beside accelerate where that works, and where it does not."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from accelerate.utils import load_checkpoint_in_model as their_load_in_model
from safetensors.torch import save_file
from torch import nn

import planner


class Small(nn.Module):
    """Parameters, saved buffers of two dtypes, and one that is not saved."""

    def __init__(self) -> None:
        super().__init__()
        self.linear1 = nn.Linear(3, 4)
        self.batchnorm = nn.BatchNorm1d(4)
        self.linear2 = nn.Linear(4, 5)
        self.register_buffer("scale", torch.ones(5), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear2(self.batchnorm(self.linear1(x))) * self.scale


def trained() -> Small:
    """A model with values of its own everywhere."""
    model = Small()
    for _ in range(3):
        model(torch.randn(8, 3))
    return model.eval()


def on_meta() -> Small:
    """A skeleton; its buffer that no file holds is real, as `init_empty_weights` leaves it."""
    with planner.init_empty_weights(include_buffers=False):
        return Small().eval()


PARTS = ("linear1", "batchnorm", "linear2")
X = torch.randn(2, 3)


def one_file(state: Mapping[str, torch.Tensor], folder: Path) -> Path:
    save_file(dict(state), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def several_files(state: Mapping[str, torch.Tensor], folder: Path) -> Path:
    rows = {}
    for part in PARTS:
        file = f"{part}-of-3.safetensors"
        save_file(
            {name: value for name, value in state.items() if name.startswith(part)},
            folder / file,
            metadata={"format": "pt"},
        )
        rows |= {name: file for name in state if name.startswith(part)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": rows}))
    return folder


def one_pickle(state: Mapping[str, torch.Tensor], folder: Path) -> Path:
    torch.save(dict(state), folder / "weights.pt")
    return folder / "weights.pt"


def several_pickles(state: Mapping[str, torch.Tensor], folder: Path) -> Path:
    for part in PARTS:
        torch.save(
            {name: value for name, value in state.items() if name.startswith(part)}, folder / f"{part}.bin"
        )
    rows = {name: f"{name.partition('.')[0]}.bin" for name in state}
    (folder / "weights.index.json").write_text(json.dumps(rows))
    return folder


def old_pickle(state: Mapping[str, torch.Tensor], folder: Path) -> Path:
    torch.save(dict(state), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    return folder


WRITERS = {each.__name__: each for each in (one_file, several_files, one_pickle, several_pickles, old_pickle)}
SAFE = ("one_file", "several_files")
HALF = {"linear1": "cpu", "batchnorm": "disk", "linear2": "cpu"}
MAPS: dict[str, Any] = {
    "cpu": {"": "cpu"},
    "half": HALF,
    "disk": {"": "disk"},
    "one_tensor": {
        "linear1": "cpu",
        "batchnorm": "cpu",
        "scale": "cpu",
        "linear2.weight": "disk",
        "linear2.bias": "disk",
    },
    "auto": "auto",
    "balanced": "balanced",
    "sequential": "sequential",
    "none": None,
}


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    """An offload folder."""
    folder = tmp_path / "offloaded"
    folder.mkdir()
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    def write(kind: str, model: nn.Module | Mapping[str, torch.Tensor]) -> Path:
        folder = tmp_path / kind
        folder.mkdir(exist_ok=True)
        return WRITERS[kind](model if isinstance(model, Mapping) else model.state_dict(), folder)

    return write


def covered(device_map: Any) -> Any:
    """With a device for the buffer that no file holds."""
    return (
        {**device_map, "scale": "cpu"}
        if isinstance(device_map, dict) and "" not in device_map
        else device_map
    )


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


def test_safetensors_count_in_a_folder_with_both(tmp_path: Path) -> None:
    right, wrong = trained(), trained()
    one_file(right.state_dict(), tmp_path)
    torch.save(wrong.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "pytorch_model.bin.index.json").write_text('{"weight_map": {}}')
    loaded = planner.load_checkpoint_and_dispatch(on_meta(), tmp_path, device_map={"": "cpu"})
    assert torch.equal(loaded(X), right(X))


@pytest.mark.parametrize(
    "name", ["MODEL.SAFETENSORS", "model", "model.bin", "pytorch_model.bin", "model.ckpt", "model.json.pt"]
)
@pytest.mark.parametrize("kind", ["one_file", "one_pickle"])
def test_a_file_is_what_it_holds_whatever_its_name(
    kind: str, name: str, checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    model = trained()
    source = checkpoint(kind, model)
    path = tmp_path / "named" / name
    path.parent.mkdir()
    shutil.copy(source if source.is_file() else source / "model.safetensors", path)
    assert torch.equal(planner.load_checkpoint_and_dispatch(on_meta(), path)(X), model(X))
    if name == "pytorch_model.bin":
        assert torch.equal(planner.load_checkpoint_and_dispatch(on_meta(), path.parent)(X), model(X))


@pytest.mark.parametrize("start", [b"\x80", b"PK"])
def test_the_length_of_a_header_is_not_taken_for_the_beginning_of_a_pickle(
    start: bytes, tmp_path: Path
) -> None:
    state = trained().state_dict()
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    wanted = next(size for size in range(length, 2**20) if size.to_bytes(8, "little").startswith(start))
    path.write_bytes(
        wanted.to_bytes(8, "little")
        + content[8 : 8 + length]
        + b" " * (wanted - length)
        + content[8 + length :]
    )
    model = planner.load_checkpoint_and_dispatch(Small(), path, device_map={"": "cpu"})
    assert all(model.state_dict()[name].equal(value) for name, value in state.items())


def test_a_pickle_named_as_safetensors_is_read(tmp_path: Path) -> None:
    model = trained()
    torch.save(model.state_dict(), tmp_path / "model.safetensors.pt")
    path = tmp_path / "m.safetensors"
    os.rename(tmp_path / "model.safetensors.pt", path)
    assert torch.equal(planner.load_checkpoint_and_dispatch(on_meta(), path)(X), model(X))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("dtype", [None, torch.float64])
@pytest.mark.parametrize("device_map", [None, {"": "cpu"}, {"": "disk"}])
def test_a_pickled_tensor_that_does_not_lie_in_order_has_its_values(
    device_map: Any, dtype: torch.dtype | None, legacy: bool, tmp_path: Path
) -> None:
    linear = nn.Linear(6, 4)
    grid = torch.randn(12, 8)
    state = {"weight": grid[::2, ::2].t(), "bias": grid[1:9:2, 3]}
    path = tmp_path / "x.bin"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    folder = tmp_path / "offload"
    model = planner.load_checkpoint_and_dispatch(
        linear, path, device_map=device_map, dtype=dtype, offload_folder=folder
    )
    path.unlink()
    found = dict(planner.state_dict(model))
    assert all(found[name].equal(value.to(dtype or torch.float32)) for name, value in state.items())


def test_strides_do_not_make_much_of_a_small_pickle(tmp_path: Path) -> None:
    values = torch.zeros(4096)
    state = {f"x{i}": values.as_strided((64, 64), (1, 32)) for i in range(50)}
    torch.save(state, tmp_path / "x.bin")
    with pytest.raises(planner.CheckpointError, match="do not lie in order have 819200 bytes together"):
        planner.load_checkpoint_in_model(Small(), tmp_path / "x.bin")


@pytest.mark.parametrize("end", ["bin", "safetensors"])
@pytest.mark.parametrize("escape", ["up", "absolute", "link", "pipe"])
def test_an_index_names_files_inside_its_folder_only(escape: str, end: str, tmp_path: Path) -> None:
    outside, folder = tmp_path / f"outside.{end}", tmp_path / "checkpoint"
    folder.mkdir()
    state = trained().state_dict()
    torch.save(state, outside) if end == "bin" else save_file(state, outside)
    inside = folder / f"inside.{end}"
    name = {"up": f"../outside.{end}", "absolute": str(outside)}.get(escape, inside.name)
    if escape == "link":
        inside.symlink_to(outside)
    if escape == "pipe":
        os.mkfifo(inside)
    index = "model.safetensors.index.json" if end == "safetensors" else "pytorch_model.bin.index.json"
    (folder / index).write_text(json.dumps({"weight_map": dict.fromkeys(state, name)}))
    model = on_meta()
    for source in (folder, folder / index):
        with pytest.raises(planner.CheckpointError):
            planner.load_checkpoint_in_model(model, source)
    assert model.linear1.weight.is_meta


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "neither safetensors files"),
        ({"a.index.json": "{}", "b.index.json": "{}"}, "several indices"),
        ({"a.index.json": "{}"}, "must map names"),
        ({"a.index.json": '{"w": 3}'}, "must map names"),
        ({"a.index.json": "[]"}, "must hold a JSON object"),
        ({"a.index.json": '{"w": "x.bin"}'}, "files are missing: x.bin"),
        ({"pytorch_model.bin": "neither"}, "too few"),
        ({"pytorch_model.bin": ""}, "too few"),
    ],
)
def test_a_folder_that_holds_no_checkpoint_is_refused(
    files: Mapping[str, str], said: str, tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(planner.CheckpointError, match=said):
        planner.load_checkpoint_in_model(Small(), tmp_path)


def test_what_makes_no_sense_is_refused_with_accelerates_kind_of_error(
    checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    source = checkpoint("one_pickle", trained())
    for bad in (
        {"device_map": "best"},
        {"device_map": {"": "disk"}},
        {"device_map": {"linear1": "cpu"}},
        {"device_map": {"": "cpu"}, "dtype": "int8"},
        {"device_map": {"": "cpu"}, "dtype": "float15"},
    ):
        with pytest.raises(ValueError):
            planner.load_checkpoint_and_dispatch(Small(), source, **bad)
    with pytest.raises(ValueError):
        planner.load_checkpoint_and_dispatch(Small(), tmp_path / "nowhere")
    with pytest.raises(ValueError, match="from_pretrained"):
        planner.load_checkpoint_in_model(Small(), source, {"": "cpu"}, offload_8bit_bnb=True)
    with pytest.raises(ValueError, match=r"linear1\.weight"):
        planner.load_checkpoint_in_model(Small(), source, {"batchnorm": "cpu", "linear2": "cpu"})


@pytest.mark.parametrize("kind", WRITERS)
def test_what_does_not_fit_is_told_at_once_and_changes_nothing(
    kind: str, checkpoint: Callable[..., Path], empty: Path
) -> None:
    state = trained().state_dict()
    state["linear1.weight"] = torch.zeros(4, 9)
    state["linear2.bias"] = torch.zeros(5, dtype=torch.int64)
    source = checkpoint(kind, state)
    for make in (on_meta, Small):
        model = make()
        before = dict(model.named_parameters())
        values = {name: value.clone() for name, value in before.items() if not value.is_meta}
        with pytest.raises(planner.CheckpointError) as caught:
            planner.load_checkpoint_and_dispatch(
                model, source, device_map=covered(HALF), offload_folder=empty
            )
        assert len(caught.value.findings) == 2
        assert not os.listdir(empty) and not hasattr(model, "hf_device_map")
        assert all(value is before[name] for name, value in model.named_parameters())
        assert all(torch.equal(before[name], value) for name, value in values.items())


def test_a_folder_that_cannot_be_written_to_stays_as_it_was(
    checkpoint: Callable[..., Path], empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = checkpoint("one_pickle", trained())
    (empty / "index.json").write_text("{}")
    model = Small()

    def full(_folder: object) -> Any:
        return type("Usage", (), {"free": 10})

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", full)
        with pytest.raises(planner.InvalidInputError, match="10 B free"):
            planner.load_checkpoint_and_dispatch(
                model, source, device_map=covered(HALF), offload_folder=empty
            )
    with monkeypatch.context() as patch:

        def broken(*_: object) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr(Path, "write_bytes", broken)
        with pytest.raises(planner.OffloadError, match="No space left"):
            planner.load_checkpoint_and_dispatch(
                model, source, device_map=covered(HALF), offload_folder=empty
            )
    with pytest.raises(planner.InvalidInputError, match="cannot be used"):
        planner.load_checkpoint_and_dispatch(
            model, source, device_map=covered(HALF), offload_folder=empty / "index.json" / "inside"
        )
    assert os.listdir(empty) == ["index.json"] and (empty / "index.json").read_text() == "{}"
    assert not hasattr(model, "hf_device_map")


def test_a_folder_is_as_it_was_where_the_model_cannot_be_written_to(
    checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, folder = checkpoint("one_pickle", trained()), tmp_path / "rest"
    first = trained()
    torch.save(first.state_dict(), tmp_path / "first.bin")
    earlier = planner.load_checkpoint_and_dispatch(
        on_meta(), tmp_path / "first.bin", device_map={"batchnorm": "cpu", "": "disk"}, offload_folder=folder
    )

    def seen(where: Path) -> dict[str, bytes]:
        return {each.name: each.read_bytes() for each in where.iterdir()}

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    before = seen(folder)
    with monkeypatch.context() as patch:
        patch.setattr("planner.loading.load.commit", interrupted)
        for where in (folder, tmp_path / "other"):
            with pytest.raises(KeyboardInterrupt):
                planner.load_checkpoint_and_dispatch(
                    on_meta(), source, device_map={"": "disk"}, offload_folder=where
                )
    assert seen(folder) == before and not (tmp_path / "other").exists()
    assert torch.equal(earlier(X), first(X))


def test_two_models_in_one_folder_keep_their_weights(tmp_path: Path, empty: Path) -> None:
    models = [trained(), trained()]
    loaded = []
    for number, model in enumerate(models):
        torch.save(model.state_dict(), tmp_path / f"{number}.bin")
        loaded.append(
            planner.load_checkpoint_and_dispatch(
                on_meta(), tmp_path / f"{number}.bin", device_map={"": "disk"}, offload_folder=empty
            )
        )
    for model, found in zip(models, loaded, strict=True):
        assert torch.equal(found(X), model(X))


def test_a_pickle_may_be_written_over_by_the_model_that_came_from_it(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    model = trained()
    torch.save(model.state_dict(), path)
    loaded = planner.load_checkpoint_and_dispatch(on_meta(), path)
    torch.save(loaded.state_dict(), path)
    assert torch.equal(loaded(X), model(X))
    assert torch.equal(planner.load_checkpoint_and_dispatch(on_meta(), path)(X), model(X))


def test_safetensors_may_be_saved_into_the_folder_that_was_loaded_from(tmp_path: Path) -> None:
    model = trained()
    one_file(model.state_dict(), tmp_path)
    loaded = planner.load_checkpoint_and_dispatch(on_meta(), tmp_path, device_map=covered(HALF))
    one_file(planner.get_state_dict_offloaded_model(loaded), tmp_path)
    assert torch.equal(loaded(X), model(X))
    assert torch.equal(planner.load_checkpoint_and_dispatch(on_meta(), tmp_path)(X), model(X))


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


@pytest.mark.parametrize("offload_buffers", [False, True])
def test_what_was_left_on_disk_is_found_there_again(
    offload_buffers: bool, checkpoint: Callable[..., Path], empty: Path
) -> None:
    model = trained()
    source = checkpoint("several_files", model)
    rest = {"offload_buffers": offload_buffers}

    dispatched = on_meta()
    planner.load_checkpoint_in_model(dispatched, source, covered(HALF), **rest)
    assert dispatched.batchnorm.weight.is_meta
    planner.dispatch_model(dispatched, covered(HALF), **rest)
    assert torch.equal(dispatched(X), model(X))
    assert torch.equal(planner.undispatch(dispatched)(X), model(X))

    skeleton = on_meta()
    planner.load_checkpoint_in_model(skeleton, source, {"": "disk"}, **rest)
    assert torch.equal(planner.disk_offload(skeleton, empty, **rest)(X), model(X))

    in_memory = Small().eval()
    planner.load_checkpoint_in_model(in_memory, source)
    assert torch.equal(planner.disk_offload(in_memory, empty, **rest)(X), model(X))
    assert not os.listdir(empty)


def _in_place(weight: nn.Parameter) -> None:
    with torch.no_grad():
        weight.mul_(2)


def _unseen(weight: nn.Parameter) -> None:
    weight.data.mul_(2)


def _exchanged(weight: nn.Parameter) -> None:
    weight.data = weight.data * 2


def test_what_was_left_on_disk_is_found_there_although_others_were_written_to(
    checkpoint: Callable[..., Path], empty: Path
) -> None:
    source = trained()
    model, device_map = on_meta(), {"": "cpu", "linear2": "disk"}
    planner.load_checkpoint_in_model(model, checkpoint("one_file", source), device_map)
    with torch.no_grad():
        for changed in (model, source):
            changed.linear1.weight.mul_(2)
    planner.dispatch_model(model, device_map, offload_dir=empty)
    assert model(X).equal(source(X))
    assert not list(empty.iterdir())


@pytest.mark.parametrize("change", [_in_place, _unseen, _exchanged])
def test_weights_that_are_others_by_now_are_written(
    change: Callable[[nn.Parameter], None], checkpoint: Callable[..., Path], empty: Path
) -> None:
    source = checkpoint("one_file", trained())
    model = Small().eval()
    planner.load_checkpoint_in_model(model, source)
    change(model.linear2.weight)
    expected = model(X)
    assert torch.equal(planner.disk_offload(model, empty)(X), expected)
    assert "linear2.weight.dat" in os.listdir(empty)


def test_a_model_in_memory_is_written_as_ever(empty: Path) -> None:
    model = trained()
    expected = model(X)
    assert torch.equal(planner.disk_offload(model, empty)(X), expected)
    assert "linear2.weight.dat" in os.listdir(empty)


def test_what_has_no_values_is_not_written(empty: Path) -> None:
    for offload in (
        lambda: planner.disk_offload(on_meta(), empty),
        lambda: planner.dispatch_model(on_meta(), {"": "disk"}, offload_dir=empty),
    ):
        with pytest.raises(planner.OffloadError, match=r"'linear1\.weight' is on the meta device"):
            offload()
    assert not os.listdir(empty)


def test_dispatch_names_the_ways_to_disk() -> None:
    with pytest.raises(planner.PlanMismatchError) as caught:
        planner.dispatch(Small(), {"": "disk"})
    for way in ("planner.load(", "planner.dispatch_model(", "planner.disk_offload("):
        assert way in str(caught.value)


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("kind", WRITERS)
def test_the_first_rank_alone_reads_where_that_is_asked(kind: str, checkpoint: Callable[..., Path]) -> None:
    model, source = trained(), checkpoint(kind, trained())
    planner.load_checkpoint_and_dispatch(model, source, strict=True, broadcast_from_rank0=True)
    expected = planner.load_checkpoint_and_dispatch(Small().eval(), source)
    assert torch.equal(model(X), expected(X))


TWO_RANKS = """
import sys, torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
import planner
rank, rendezvous, source, missing = int(sys.argv[1]), *sys.argv[2:]
dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
make = lambda: torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 2))
expected = planner.load_checkpoint_and_dispatch(make(), source)
for seen in (source, source if rank == 0 else missing):
    plain, spread = make(), fully_shard(make(), mesh=init_device_mesh("cpu", (2,)))
    for model in (plain, spread):
        planner.load_checkpoint_and_dispatch(model, seen, strict=True, broadcast_from_rank0=True)
    for one, whole, part in zip(plain.parameters(), expected.parameters(), spread.parameters(), strict=True):
        assert isinstance(part, DTensor)
        assert torch.equal(one, whole) and torch.equal(part.full_tensor(), whole)
planner.load_checkpoint_and_dispatch(spread, source, strict=True)
assert all(torch.equal(p.full_tensor(), w) for p, w in zip(spread.parameters(), expected.parameters()))
dist.destroy_process_group()
"""


@pytest.mark.sweep  # two processes that load torch
def test_two_ranks_get_what_the_first_one_reads(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    save_file(model.state_dict(), tmp_path / "m.safetensors")
    ranks = [
        subprocess.Popen(
            [
                sys.executable,
                "-c",
                TWO_RANKS,
                str(rank),
                tmp_path / "group",
                tmp_path / "m.safetensors",
                "nowhere",
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in ranks:
        _, said = process.communicate(timeout=120)
        assert process.returncode == 0, said[-3000:]


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
