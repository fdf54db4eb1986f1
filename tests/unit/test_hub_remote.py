"""Models that are only on the hub: the beginnings of their files, from a server on the loopback that answers like it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import planner
from checkpoint_files import write_index, write_raw, write_tensors
from hub_server import COMMIT, Hub, serving

hub_library = pytest.importorskip("huggingface_hub")

CONFIG = {"architectures": ["Unknown"], "model_type": "unknown"}
Serve = Callable[..., Hub]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Starts the server with a repository of two files of a gigabyte each, and sends the library there."""
    folder = tmp_path / "repository"
    folder.mkdir()
    for number in (1, 2):
        tensors = {f"layers.{number}.{name}.weight": ("BF16", [2**14, 2**14], 2**29) for name in "ab"}
        write_tensors(folder / f"model-0000{number}-of-00002.safetensors", tensors)
    write_index(
        folder,
        {f"layers.{n}.{name}.weight": f"model-0000{n}-of-00002.safetensors" for n in (1, 2) for name in "ab"},
    )
    (folder / "config.json").write_text(json.dumps(CONFIG))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with contextlib.ExitStack() as stack:

        def start(**told: object) -> Hub:
            files = {each.name: each for each in folder.iterdir()}
            hub = stack.enter_context(serving(Hub(**{"files": files, **told})))  # type: ignore[arg-type]
            monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
            template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
            monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
            return hub

        yield start


def total_bytes(name: str = "org/name") -> int:
    return planner.plan(name, remote=True, max_memory={0: "8GiB"}).source.total_bytes


@pytest.mark.parametrize("redirects", [False, True])
def test_the_headers_alone_are_read(serve: Serve, redirects: bool) -> None:
    hub = serve(redirects=redirects)
    assert total_bytes() == 2**31
    assert hub.sent_bytes < 500_000
    assert sum(path.endswith(f"{COMMIT}/config.json") for path in hub.requests) == 1


def test_the_plan_is_that_of_the_folder(serve: Serve, tmp_path: Path) -> None:
    serve()
    budgets = {0: "1200MiB", "cpu": "8GiB"}
    remote = planner.plan("org/name", remote=True, max_memory=budgets)
    local = planner.plan(tmp_path / "repository", max_memory=budgets)
    assert remote.device_map == local.device_map
    assert remote.source == replace(local.source, name="org/name")


def test_a_header_longer_than_the_first_bytes_is_read_to_its_end(serve: Serve, tmp_path: Path) -> None:
    tensors = {f"layers.{number}.{'long' * 20}.weight": ("U8", [3], 3) for number in range(5000)}
    file = write_tensors(tmp_path / "model.safetensors", tensors)
    assert file.stat().st_size > 500_000
    hub = serve(files={"model.safetensors": file})
    assert total_bytes() == 15_000
    assert hub.requests.count(f"/org/name/resolve/{COMMIT}/model.safetensors") == 2


def test_what_is_in_the_cache_is_not_asked_for(serve: Serve, tmp_path: Path) -> None:
    hub = serve()
    snapshot = tmp_path / "cache" / "models--org--name" / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    write_tensors(snapshot / "model.safetensors", {"fc.weight": ("U8", [3], 3)})
    assert total_bytes() == 3
    assert hub.requests == []


@pytest.mark.parametrize("there", ["another revision", "the configuration", "one file of two"])
def test_what_is_in_the_cache_in_part_is_asked_for(serve: Serve, tmp_path: Path, there: str) -> None:
    hub = serve()
    store = tmp_path / "cache" / "models--org--name"
    snapshot = store / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    if there == "one file of two":
        write_tensors(snapshot / "model-00001-of-00002.safetensors", {"fc.weight": ("U8", [3], 3)})
    else:
        (snapshot / "config.json").write_text(json.dumps(CONFIG))
    assert total_bytes("org/name@v1" if there == "another revision" else "org/name") == 2**31
    assert hub.requests


FAULTS = {
    "gated": "needs its owner's permission",
    "absent": "not found",
    "revision": "has no such revision",
    "other range": "another range",
    "short": "the server sent",
    "no length": "does not say how long it is",
    "not json": "no answer that can be used",
    "503": "no answer that can be used",
    "no size": "another range",
    "another size": "a moment later",
    "not a name": "no answer that can be used",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_of_a_server_is_a_typed_error(serve: Serve, tmp_path: Path, fault: str) -> None:
    tensors = {f"layers.{number}.{'long' * 20}.weight": ("U8", [3], 3) for number in range(2000)}
    write_tensors(tmp_path / "repository" / "model-00001-of-00002.safetensors", tensors)
    serve(fault=fault)
    with pytest.raises(planner.CheckpointError, match=FAULTS[fault]) as caught:
        total_bytes()
    assert caught.value.file.startswith("org/name")
    assert "planner-hub-" not in str(caught.value)


def test_a_server_without_ranges_is_not_read_to_the_end(serve: Serve) -> None:
    hub = serve(fault="no ranges")
    assert total_bytes() == 2**31
    assert hub.sent_bytes < 2**26  # what lay in the sockets' buffers when reading stopped


def test_a_token_is_shown_and_wanted(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(token="hf_secret")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(planner.CheckpointError, match="not found; if it is private") as caught:
        total_bytes()
    assert "hf_wrong" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert total_bytes() == 2**31


def test_what_opens_a_file_is_not_shown(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """A redirect's address is signed, and a mirror's may have a password in it."""
    hub = serve(fault="503 behind", redirects=True)
    address = hub.url.replace("://", "://user:password@")
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    with pytest.raises(
        planner.CheckpointError, match=r"503 .* for url 'http://127.0.0.1:\d+/blob/"
    ) as caught:
        total_bytes()
    hub.fault = "503"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    with pytest.raises(planner.CheckpointError, match=r"503 .*http://127.0.0.1") as other:
        total_bytes()
    assert not any(word in str(each.value) for each in (caught, other) for word in ("secret", "password"))


def test_a_name_that_is_listed_twice_is_one_file(serve: Serve) -> None:
    serve(fault="listed twice")
    assert total_bytes() == 2**31


def test_no_temporary_folder_is_a_typed_error(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    with pytest.raises(planner.CheckpointError, match="in a temporary folder: No such file"):
        total_bytes()


def test_offline_mode_is_kept(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = serve()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(planner.CheckpointError, match="HF_HUB_OFFLINE is set"):
        total_bytes()
    assert hub.requests == []


@pytest.mark.parametrize("bad", ["too short", "too long", "malformed"])
def test_what_is_no_header_names_the_repository(serve: Serve, tmp_path: Path, bad: str) -> None:
    path = tmp_path / "model.safetensors"
    if bad == "too short":
        path.write_bytes(b"1234")
    else:
        write_raw(path, b"{", 0, said=2**40 if bad == "too long" else 1)
    serve(files={"model.safetensors": path})
    with pytest.raises(planner.CheckpointError) as caught:
        total_bytes()
    assert caught.value.file == "org/name/model.safetensors"
    assert "planner-hub-" not in str(caught.value)


def test_pickled_weights_are_refused_as_in_a_folder(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"PK")
    serve(files={"pytorch_model.bin": tmp_path / "pytorch_model.bin"})
    with pytest.raises(planner.CheckpointError, match="holds only pickled weights"):
        total_bytes()


def test_an_adapter_on_the_hub_is_planned_with_its_base_there(serve: Serve, tmp_path: Path) -> None:
    lora = {f"base_model.model.layers.1.a.lora_{part}.weight": ("BF16", [2, 2**14], 2**16) for part in "AB"}
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    write_tensors(adapter / "adapter_model.safetensors", lora)
    (adapter / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "org/name"})
    )
    serve()
    base_bytes = total_bytes()
    assert (
        planner.plan(adapter, remote=True, max_memory={0: "8GiB"}).source.total_bytes
        == base_bytes + 2 * 2**17
    )
    serve(files={each.name: each for each in adapter.iterdir()})
    with pytest.raises(planner.CheckpointError, match="which is an adapter itself"):
        total_bytes()


def test_what_is_read_on_this_machine_only_says_so(serve: Serve, tmp_path: Path) -> None:
    for name, words in (("model_index.json", "is a pipeline"), ("m.gguf", "has GGUF files")):
        (tmp_path / name).write_text("{}")
        serve(files={name: tmp_path / name})
        with pytest.raises(planner.CheckpointError, match=f"{words}.*`hf download org/name`") as caught:
            total_bytes()
        assert caught.value.file == "org/name"


@pytest.mark.parametrize(
    "name", ["../evil.safetensors", "/etc/evil", "a/b.safetensors", "..", "a\\b", "n" * 300, "\ud800"]
)
def test_names_that_lead_elsewhere_are_left_alone(serve: Serve, tmp_path: Path, name: str) -> None:
    file = write_tensors(tmp_path / "model.safetensors", {"fc.weight": ("U8", [3], 3)})
    serve(files={"model.safetensors": file, name: file})
    assert total_bytes() == 3


def test_nothing_is_left_behind(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    serve()
    total_bytes()
    serve(fault="short")
    with pytest.raises(planner.CheckpointError):
        total_bytes()
    assert os.listdir(tmp_path / "temporary") == []


@pytest.mark.parametrize("ends", ["a fault", "an interrupt"])
def test_nobody_waits_for_a_file_that_does_not_come(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    if ends == "an interrupt":
        (tmp_path / "repository" / "model-00002-of-00002.safetensors").rename(
            tmp_path / "model-00001.safetensors"
        )
        hub = serve(fault="stalls", files={"model.safetensors": tmp_path / "model-00001.safetensors"})
        main = threading.main_thread().ident
        assert main is not None
        threading.Timer(1, lambda: signal.pthread_kill(main, signal.SIGINT)).start()
    else:
        hub = serve(fault="stalls")
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt if ends == "an interrupt" else planner.CheckpointError):
        total_bytes()
    assert time.monotonic() - start < 15
    assert os.listdir(tmp_path / "temporary") == []
    hub.stalled.set()
    for thread in threading.enumerate():
        if thread.name == "planner-hub":
            thread.join(10)
            assert not thread.is_alive()
    assert os.listdir(tmp_path / "temporary") == []


def test_without_the_library_one_line_says_what_to_type(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve()
    monkeypatch.setattr("planner.checkpoint.hub_remote.find_spec", lambda name: None)
    with pytest.raises(planner.InvalidInputError, match=r"pip install 'device-map-planner\[hub\]'"):
        total_bytes()


def test_the_endpoint_is_where_the_librarys_variable_says(serve: Serve) -> None:
    hub = serve()
    for command in ("sizes", "plan"):
        words = [sys.executable, "-m", "planner", command, "org/name", "--json"]
        budget = ["-d", "0=8GiB"] if command == "plan" else []
        environ = os.environ | {"HF_ENDPOINT": hub.url}
        done = subprocess.run(
            [*words, *budget, "--remote"], env=environ, capture_output=True, text=True, check=True
        )
        assert "2147483648" in done.stdout
        done = subprocess.run([*words, *budget], env=environ, capture_output=True, text=True, check=False)
        assert (done.returncode, "--remote" in done.stdout) == (2, True)
