"""What files hold in another form is written once, and is then used as what lies in files as it is."""

from __future__ import annotations

import fcntl
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

import planner
from layered_net import Before, Net, empty, state, written
from planner import InvalidInputError, OffloadError
from planner.loading import converted, converted_folder
from planner.loading.fingerprint import fingerprint
from planner.loading.weights import FileWeights
from rig.interrupting import ARE_POINTS_KNOWN, interrupted_in
from stored_models import inputs_of, reference, stored
from tensor_files import write_file

FUSED = ("mixtral", "qwen3_moe")
LOADING = (Path(planner.__file__).parent / "loading",)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return written(tmp_path / "model")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def on_disk(folder: Path, store: Path, **settings: Any) -> Any:
    return planner.load(folder, plan={"": "disk"}, convert="store", offload_folder=store, **settings)


def cast(folder: Path, store: Path, model: Net | None = None, **settings: Any) -> Any:
    """Of float32 in files, as bfloat16."""
    return on_disk(folder, store, model=model or empty(), dtype=torch.bfloat16, **settings)


def files_in(store: Path) -> list[Path]:
    return sorted(path for path in store.rglob("*") if path.is_file())


def everything(store: Path) -> list[Path]:
    return sorted(store.rglob("*")) if store.exists() else []


def weights_file(store: Path) -> Path:
    (found,) = store.rglob("*.safetensors")
    return found


def is_cast(model: nn.Module) -> bool:
    found = planner.state_dict(model)
    return all(
        torch.equal(found[name], value.bfloat16() if value.is_floating_point() else value)
        for name, value in state().items()
    )


# ---- What is stored


@pytest.mark.parametrize("name", FUSED)
@pytest.mark.parametrize("dtype", ["auto", torch.bfloat16])
def test_fused_experts_are_right_and_lie_in_a_file(
    name: str, dtype: Any, tmp_path: Path, store: Path
) -> None:
    folder = stored(name, tmp_path / "model")
    model = on_disk(folder, store, dtype=dtype)
    expected = reference(folder)
    expected = expected if dtype == "auto" else expected.to(dtype)
    found = planner.state_dict(model)
    assert all(torch.equal(found[name], value) for name, value in expected.state_dict().items())
    report = planner.load_report(model)
    assert report.written_bytes == sum(path.stat().st_size for path in files_in(store)) > 0
    assert {row.way for row in report.tensors if row.device == "disk"} == {"view"}
    if dtype == "auto":
        with torch.no_grad():
            outputs = [each(**inputs_of(name)).logits for each in (model, model, expected)]
        assert torch.equal(outputs[0], outputs[2]) and torch.equal(outputs[1], outputs[2])


def test_only_what_is_not_in_the_files_as_it_is_used_is_written(tmp_path: Path, store: Path) -> None:
    folder = stored("mixtral", tmp_path / "model")
    on_disk(folder, store)
    with safe_open(weights_file(store), "pt") as file:
        assert set(file.keys()) == {
            f"model.layers.{layer}.mlp.experts.{what}"
            for layer in range(4)
            for what in ("gate_up_proj", "down_proj")
        }


def test_nothing_is_written_where_files_have_everything(tmp_path: Path, store: Path) -> None:
    model = on_disk(stored("llama", tmp_path / "model"), store)
    assert planner.load_report(model).written_bytes == 0
    assert not store.exists()


def test_what_stays_in_memory_is_not_written(checkpoint: Path, store: Path) -> None:
    model = planner.load(
        checkpoint, empty(), {"": "cpu"}, dtype=torch.bfloat16, convert="store", offload_folder=store
    )
    assert planner.load_report(model).written_bytes == 0 and not store.exists() and is_cast(model)


def test_tensors_that_are_not_aligned_are_written_aligned(tmp_path: Path, store: Path) -> None:
    (tmp_path / "model").mkdir()
    write_file(tmp_path / "model" / "model.safetensors", state(), gap=1)
    model = on_disk(tmp_path / "model", store, model=empty())
    assert all(torch.equal(planner.state_dict(model)[name], value) for name, value in state().items())
    rows = file_weights(model).wanted.values()
    assert all(row.is_view and row.recipe.begin % row.dtype.itemsize == 0 for row in rows)  # type: ignore[union-attr]


def file_weights(model: Any) -> FileWeights:
    hook = next(
        module._hf_hook
        for module in model.modules()
        if getattr(module, "_hf_hook", None) and module._hf_hook.offload
    )
    weights: FileWeights = hook.weights_map.dataset
    return weights


def test_tensors_of_several_sizes_of_element_are_aligned(tmp_path: Path, store: Path) -> None:
    """An odd number of elements of two bytes before those of four."""
    values = {"a": torch.arange(3).half(), "b": torch.arange(5).float(), "c": torch.arange(7).bfloat16()}
    net = nn.Module()
    for name, value in values.items():
        net.register_parameter(name, nn.Parameter(torch.empty_like(value, device="meta")))
    write_file(tmp_path / "model.safetensors", values, gap=1)
    model = on_disk(tmp_path, store, model=net)
    assert all(torch.equal(planner.state_dict(model)[name], value) for name, value in values.items())
    rows = file_weights(model).wanted.values()
    assert all(row.is_view and row.recipe.begin % row.dtype.itemsize == 0 for row in rows)  # type: ignore[union-attr]


# ---- Once


def test_a_second_load_reads_what_the_first_has_written(checkpoint: Path, store: Path) -> None:
    cast(checkpoint, store)
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files_in(store)}
    model = cast(checkpoint, store)
    assert planner.load_report(model).written_bytes == 0 and is_cast(model)
    assert before == {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files_in(store)}


def test_two_dtypes_and_two_models_lie_beside_each_other(
    checkpoint: Path, tmp_path: Path, store: Path
) -> None:
    models = [cast(checkpoint, store), on_disk(checkpoint, store, model=empty(), dtype=torch.float16)]
    models.append(cast(written(tmp_path / "other", state(seed=2)), store))
    assert len(list(store.iterdir())) == 3
    assert is_cast(models[0])
    assert all(
        torch.equal(planner.state_dict(models[1])[name], value.half() if value.is_floating_point() else value)
        for name, value in state().items()
    )


def test_a_checkpoint_that_was_written_anew_is_converted_anew(checkpoint: Path, store: Path) -> None:
    cast(checkpoint, store)
    shutil.rmtree(checkpoint)
    written(checkpoint, state(seed=2))
    model = cast(checkpoint, store)
    assert planner.load_report(model).written_bytes > 0
    assert torch.equal(
        planner.state_dict(model)["layers.0.up.weight"], state(seed=2)["layers.0.up.weight"].bfloat16()
    )


def test_the_fingerprint_is_the_same_in_every_process(tmp_path: Path, store: Path) -> None:
    """Also of what transformers' converters make, whose operations are new objects in each."""
    folder = stored("mixtral", tmp_path / "model")
    on_disk(folder, store)
    script = (
        "import planner, sys\n"
        "model = planner.load(sys.argv[1], plan={'': 'disk'}, convert='store', offload_folder=sys.argv[2])\n"
        "print(planner.load_report(model).written_bytes)"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, folder, store], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "0"


def test_the_fingerprint_knows_versions(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = file_weights(planner.load(checkpoint, empty(), {"": "disk"}))
    wanted = list(weights.wanted.values())
    first = fingerprint(weights.files, wanted)
    assert first == fingerprint(weights.files, wanted) != fingerprint(weights.files, wanted[1:])
    monkeypatch.setattr("planner.loading.fingerprint.version", lambda _: "another")
    assert first != fingerprint(weights.files, wanted)


# ---- Repair


def cut(store: Path) -> None:
    os.truncate(weights_file(store), 100)


def overwritten(store: Path) -> None:
    weights_file(store).write_bytes(b"x" * weights_file(store).stat().st_size)


def without_manifest(store: Path) -> None:
    next(store.rglob("manifest.json")).unlink()


def with_a_manifest_of_another(store: Path) -> None:
    manifest = next(store.rglob("manifest.json"))
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "size_bytes": 1}))


def with_half_a_manifest(store: Path) -> None:
    os.truncate(next(store.rglob("manifest.json")), 5)


def only_half_written(store: Path) -> None:
    """As a killed process leaves it."""
    weights = weights_file(store)
    weights.rename(weights.with_name(".123.abc.tmp"))
    without_manifest(store)


@pytest.mark.parametrize(
    "fault",
    [cut, overwritten, without_manifest, with_a_manifest_of_another, with_half_a_manifest, only_half_written],
)
def test_what_is_not_finished_is_written_anew(
    fault: Callable[[Path], None], checkpoint: Path, store: Path
) -> None:
    cast(checkpoint, store)
    before = everything(store)
    fault(store)
    model = cast(checkpoint, store)
    assert planner.load_report(model).written_bytes > 0 and is_cast(model)
    assert everything(store) == before
    assert planner.load_report(cast(checkpoint, store)).written_bytes == 0


def test_who_has_the_file_open_keeps_it_when_it_is_written_anew(checkpoint: Path, store: Path) -> None:
    model = cast(checkpoint, store)
    without_manifest(store)
    cast(checkpoint, store)
    assert is_cast(model)


# ---- What goes wrong


def test_no_room_is_said_before_anything_is_written(
    checkpoint: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(checkpoint)._replace(free=12)
    monkeypatch.setattr(converted_folder.shutil, "disk_usage", lambda _: usage)
    model = empty()
    before = Before(model)
    with pytest.raises(OffloadError, match=rf"\([0-9]+ bytes\), and {store} has 12 B \(12 bytes\) free"):
        cast(checkpoint, store, model)
    assert not store.exists() and before.difference() == ""


@pytest.mark.parametrize("below", ["", "further/below"])
def test_a_file_in_the_place_of_the_folder(below: str, checkpoint: Path, store: Path) -> None:
    store.write_text("precious")
    model = empty()
    before = Before(model)
    with pytest.raises(InvalidInputError, match=str(store)):
        cast(checkpoint, store / below, model)
    assert store.read_text() == "precious" and before.difference() == ""


def test_a_folder_that_the_system_does_not_give(checkpoint: Path) -> None:
    """Nothing can be made there, not even by root."""
    with pytest.raises(OffloadError, match="cannot write to /proc/planner"):
        cast(checkpoint, Path("/proc/planner"))


def test_an_error_of_the_disk_leaves_nothing(
    checkpoint: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(converted_folder.os, "fsync", fails)
        with pytest.raises(OffloadError, match=f"{store}: Input/output error"):
            cast(checkpoint, store)
    assert not store.exists()
    assert is_cast(cast(checkpoint, store))


def test_numbers_that_a_dtype_cannot_hold_leave_nothing(tmp_path: Path, store: Path) -> None:
    values = state()
    values["layers.1.up.weight"][0, 0] = 1e30
    folder = written(tmp_path / "large", values)
    store.mkdir()
    with pytest.raises(OffloadError, match=r"layers\.1\.up\.weight"):
        on_disk(folder, store, model=empty(), dtype=torch.float16)
    assert everything(store) == []


def test_a_checkpoint_that_changes_while_it_is_converted(checkpoint: Path, store: Path) -> None:
    path = next(checkpoint.glob("*.safetensors"))

    def change(done_bytes: int, _: int) -> None:
        if done_bytes:
            os.utime(path, ns=(1, 1))

    with pytest.raises(OffloadError, match="was written to"):
        cast(checkpoint, store, progress=change)
    assert not store.exists()


def test_a_load_that_fails_later_leaves_nothing(
    checkpoint: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("planner.loading.load.commit", fails)
    with pytest.raises(MemoryError):
        cast(checkpoint, store)
    assert not store.exists()


def test_a_load_that_fails_keeps_what_was_there(
    checkpoint: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cast(checkpoint, store)
    before = everything(store)

    def fails(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("planner.loading.load.commit", fails)
    with pytest.raises(MemoryError):
        cast(checkpoint, store)
    assert everything(store) == before


@pytest.mark.skipif(not ARE_POINTS_KNOWN, reason="where signals are taken is known for CPython 3.11")
@pytest.mark.parametrize("first", range(1, 8))
def test_an_interrupt_while_it_is_written_leaves_nothing_or_a_finished_file(
    first: int, checkpoint: Path, store: Path
) -> None:
    parts = tuple(LOADING[0] / name for name in ("converted.py", "converted_folder.py", "fingerprint.py"))
    stop = first
    while interrupted_in(parts, partial(cast, checkpoint, store), stop):
        assert not store.exists(), (stop, everything(store))
        stop += 70
    assert is_cast(cast(checkpoint, store))


def test_a_lock_ends_with_its_process(checkpoint: Path, store: Path) -> None:
    """Killed while it writes, with half a file there."""
    script = (
        "import planner, sys, os, signal, torch\n"
        "sys.path.insert(0, sys.argv[3])\n"
        "from layered_net import empty\n"
        "kill = lambda done, _: os.kill(os.getpid(), signal.SIGKILL) if os.path.exists(sys.argv[2]) else None\n"
        "planner.load(sys.argv[1], empty(), {'': 'disk'}, dtype=torch.bfloat16, convert='store',\n"
        "             offload_folder=sys.argv[2], progress=kill)"
    )
    tests = str(Path(__file__).parents[1])
    found = subprocess.run([sys.executable, "-c", script, checkpoint, store, tests], check=False)
    assert found.returncode == -signal.SIGKILL and [path.suffix for path in files_in(store)] == [".tmp"]
    assert is_cast(cast(checkpoint, store))
    assert sorted(path.name for path in files_in(store)) == ["manifest.json", "weights.safetensors"]


def test_another_writer_is_waited_for(checkpoint: Path, store: Path) -> None:
    cast(checkpoint, store)
    (folder,) = store.iterdir()
    manifest = folder / "manifest.json"
    content = manifest.read_text()
    manifest.unlink()
    number = os.open(folder, os.O_RDONLY)
    fcntl.flock(number, fcntl.LOCK_EX)
    found: list[Any] = []
    waiting = threading.Thread(target=lambda: found.append(cast(checkpoint, store)), daemon=True)
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive()
    manifest.write_text(content)
    os.close(number)
    waiting.join(30)
    assert planner.load_report(found[0]).written_bytes == 0 and is_cast(found[0])


def test_a_folder_that_a_failed_writer_has_deleted_is_made_again(checkpoint: Path, store: Path) -> None:
    cast(checkpoint, store)
    (folder,) = store.iterdir()
    (folder / "manifest.json").unlink()
    number = os.open(folder, os.O_RDONLY)
    fcntl.flock(number, fcntl.LOCK_EX)
    found: list[Any] = []
    waiting = threading.Thread(target=lambda: found.append(cast(checkpoint, store)), daemon=True)
    waiting.start()
    waiting.join(0.3)
    shutil.rmtree(store)
    os.close(number)
    waiting.join(30)
    assert planner.load_report(found[0]).written_bytes > 0 and is_cast(found[0])


def test_without_locks_it_is_written_all_the_same(
    checkpoint: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As network file systems have none for folders."""

    def refuses(*_: Any) -> None:
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(converted_folder.fcntl, "flock", refuses)
    assert is_cast(cast(checkpoint, store)) and is_cast(cast(checkpoint, store))


# ---- What it takes


def test_one_tensor_is_in_memory_at_a_time(
    checkpoint: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[Any] = []
    most = 0
    make = converted.made

    def counted(*arguments: Any) -> torch.Tensor:
        nonlocal most
        gc.collect()
        alive[:] = [each for each in alive if each() is not None]
        most = max(most, len(alive) + 1)
        tensor = make(*arguments)
        alive.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(converted, "made", counted)
    assert is_cast(cast(checkpoint, store))
    assert most == 1


def test_progress_goes_on_where_the_load_was(checkpoint: Path, store: Path) -> None:
    told: list[tuple[int, int]] = []
    cast(checkpoint, store, progress=lambda done, all_bytes: told.append((done, all_bytes)))
    done = [row[0] for row in told]
    assert done == sorted(done) and len({row[1] for row in told}) == 1 and done[-1] == told[-1][1]
