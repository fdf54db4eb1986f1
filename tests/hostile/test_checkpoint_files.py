"""Bad files: every one ends in a `CheckpointError` that names file and reason, in bounded time and memory.

Each case is a process of its own with limits of its own, because some of these files crash, hang or fill the machine
elsewhere.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.checkpoint_files import header_of, write_index, write_raw, write_tensors

TIME_LIMIT_S = 30  # on a busy machine; alone, every case is over in about two
MEMORY_LIMIT_BYTES = 1 << 30
GOOD = {"model.embed.weight": ("F32", [4], 16), "lm_head.weight": ("F32", [4], 16)}

# Prints the error's class and fields as JSON, the plan's bytes if there is none.
PROGRAM = """
import json, os, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]),) * 2)
import planner
planner.plan, planner.CheckpointError  # loaded when they are asked for
try:
    plan = planner.plan(os.fsencode(sys.argv[1]).decode("utf-8", "surrogateescape"), max_memory={0: "1TiB"})
    print(json.dumps({"bytes": plan.source.total_bytes, "notes": plan.source.notes}))
except planner.CheckpointError as error:
    print(json.dumps({"file": error.file, "reason": error.reason, "text": str(error)}))
assert "torch" not in sys.modules
"""
# What the standard library loads when it is needed, before nothing of root's can be read any more.
SOMEBODY_ELSE = """
b"x".decode("utf-8-sig")
if os.geteuid() == 0:
    os.setegid(65534)
    os.seteuid(65534)
"""


def ask(path: Path, *, memory_bytes: int = MEMORY_LIMIT_BYTES) -> dict[str, object]:
    """What planning from a path answers."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, path, str(memory_bytes)],
        capture_output=True,
        text=True,
        timeout=TIME_LIMIT_S,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def fault(path: Path, named: str | Path, reason: str, **limits: int) -> None:
    """Planning from a path must be refused, for a file of this name and with these words."""
    answer = ask(path, **limits)
    assert str(answer.get("file", "no error")).endswith(str(named)), answer
    assert reason in str(answer["reason"]), answer
    assert str(answer["text"]) == f"{answer['file']}: {answer['reason']}"


def one(folder: Path, header: bytes, data_bytes: int, *, said: int | None = None) -> Path:
    """A folder with one file of this header."""
    write_raw(folder / "model.safetensors", header, data_bytes, said=said)
    return folder


def good_header() -> tuple[bytes, int]:
    return header_of(GOOD)


def entry(dtype: str = "U8", shape: object = (1,), offsets: object = (0, 1)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_the_program_that_asks_answers_for_a_good_file(tmp_path: Path) -> None:
    answer = ask(one(tmp_path, *good_header()))
    assert answer["bytes"] == 32


@pytest.mark.parametrize(
    ("header", "data_bytes", "reason"),
    [
        ({"a": entry(shape=[2])}, 1, "header contradicts itself"),
        ({"a": entry(), "b": entry()}, 1, "header contradicts itself"),
        ({"a": entry(offsets=[1, 0])}, 0, "header contradicts itself"),
        ({"a": entry(offsets=[1, 2])}, 2, "header contradicts itself"),
        ({"a": entry("F64", [1 << 40, 1 << 40], [0, 8])}, 8, "header contradicts itself"),
        ({"a": entry("F4", [1], [0, 1])}, 1, "header contradicts itself"),
        ({"a": entry(shape=[-1])}, 1, "header is malformed"),
        ({"a": entry(shape=[1 << 64])}, 1, "header is malformed"),
        ({"a": entry("F5")}, 1, "header is malformed"),
        ({"a": {"dtype": "U8"}}, 1, "header is malformed"),
        ({"a": entry(shape=[1] * 65)}, 1, "more than 64 dimensions"),
        ({"__metadata__": {"a": 1}}, 0, "header is malformed"),
        ({"a\0b": entry()}, 1, "zero byte"),
        ({"a..b": entry()}, 1, "cannot be the name of a tensor"),
        ({"": entry()}, 1, "cannot be the name of a tensor"),
        ({"a": entry(), "a.b": entry(offsets=[1, 2])}, 2, "cannot be the name of a tensor"),
        ([], 0, "header is malformed"),
        ({"a": entry()}, 0, "truncated"),
        ({"a": entry()}, 2, "bytes too many"),
    ],
)
def test_a_header_that_cannot_be_is_refused(
    tmp_path: Path, header: object, data_bytes: int, reason: str
) -> None:
    folder = one(tmp_path, json.dumps(header).encode(), data_bytes)
    answer = ask(folder)
    assert reason in str(answer.get("reason")), answer


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b'{"a":' + b"[" * 200_000, "header is malformed"),
        (b'{"__metadata__":{},"__metadata__":{}}', "there twice"),
        (b'{"\xff":1}', "header is malformed"),
        (b"", "header is malformed"),
        (b"{", "header is malformed"),
        (b"{} {}", "header is malformed"),
        (b'{"\\ud800":1}', "header is malformed"),
    ],
)
def test_a_header_that_is_no_json_is_refused(tmp_path: Path, header: bytes, reason: str) -> None:
    fault(one(tmp_path, header, 0), "model.safetensors", reason)


def test_a_key_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    row = json.dumps(entry())
    again = json.dumps(entry(offsets=[1, 2]))
    header = f'{{"a":{row},"a":{again}}}'.encode()
    fault(one(tmp_path, header, 2), "model.safetensors", "lists 'a' twice")


@pytest.mark.parametrize("said", [1 << 63, (1 << 64) - 1, 100_000_001])
def test_a_header_longer_than_the_format_allows_is_refused(tmp_path: Path, said: int) -> None:
    fault(one(tmp_path, b"{}", 0, said=said), "model.safetensors", f"its header has {said} bytes")


def test_a_header_that_ends_behind_the_file_is_refused(tmp_path: Path) -> None:
    fault(one(tmp_path, b"{}", 0, said=3), "model.safetensors", "truncated: a header of 3 bytes")


@pytest.mark.parametrize("size", [0, 7])
def test_a_file_too_short_to_say_anything_is_refused(tmp_path: Path, size: int) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\0" * size)
    fault(tmp_path, "model.safetensors", f"{size} bytes, too few")


def test_a_million_and_a_half_empty_tensors_are_refused_at_once(tmp_path: Path) -> None:
    """89 MB of header that describe nothing."""
    rows = ",".join(f'"{n}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for n in range(1_500_000))
    folder = one(tmp_path, f"{{{rows}}}".encode(), 0)
    fault(folder, "model.safetensors", "more than 262144 tensors", memory_bytes=MEMORY_LIMIT_BYTES)


@pytest.mark.parametrize(
    "header",
    [
        b'{"__metadata__":{' + b",".join(b'"%d":""' % n for n in range(6_000_000)) + b"}}",
        b'{"a":{"dtype":"U8","shape":[' + b"1," * 40_000_000 + b'1],"data_offsets":[0,1]}}',
        b'{"' + b"a" * 99_000_000 + b'":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}',
    ],
    ids=["metadata", "shape", "name"],
)
def test_a_large_header_takes_bounded_memory(tmp_path: Path, header: bytes) -> None:
    """As large as is read at all; an answer of any kind within the limits."""
    assert ask(one(tmp_path, header, 1))


def test_many_large_headers_are_refused_together(tmp_path: Path) -> None:
    padded = b"{}" + b" " * 50_000_000
    for number in range(1, 11):
        write_raw(tmp_path / f"m-{number:05d}-of-00010.safetensors", padded, 0)
    answer = ask(tmp_path)
    assert "headers of the checkpoint take more than" in str(answer.get("reason")), answer


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/passwd", "a/../../x", "a\\b", "./a", "a//b", "", "C:x", "a\0b", ".."]
)
def test_an_index_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write_tensors(tmp_path / "x.safetensors", GOOD)
    write_index(folder, {"a.weight": name})
    fault(folder, "index.json", "names the file")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"weight_map": ["a"]}', "index is malformed"),
        (b'{"weight_map": 1}', "index is malformed"),
        (b'{"weight_map": {"a": 1}}', "index is malformed"),
        (b'{"weight_map": {"a": null}}', "index is malformed"),
        (b'{"weight_map": {}}', "weight_map is empty"),
        (b"{}", "no weight_map"),
        (b"[]", "index is malformed"),
        (b"not JSON", "index is malformed"),
        (b"", "index is malformed"),
        (b'{"weight_map": {"\xff": "a"}}', "index is malformed"),
        (b'{"metadata": ' + b"[" * 100_000, "index is malformed"),
        (b'{"weight_map": {"a": "x"}, "weight_map": {"a": "y"}}', "there twice"),
        (b'{"weight_map": {"a": "x", "a": "y"}}', "in two files"),
    ],
)
def test_a_malformed_index_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_bytes(content)
    fault(tmp_path, "index.json", reason)


def test_an_index_with_a_million_rows_is_read(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", GOOD)
    write_index(tmp_path, {f"model.layers.{n}.weight": "a.safetensors" for n in range(1_000_000)})
    fault(tmp_path, "a.safetensors", "holds no tensor")


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"[" * 100_000, "nested too deep"), (b"[]", "JSON object"), (b"{", "not JSON"), (b"\xff", "not JSON")],
)
def test_a_malformed_configuration_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    one(tmp_path, *good_header())
    (tmp_path / "config.json").write_bytes(content)
    fault(tmp_path, "config.json", reason)


def test_a_configuration_without_end_is_refused(tmp_path: Path) -> None:
    one(tmp_path, *good_header())
    with (tmp_path / "config.json").open("wb") as file:
        file.truncate(1 << 40)
    fault(tmp_path, "config.json", "larger than")


@pytest.mark.parametrize(
    "config",
    [
        {"architectures": 1},
        {"architectures": [1]},
        {"architectures": []},
        {"model_type": ["llama"]},
        {"architectures": ["LlamaForCausalLM"], "text_config": 3, "num_hidden_layers": "x"},
        {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": {}, "quantization_config": 7},
        {"architectures": ["a" * 10_000]},
    ],
)
def test_a_configuration_with_other_types_is_survived(tmp_path: Path, config: dict[str, object]) -> None:
    one(tmp_path, *good_header())
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert ask_with_transformers(tmp_path)["bytes"] in (16, 32)


def ask_with_transformers(path: Path) -> dict[str, object]:
    """As `ask`, where an architecture that the table lacks may be asked of transformers, which loads torch."""
    program = PROGRAM.replace('assert "torch" not in sys.modules', "")
    done = subprocess.run(
        [sys.executable, "-c", program, path, str(1 << 45)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, object] = json.loads(done.stdout)
    return answer


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "reason"), [(make_fifo, "not a regular file"), (make_folder, "not a regular file")]
)
def test_what_is_no_regular_file_is_refused(
    tmp_path: Path, make: Callable[[Path], None], reason: str
) -> None:
    make(tmp_path / "a.safetensors")
    write_index(tmp_path, {"a.weight": "a.safetensors"})
    fault(tmp_path, "a.safetensors", reason)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", "model.safetensors"])
def test_a_pipe_in_place_of_a_file_of_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    if name == "config.json":
        one(tmp_path, *good_header())
    os.mkfifo(tmp_path / name)
    fault(tmp_path, name, "not a regular file")


def test_a_device_that_is_named_is_refused() -> None:
    fault(Path("/dev/zero"), "/dev/zero", "not a regular file")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_file_that_may_not_be_read_is_said_to_be_so(name: str) -> None:
    """Root may read everything, so it becomes somebody else first."""
    with tempfile.TemporaryDirectory() as place:
        folder = one(Path(place), *good_header())
        folder.chmod(0o755)
        (folder / "config.json").write_text("{}")
        (folder / name).chmod(0)
        program = PROGRAM.replace("try:", SOMEBODY_ELSE + "try:")
        done = subprocess.run(
            [sys.executable, "-c", program, folder, str(MEMORY_LIMIT_BYTES)],
            capture_output=True,
            text=True,
            timeout=TIME_LIMIT_S,
        )
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        assert answer["file"].endswith(name)
        assert answer["reason"] == "permission denied"


def test_every_missing_file_is_named(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a.safetensors", {"x.w": ("U8", [1], 1)})
    write_index(tmp_path, {"x.w": "a.safetensors", "y.w": "b.safetensors", "z.w": "c.safetensors"})
    fault(tmp_path, "index.json", "2 of 3 files are missing: b.safetensors, c.safetensors")


def test_missing_numbers_are_named_without_an_index_too(tmp_path: Path) -> None:
    write_tensors(tmp_path / "m-00002-of-00003.safetensors", GOOD)
    fault(tmp_path, tmp_path, "missing: m-00001-of-00003.safetensors, m-00003-of-00003.safetensors")


def test_a_number_of_files_that_nobody_has_is_refused(tmp_path: Path) -> None:
    write_tensors(tmp_path / "m-000000001-of-999999999.safetensors", GOOD)
    fault(tmp_path, ".safetensors", "one of 999999999 files")


def test_a_dangling_link_is_a_missing_file(tmp_path: Path) -> None:
    os.symlink("nothing", tmp_path / "a.safetensors")
    write_index(tmp_path, {"x.w": "a.safetensors"})
    fault(tmp_path, "index.json", "1 of 1 files are missing")


def test_a_link_out_of_a_plain_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write_tensors(tmp_path / "x.safetensors", GOOD)
    os.symlink("../x.safetensors", folder / "model.safetensors")
    fault(folder, folder, "leads out of the checkpoint")


def test_a_folder_that_is_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write_tensors(tmp_path / "x.safetensors", GOOD)
    os.symlink("..", folder / "sub")
    write_index(folder, {"model.embed.weight": "sub/x.safetensors"})
    fault(folder, "index.json", "leads out of the checkpoint")


def test_a_link_inside_the_folder_is_followed(tmp_path: Path) -> None:
    write_tensors(tmp_path / "x.safetensors", GOOD)
    os.symlink("x.safetensors", tmp_path / "model.safetensors")
    assert ask(tmp_path)["bytes"] == 32


def snapshot(store: Path, target: str) -> Path:
    """A snapshot of a hub cache whose one file is a link."""
    folder = store / "snapshots" / "0123abc"
    folder.mkdir(parents=True)
    (store / "blobs").mkdir()
    os.symlink(target, folder / "model.safetensors")
    return folder


def test_a_snapshot_of_the_hub_cache_is_read_through_its_links(tmp_path: Path) -> None:
    store = tmp_path / "models--a--b"
    folder = snapshot(store, "../../blobs/1234")
    write_tensors(store / "blobs" / "1234", GOOD)
    assert ask(folder)["bytes"] == 32


def test_a_snapshot_reads_blobs_of_no_other_model(tmp_path: Path) -> None:
    folder = snapshot(tmp_path / "models--a--b", "../../../models--c--d/blobs/1234")
    (tmp_path / "models--c--d" / "blobs").mkdir(parents=True)
    write_tensors(tmp_path / "models--c--d" / "blobs" / "1234", GOOD)
    fault(folder, folder, "leads out of the checkpoint")


def test_a_tensor_in_two_files_without_an_index_is_refused(tmp_path: Path) -> None:
    for number in (1, 2):
        write_tensors(tmp_path / f"m-{number:05d}-of-00002.safetensors", GOOD)
    fault(tmp_path, "m-00002-of-00002.safetensors", "file number 1 of the checkpoint holds too")


def two_files(folder: Path, second: dict[str, tuple[str, list[int], int]]) -> Path:
    """Two files and an index that gives the first tensor to the first file."""
    write_tensors(folder / "a.safetensors", {"x.w": ("U8", [1], 1)})
    write_tensors(folder / "b.safetensors", {"y.w": ("U8", [2], 2), **second})
    write_index(folder, {"x.w": "a.safetensors", "y.w": "b.safetensors"})
    return folder


def test_the_index_says_which_of_two_copies_counts(tmp_path: Path) -> None:
    assert ask(two_files(tmp_path, {"x.w": ("U8", [1], 1)}))["bytes"] == 3


def test_copies_that_differ_are_refused(tmp_path: Path) -> None:
    fault(two_files(tmp_path, {"x.w": ("U8", [4], 4)}), "b.safetensors", "holds 'x.w' as U8 [4]")


def test_a_tensor_that_the_index_does_not_list_counts_and_is_told(tmp_path: Path) -> None:
    answer = ask(two_files(tmp_path, {"z.w": ("U8", [4], 4)}))
    assert answer["bytes"] == 7
    assert "z.w is in the files but not in the index" in str(answer["notes"])


def test_pickled_weights_are_refused_unread(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return (os.mkdir, (str(tmp_path / "exploded"),))

    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb()))
    fault(tmp_path, tmp_path, "safetensors files only")
    fault(tmp_path / "pytorch_model.bin", "pytorch_model.bin", "safetensors files only")
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize("name", ["none", "none/config.json", "a\udcffb"])
def test_what_is_not_there_is_said_to_be_missing(tmp_path: Path, name: str) -> None:
    fault(tmp_path / name, "", "no such file or folder")


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    fault(tmp_path, tmp_path, "holds neither safetensors files, nor GGUF files, nor a config.json")


def test_names_in_other_encodings_are_read(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/m\xff"))
    folder.mkdir()
    assert ask(one(folder, *good_header()))["bytes"] == 32


def test_upper_case_names_go_by_content(tmp_path: Path) -> None:
    write_tensors(tmp_path / "MODEL.SAFETENSORS", GOOD)
    assert ask(tmp_path / "MODEL.SAFETENSORS")["bytes"] == 32


def test_names_deeper_than_any_model_are_refused(tmp_path: Path) -> None:
    fault(
        one(tmp_path, *header_of({".".join("a" * 30_000): ("U8", [1], 1)})),
        tmp_path,
        "cannot be the name of a tensor",
    )


def test_names_that_share_nothing_take_bounded_memory(tmp_path: Path) -> None:
    """Five million modules for a few tensors."""
    tensors = {".".join(f"{n}{part}" for part in range(255)): ("U8", [0], 0) for n in range(20_000)}
    fault(one(tmp_path, *header_of(tensors)), tmp_path, "more than 3145728 modules and tensors")


def test_a_length_in_front_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 10)[:5])
    fault(tmp_path, "model.safetensors", "5 bytes, too few")
