"""What a refusal advises, typed as it is printed, does what it says; what is told before anything slow; what completes."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import nn

import planner
from command_line import Command
from planner.cli.synthetic import write_synthetic
from planner.plans.moving import pin_words

SIZES = {"MiB": 1 << 20, "GiB": 1 << 30}
PLACES = {"RAM": "cpu", "disk": "disk"}


@pytest.fixture(scope="session")
def llama_70b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the headers of a Llama of 70B."""
    folder = tmp_path_factory.mktemp("models") / "llama-70b"
    write_synthetic(folder)
    return folder


def ways(printed: str) -> list[str]:
    """The ways of the last advice that a picture prints."""
    _, text = re.split(r"^ To (?:make it fit|avoid it)  ", printed, flags=re.MULTILINE)
    text = re.split(r"\n (?:To|[!i]) ", text)[0]
    return [way.removeprefix("or ") for way in re.split(r",\s+(?=or )", text.strip())]


def followed(way: str, devices: dict[str, int]) -> Iterator[tuple[dict[str, int], list[str]]]:
    """Devices and further options for each thing that a way says."""
    if option := re.search(r"(?:--\w|-d ).*$", way):
        yield devices, shlex.split(option[0])
        return
    more = re.match(r"([\d.]+) (\w+) more ", way)
    assert more, way
    for place in re.findall(r"GPUs? (\d+)|(RAM|disk)", way):  # of a range of equal cards, the first
        device = place[0] or PLACES[place[1]]
        size_bytes = devices.get(device, 0) + int(float(more[1]) * SIZES[more[2]])
        yield {**devices, device: size_bytes}, []


@pytest.mark.parametrize(
    ("devices", "options"),
    [
        ({"0": 24, "1": 24}, []),
        ({"0": 10, "1": 10, "2": 10, "3": 10, "4": 10, "5": 10}, []),
        ({"0": 48, "cpu": 2}, ["--headroom", "5%"]),
        ({"0": 40, "1": 24}, ["--headroom", "12.5%", "--mode", "gpu-only"]),
        ({"cpu": 2}, ["--headroom", "10%"]),
        ({"disk": 1000}, []),
        ({"cpu": 1, "disk": 1000}, []),
        ({"0": 67, "1": 67}, ["--set", "strategy=sequential"]),
        ({"0": 40, "1": 80, "cpu": 8}, ["--set", "strategy=balanced"]),
        ({"0": 3}, ["--set", "strategy=balanced"]),
        ({str(card): 2 for card in range(64)}, []),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_would_make_it_fit_does(
    command: Command, llama_70b: Path, devices: dict[str, int], options: list[str]
) -> None:
    def planned(sizes: dict[str, int], *more: str) -> object:
        named = [word for device, size in sizes.items() for word in ("-d", f"{device}={size}B")]
        return command("plan", llama_70b, *named, *options, *more)

    sizes = {device: size << 30 for device, size in devices.items()}
    refused = planned(sizes)
    assert refused.exit_code == 1
    said = [way for way in ways(refused.stdout) if not way.startswith("less than the headroom")]
    assert said
    for way in said:
        for more_sizes, more_options in followed(way, sizes):
            done = planned(more_sizes, *more_options)
            assert done.exit_code == 0, (way, done.stderr)


def test_no_format_avoids_what_was_asked_for(command: Command, llama_70b: Path) -> None:
    done = command("plan", llama_70b, "-d", "0=200GiB", "-d", "cpu=8GiB", "--pin", "lm_head=cpu")
    assert done.exit_code == 0
    assert "--dtype" not in done.stdout


def test_room_in_which_nothing_runs_is_told(command: Command, llama_70b: Path) -> None:
    done = command("plan", llama_70b, "-d", "disk=1TiB")
    assert "Does not fit: there is room for all of it, but none in which it could run." in done.stdout
    assert "--dtype" not in done.stdout


def test_the_message_speaks_as_the_picture_does(command: Command, llama_70b: Path) -> None:
    done = command("plan", llama_70b, *(word for card in range(8) for word in ("-d", f"{card}=8GiB")))
    assert done.stderr.count("more on") == 1
    assert "more on one of GPUs 0-7 would be enough" in done.stderr
    assert "bytes" not in done.stderr


NAMES = ["layers\n.0", "it's\x1b[31m", "back\\n slash\n", "ri\u202eght", "$(touch x) `y`", "\U000e0001tag"]


@pytest.mark.parametrize("name", NAMES)
def test_a_pin_of_any_name_can_be_pasted(name: str) -> None:
    words = f"printf %s {pin_words(name, 0, 'shell').removeprefix('--pin ')}"
    said = subprocess.run(["bash", "-c", words], capture_output=True, env={"LC_ALL": "C.UTF-8"}, timeout=10)
    assert words.isprintable()
    assert said.stdout.decode() == f"{name}=0"


def test_names_with_line_breaks_stay_in_their_lines(command: Command) -> None:
    model = nn.Module()
    for number in range(3):
        model.add_module(f"a\n{number}", nn.Linear(8, 8))
    Path("plan.json").write_text(planner.plan(model, max_memory={0: 1 << 20, "cpu": 1 << 20}).to_json())
    done = command("explain", "plan.json", "a\n1")
    assert done.stdout.startswith("a\\n1 lies on GPU 0.\n")
    assert "a\n1" not in done.stdout


def test_what_computes_is_told_apart_from_what_does_not(command: Command, llama_70b: Path) -> None:
    done = command("plan", llama_70b, "-d", "0=0", "-d", "cpu=0")
    assert "131.5 GiB more on GPU 0, or 131.5 GiB more in RAM would be enough" in done.stderr


def test_where_the_answer_goes_to_standard_output_no_picture_does(command: Command, llama_70b: Path) -> None:
    for option in ("-o", "--device-map"):
        done = command("plan", llama_70b, "-d", "0=8GiB", option, "-")
        assert (done.exit_code, done.stdout) == (1, "")


def test_two_answers_need_two_files(command: Command, llama_70b: Path) -> None:
    done = command("plan", llama_70b, "-d", "0=200GiB", "-o", "plan", "--html", "./plan")
    assert done.exit_code == 2
    assert not Path("plan").exists()


def test_the_demo_makes_its_folder(command: Command) -> None:
    assert command("demo", "--folder", "new/demo").exit_code == 0
    assert json.loads(Path("new/demo/llama-70b.json").read_text())


@pytest.mark.parametrize("start", ["https://huggingface.co/", "hf://"])
def test_an_address_of_the_hub_is_not_its_name(command: Command, start: str) -> None:
    done = command("plan", f"{start}org/name.v1", "-d", "0=1GiB")
    assert done.exit_code == 2
    assert "a model on the hub is named without its address: org/name.v1" in done.stderr


def test_settings_alone_tell_what_can_be_asked(command: Command) -> None:
    done = command("config")
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: ")


SLIPS = [
    ["--pin", "lm_heda=0"],
    ["--forbid", "lm_head=gpu"],
    ["--headroom", "gpu=1GiB"],
    ["--together", "lm_heda,model.norm"],
    ["--no-split", "LamaDecoderLayer"],
]


@pytest.mark.parametrize("slip", SLIPS, ids=str)
def test_a_slip_is_told_without_torch(llama_70b: Path, slip: list[str]) -> None:
    code = (
        "import sys; from planner.cli.app import app\n"
        "try: app.main(sys.argv[1:])\n"
        "except SystemExit as ended: print(ended.code, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "plan", str(llama_70b), *slip],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.split() == ["2", "False"], done.stderr


@pytest.mark.parametrize("error", ["ImportError", "OSError"])
def test_a_broken_torch_is_not_a_broken_planner(llama_70b: Path, own_folder: Path, error: str) -> None:
    (own_folder / "torch.py").write_text(f"raise {error}('libtorch.so is not there')")
    done = subprocess.run(
        [sys.executable, "-m", "planner", "plan", str(llama_70b)],
        capture_output=True,
        text=True,
        timeout=60,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(own_folder), os.environ.get("PYTHONPATH", ""))),
        },
    )
    assert done.returncode == 2
    assert "torch, which is there and cannot be imported (libtorch.so is not there)" in done.stderr
    assert "Install it again" not in done.stderr


def test_a_traceback_is_asked_for_where_it_is_wanted(command: Command, llama_70b: Path) -> None:
    done = command("plan", llama_70b, "-d", "0=24", "--traceback")
    assert done.stderr.startswith("planner: configuration: 1 problem")
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("planner plan ./mod", "file,./mod"),
        ("planner plan model -o pl", "file,pl"),
        ("planner plan model --config se", "file,se"),
        ("planner explain pl", "file,pl"),
        ("planner check model pl", "file,pl"),
        ("planner plan --example l", "plain,llama-70b"),
        ("planner plan model --mode g", "plain,gpu_only"),
    ],
)
def test_shells_complete(typed: str, expected: str) -> None:
    words = {"COMP_WORDS": typed, "COMP_CWORD": str(len(typed.split()) - 1)}
    done = subprocess.run(
        [sys.executable, "-m", "planner"],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **words, "_PLANNER_COMPLETE": "bash_complete"},
    )
    assert done.stdout.splitlines() == [expected]


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("PLANNER_STRATEGY__API_KEY", None),
        ("PLANNER_STRATEGY__FIL", "PLANNER_STRATEGY__FILL"),
        ("PLANNER_MODEL__HIDEN_SIZE", "PLANNER_MODEL__HIDDEN_SIZE"),
        ("PLANNER_MAX_MEMORY__0__KEY", None),
    ],
)
def test_variables_inside_of_a_setting_stop_nothing(
    command: Command, monkeypatch: pytest.MonkeyPatch, name: str, meant: str | None
) -> None:
    monkeypatch.setenv(name, "secret")
    done = command("config", "show")
    assert done.exit_code == 0
    assert f"the variable {name} names no setting and is ignored" in done.stderr
    assert ("did you mean" in done.stderr) == bool(meant)
    assert (meant or "") in done.stderr
    assert "secret" not in done.output
