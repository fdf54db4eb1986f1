"""Names of the hub: found where the hub's own library finds them, without that library."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import planner
from checkpoint_files import write_tensors
from planner.checkpoint.hub_cache import cache_folder, find_snapshot, hub_name

COMMIT, OTHER = "a" * 40, "b" * 40
VARIABLES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME")

Downloaded = Callable[..., Path]


@pytest.fixture
def downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Downloaded:
    """Puts a revision of a repository into a cache, as the hub's library lays it out: links into a store of blobs."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)

    def download(repo: str, commit: str = COMMIT, **refs: str) -> Path:
        store = tmp_path / "hub" / ("models--" + repo.replace("/", "--"))
        (store / "blobs").mkdir(parents=True, exist_ok=True)
        snapshot = store / "snapshots" / commit
        snapshot.mkdir(parents=True)
        write_floats(store / "blobs" / commit, 2 * len(refs) + 4)
        (snapshot / "model.safetensors").symlink_to(Path("..", "..", "blobs", commit))
        for ref, target in refs.items():
            (store / "refs").mkdir(exist_ok=True)
            (store / "refs" / ref).write_text(target)
        return store

    return download


def write_floats(path: Path, count: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(path, {"fc.weight": ("F32", [count], 4 * count)})


def total_bytes(source: str | Path) -> int:
    return planner.plan(source, max_memory={0: "1GiB"}).source.total_bytes


def test_a_name_is_planned_from_the_cache(downloaded: Downloaded) -> None:
    store = downloaded("org/name", main=COMMIT)
    assert total_bytes("org/name") == total_bytes(store) == total_bytes(store / "snapshots" / COMMIT) == 24


def test_a_folder_of_that_name_wins(downloaded: Downloaded, tmp_path: Path) -> None:
    downloaded("org/name", main=COMMIT)
    write_floats(tmp_path / "org" / "name" / "model.safetensors", 50)
    assert total_bytes("org/name") == 200


def test_revisions_are_branches_tags_and_commits(downloaded: Downloaded) -> None:
    downloaded("org/name", main=COMMIT)
    downloaded("org/name", OTHER, tag=OTHER, more=OTHER)
    assert total_bytes("org/name") == 24
    assert total_bytes("org/name@tag") == total_bytes(f"org/name@{OTHER}") == 32
    with pytest.raises(
        planner.CheckpointError, match=f"revision 'v2'; it has {COMMIT}, {OTHER}, main, more, tag"
    ):
        total_bytes("org/name@v2")


@pytest.mark.parametrize("revision", ["../../../secret", "..", "refs/../..", "/etc", "a\\b"])
def test_a_revision_leads_nowhere_else(downloaded: Downloaded, revision: str) -> None:
    downloaded("org/name", main=COMMIT)
    with pytest.raises(planner.CheckpointError, match=r"holds no snapshot|no such file"):
        total_bytes(f"org/name@{revision}")


def test_a_reference_that_leads_out_of_the_cache_is_refused(downloaded: Downloaded, tmp_path: Path) -> None:
    store = downloaded("org/name", main="../../../elsewhere")
    downloaded("org/name", OTHER)
    write_floats(tmp_path / "elsewhere" / "model.safetensors", 50)
    with pytest.raises(planner.CheckpointError, match="holds no snapshot"):
        total_bytes(store)


@pytest.mark.parametrize("said", [b"", OTHER.encode(), "\N{SNOWMAN}".encode() * 60, b"\xff" * 200])
def test_a_reference_to_what_is_not_there_is_not_taken_for_the_only_snapshot(
    downloaded: Downloaded, said: bytes
) -> None:
    store = downloaded("org/name", main=COMMIT)
    (store / "refs" / "main").write_bytes(said)
    with pytest.raises(planner.CheckpointError, match=f"revision 'main'; it has {COMMIT}$"):
        total_bytes("org/name")


def test_a_revision_too_long_for_a_file_is_a_typed_error(downloaded: Downloaded) -> None:
    downloaded("org/name", main=COMMIT)
    with pytest.raises(planner.CheckpointError, match="holds no snapshot"):
        total_bytes("org/name@" + "\N{SNOWMAN}" * 150)


def test_a_cache_that_cannot_be_read_is_a_typed_error(
    downloaded: Downloaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    downloaded("org/name", tag=COMMIT)
    monkeypatch.setattr("planner.checkpoint.hub_cache.os.scandir", refuse)
    with pytest.raises(planner.CheckpointError, match="snapshots: permission denied"):
        total_bytes("org/name")


def test_a_link_to_nothing_is_no_name(downloaded: Downloaded, tmp_path: Path) -> None:
    downloaded("org/name", main=COMMIT)
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name").symlink_to("nowhere")
    with pytest.raises(planner.CheckpointError, match="a link to nothing"):
        total_bytes("org/name")


def test_what_was_downloaded_by_its_commit_alone_is_found(downloaded: Downloaded) -> None:
    downloaded("gpt2")
    assert total_bytes("gpt2") == 16


def test_what_is_not_there_says_where_it_was_looked_for(downloaded: Downloaded, tmp_path: Path) -> None:
    with pytest.raises(planner.CheckpointError) as caught:
        total_bytes("org/absent@v1")
    assert str(tmp_path / "hub") in str(caught.value)
    assert "`hf download org/absent --revision v1`" in str(caught.value)


@pytest.mark.parametrize(
    "path", ["./org", "a/b/c", "/abs", "a.json", "x.safetensors", "", ".", "..", "a--b", "a b/c"]
)
def test_what_can_only_be_a_path_is_no_name(path: str) -> None:
    assert hub_name(path) is None


@pytest.mark.parametrize(
    "given", [{}, *({name: "there"} for name in VARIABLES), dict.fromkeys(VARIABLES, "there")]
)
def test_the_cache_is_where_the_hubs_library_has_it(given: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    environ = {name: str(tmp_path / f"{value}-{name}") for name, value in given.items()} | {
        "HOME": str(tmp_path)
    }
    code = "from huggingface_hub import constants; print(constants.HF_HUB_CACHE)"
    said = subprocess.run(
        [sys.executable, "-c", code], env=environ, check=True, capture_output=True, text=True
    )
    ours = subprocess.run(
        [
            sys.executable,
            "-c",
            "from planner.checkpoint.hub_cache import cache_folder; print(cache_folder())",
        ],
        env=environ | {"PYTHONPATH": str(Path(planner.__file__).parent.parent)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert ours.stdout == said.stdout


def test_snapshots_are_those_of_the_hubs_library(downloaded: Downloaded, tmp_path: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    downloaded("org/name", main=COMMIT)
    downloaded("org/name", OTHER, tag=OTHER)
    for revision in ("main", "tag", COMMIT, OTHER):
        theirs = hub.try_to_load_from_cache(
            "org/name", "model.safetensors", cache_dir=tmp_path / "hub", revision=revision
        )
        name = hub_name(f"org/name@{revision}")
        assert name is not None
        assert find_snapshot(name) == str(Path(theirs).parent)


def test_the_hubs_library_is_not_imported(downloaded: Downloaded) -> None:
    downloaded("org/name", main=COMMIT)
    code = (
        "import sys, planner; planner.plan('org/name', max_memory={0: '1GiB'});"
        "assert not {'huggingface_hub', 'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=None)


def test_the_cache_is_asked_for_by_a_name_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A path that is there, and one that can be no name, look at no variable."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "never"))
    assert cache_folder() == str(tmp_path / "never")
    write_floats(tmp_path / "model" / "model.safetensors", 4)
    monkeypatch.setattr("planner.checkpoint.place.find_snapshot", lambda name: pytest.fail("looked"))
    assert total_bytes(tmp_path / "model") == 16
    with pytest.raises(planner.CheckpointError, match=r"no such file or folder$"):
        total_bytes("./model")
