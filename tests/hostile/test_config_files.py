"""Hostile configuration files: one clear error each, within a second and 100 MiB, in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from planner.config.document import MAX_NODES
from planner.config.layer import MAX_DEPTH
from planner.config.sources import MAX_BYTES

# What is measured excludes starting Python and importing the parsers, and includes reading, composing and resolving.
CHILD = """
import json, resource, sys, time
import yaml
from planner.config import Stack
from planner.settings.model_facts import import_config
from planner.settings.schema import Settings
from planner.errors import InvalidConfigError

def peak_kib():
    # Of this process alone: getrusage would include what the parent had before exec.
    try:
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)


kind, argument = sys.argv[1:]
before = peak_kib()
start = time.perf_counter()
try:
    if kind == "import":
        Stack(Settings).imported(import_config(argument)).resolve()
    elif kind == "argument":
        Stack(Settings).arguments(["--set", "a" + ".a" * 20_000 + "=1"]).resolve()
    elif kind == "text":
        Stack(Settings).arguments(["--set", "strategy=" + "[" * 200_000]).resolve()
    elif kind == "environment":
        Stack(Settings).environment({"PLANNER_A" + "__A" * 20_000: "{" * 200_000}).resolve()
    else:
        Stack(Settings).file(argument).resolve()
except InvalidConfigError as error:
    count, text = len(error.problems), str(error)
else:
    count, text = 0, "no error"
seconds = time.perf_counter() - start
grown = peak_kib() - before
print(json.dumps({"count": count, "text": text, "seconds": seconds, "mib": grown / 1024}))
"""


def run(kind: str, argument: str = "") -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, kind, argument], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    print(f"{kind}: {found['seconds']:.3f} s, {found['mib']:.1f} MiB, {found['text'][:160]!r}")
    return found


def check(found: dict[str, object], message: str) -> None:
    assert found["count"] == 1, found["text"]
    assert message in found["text"]
    assert len(found["text"]) < 2000
    assert found["seconds"] <= 1.0
    assert found["mib"] <= 100.0


KEYS = b"".join(b"key_%07d: 1\n" % number for number in range(600_000))
JSON_KEYS = json.dumps({f"key_{number}": 1 for number in range(600_000)}).encode()
DEEP = "nested more than 64 deep"

FILES = {
    "deep.json": (b"[" * 200_000, DEEP),
    "deep_closed.json": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, DEEP),
    "deep.yaml": (b"[" * 200_000, DEEP),
    "deep_map.yaml": (b"{a: " * 200_000, DEEP),
    "deep_block.yaml": (b"".join(b" " * depth + b"a:\n" for depth in range(1_000)), DEEP),
    "deep_dash.yaml": (b"- " * 200_000, DEEP),
    "deep.toml": (b"a = " + b"[" * 200_000, "nested more than 64 deep"),
    "dotted.toml": (b"a" + b".a" * 20_000 + b" = 1\n", "a key of more than 64 parts"),
    "dotted_inline.toml": (b"a = {b" + b".b" * 200_000 + b" = 1}\n", "a key of more than 64 parts"),
    "dotted_table.toml": (b"[" + b"'a'. " * 100_000 + b"a]\n", "a key of more than 64 parts"),
    "bad_utf8.yaml": (b"dtype: float16\nstrategy: \xff\xfe\n", "line 2: not UTF-8"),
    "bad_utf8.json": (b'{"dtype": "\xc3\x28"}', "line 1: not UTF-8"),
    "latin1.toml": (b'dtype = "\xe9"\n', "not UTF-8"),
    "control.yaml": (b"dtype: \x00\x01\n", "not YAML"),
    "keys.yaml": (KEYS[: 10 * 2**20], f"larger than {MAX_BYTES} bytes"),
    "keys.json": (JSON_KEYS[: 10 * 2**20], f"larger than {MAX_BYTES} bytes"),
    "one_mebibyte_of_keys.yaml": (KEYS[: 13 * (MAX_BYTES // 13)], f"more than {MAX_NODES} values"),
    "one_mebibyte_of_items.yaml": (
        b"a: [" + b"1," * (MAX_BYTES // 2 - 10) + b"]",
        f"more than {MAX_NODES} values",
    ),
    "one_mebibyte_of_items.json": (
        b'{"a": [' + b"1," * (MAX_BYTES // 2 - 10) + b"1]}",
        f"more than {MAX_NODES} values",
    ),
    "tabs.yaml": (b"strategy:\n\ttype: balanced\n", "not YAML"),
    "anchor.yaml": (b"a: &x 1\nb: *x\n", "anchors and aliases"),
    "laughs.yaml": (
        b"a: &a [x, x]\n" + b"".join(b"%c: &%c [*%c, *%c]\n" % (c + 1, c + 1, c, c) for c in range(97, 120)),
        "anchors and aliases",
    ),
    "alias.yaml": (b"a: *x\n", "anchors and aliases"),
    "merge.yaml": (b"<<: {dtype: float16}\n", "merge keys"),
    "tag.yaml": (b"dtype: !!python/object/apply:os.system ['true']\n", "is not supported"),
    "documents.yaml": (b"---\ndtype: float16\n" * 20_000, "a second document"),
    "colons.yaml": (b":" * 500_000, "not YAML"),
    "questions.yaml": (b"? " * 200_000, "a key must be a plain value"),
    # Halves of characters need the slow parser, which gets small files only.
    "halves.yaml": (b'dtype: "' + rb"\ud800" * 150_000 + b'"\n', "not YAML"),
    "small_halves.yaml": (b'a: ["\\ud800"' + b",1" * 2_000 + b"]", "unknown key"),
    "quotes.json": (b'"\\' * 400_000, "not JSON"),
    "digits.json": (b'{"dtype": ' + b"1" * 500_000 + b"}", "not JSON"),
    "digits.yaml": (b"dtype: " + b"1" * 500_000 + b"\n", "expected an element type"),
    "long_word.yaml": (b"dtype: " + b"x" * 900_000 + b"\n", "expected an element type"),
    "long_key.json": (b'{"' + b"k" * 900_000 + b'": 1}', "unknown key in Settings"),
    "long_name.toml": (b"a" * 900_000 + b" = 1\n", "unknown key in Settings"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_ends_in_one_clear_error(tmp_path, name):
    content, message = FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    check(run("file", str(path)), message)


def test_a_hostile_import_ends_in_one_clear_error(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b'{"text_config":' * 60_000)
    check(run("import", str(path)), DEEP)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("argument", "a: unknown key in Settings"),
        ("environment", "a: unknown key in Settings"),
        ("text", "strategy.type: unknown type, expected one of"),
    ],
)
def test_hostile_text_ends_in_one_clear_error(kind, message):
    check(run(kind), message)


def test_a_folder_and_a_device_are_no_files(tmp_path):
    check(run("file", f"{tmp_path}/"), "the name must end in")
    (tmp_path / "folder.yaml").mkdir()
    check(run("file", str(tmp_path / "folder.yaml")), "cannot be read")


def test_the_limits_leave_room_for_honest_files(tmp_path):
    """A whole model's modules, pinned one by one, and nesting up to the limit, are within the limits."""
    path = tmp_path / "pins.yaml"
    path.write_text(
        "special_dtypes:\n"
        + "".join(f"  model.layers.{number}.weight: float16\n" for number in range(15_000))
    )
    found = run("file", str(path))
    assert found["text"] == "no error"
    nested = tmp_path / "nested.json"
    nested.write_text('{"a":' * (MAX_DEPTH - 1) + "1" + "}" * (MAX_DEPTH - 1))
    assert "unknown key" in run("file", str(nested))["text"]
