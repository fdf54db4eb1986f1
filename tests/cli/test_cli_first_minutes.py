"""What a new user types first: examples, the demo, saved plans, maps to paste, fleets, slips of the hand."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import click
import pytest

import planner
from command_line import Command, answer
from planner.checker.check import is_valid
from planner.cli.app import COMMANDS, app

TWO_CARDS = ("-d", "0=80GiB", "-d", "1=24GiB", "-d", "cpu=200GiB")
SCRIPT = Path(sysconfig.get_path("scripts"), "planner")


def python(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, env={**os.environ, **env}
    )


def test_the_list_of_commands_says_what_the_commands_say() -> None:
    context = click.Context(app)
    for name, line in COMMANDS.items():
        found = app.get_command(context, name)
        assert found is not None and found.help is not None
        assert found.help.splitlines()[0] == line, name
    listed = {path.stem for path in Path(planner.cli.__path__[0]).glob("*.py")}
    assert set(COMMANDS) <= listed


def test_the_list_of_commands_loads_none_of_them() -> None:
    done = python(
        "-c",
        "import sys; from planner.cli.app import app\n"
        "from click.testing import CliRunner; assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "print(*[name for name in sys.modules if name.startswith('planner.')])",
    )
    assert done.returncode == 0, done.stderr
    loaded = {name.split(".")[1] for name in done.stdout.split()}
    assert loaded <= {"cli", "errors", "spelling", "names"}, loaded


# ---- Examples and the demo


def test_an_example_stands_for_a_model_in_every_command(command: Command, own_folder: Path) -> None:
    example = ("--example", "llama-70b")
    made = command("plan", *example, *TWO_CARDS, "-o", "plan.json")
    assert made.exit_code == 0 and "planner: wrote the plan to plan.json" in made.stderr
    assert command("check", *example, "plan.json").exit_code == 0
    assert command("check", "plan.json", *example).exit_code == 0
    assert answer(command("sizes", *example, "--json"))["total_bytes"] == 141107412992
    assert sorted(os.listdir(own_folder)) == ["plan.json"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["plan"], "Missing argument 'MODEL'"),
        (["check", "llama"], "Missing argument 'MAP'"),
        (["check"], "Missing argument 'MODEL'"),
        (["check", "--example", "llama-70b"], "Missing argument 'MAP'"),
        (["plan", "llama", "--example", "llama-70b"], "stands instead of"),
        (["plan", "--example", "gpt-5"], "there is llama-70b"),
        (["pla", "llama"], "Did you mean plan"),
        (["sizes", "llama", "--depth", "-1"], "--depth"),
    ],
    ids=str,
)
def test_what_is_missing_or_misspelt_is_said(
    command: Command, llama: str, arguments: list[str], said: str
) -> None:
    done = command(*arguments)
    assert done.exit_code == 2
    assert said in done.stderr


def test_the_demo_prints_commands_that_can_be_typed(command: Command, own_folder: Path) -> None:
    done = command("demo", "--folder", own_folder)
    assert done.exit_code == 0, done.stderr
    typed = [line for line in done.stdout.splitlines() if line.startswith("$ planner ")]
    assert [line.split()[2] for line in typed] == ["plan", "explain", "fit"]
    for line in typed:
        assert command(*line.split()[2:]).exit_code == 0, line
    assert "model.layers.50" in done.stdout
    assert re.search(r"^context_length = \d{4,}", done.stdout, re.MULTILINE)
    assert (own_folder / "llama-70b.html").read_text().startswith("<!doctype html>")
    assert planner.Plan.from_json((own_folder / "llama-70b.json").read_text()).certificate.proven


def test_the_demo_needs_no_folder(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert command("demo").exit_code == 0
    (folder,) = [path for path in tmp_path.iterdir() if path.name.startswith("planner-demo-")]
    assert sorted(path.suffix for path in folder.iterdir()) == [".html", ".json"]


# ---- What is written


def test_a_saved_plan_is_drawn_again(command: Command, llama: str) -> None:
    made = command("plan", llama, "-d", "0=4KiB", "-d", "cpu=1MiB", "-o", "plan.json")
    drawn = command("show", "plan.json", "--html", "page.html")
    assert drawn.exit_code == 0
    assert drawn.stdout.splitlines()[0] == made.stdout.splitlines()[0]
    assert Path("page.html").read_text().startswith("<!doctype html>")
    assert command("show", "plan.json", "--json").stdout == Path("plan.json").read_text()
    assert command("show", "absent.json").exit_code == 2


def test_a_device_map_alone_is_what_loading_code_takes(command: Command, llama: str) -> None:
    done = command(
        "plan", llama, "-d", "0=4KiB", "-d", "cpu=1MiB", "--device-map", "map.json", "-o", "plan.json"
    )
    written = json.loads(Path("map.json").read_text())
    assert written == dict(planner.Plan.from_json(Path("plan.json").read_text()).device_map)
    assert [type(device) for device in written.values()].count(int) > 0
    assert done.stderr.splitlines()[-2:] == [
        "planner: wrote the plan to plan.json",
        "planner: wrote its device map to map.json",
    ]
    assert command("check", llama, "map.json").exit_code == 0


@pytest.mark.parametrize("option", ["-o", "--device-map", "--html"])
def test_a_dash_is_standard_output_and_nothing_else_is_there(
    command: Command, llama: str, option: str
) -> None:
    done = command("plan", llama, "-d", "0=1MiB", option, "-")
    assert done.exit_code == 0 and done.stderr == ""
    command("plan", llama, "-d", "0=1MiB", option, "file")
    assert done.stdout == Path("file").read_text()
    for other in (("--json",), ("-o", "-", "--html", "-")):
        refused = command("plan", llama, "-d", "0=1MiB", option, "-", *other)
        assert (refused.exit_code, "one answer" in refused.stdout + refused.stderr) == (2, True)


# ---- Fleets


ROWS = '{"name": "big", "0": "1MiB"}\n{"name": "two", "0": "4KiB", "cpu": "1MiB"}\n{"0": "1KiB"}\n'


def test_rows_keep_their_names(command: Command, llama: str) -> None:
    lines = [
        json.loads(line) for line in command("plan", llama, "--budgets", "-", stdin=ROWS).stdout.splitlines()
    ]
    assert [line.get("name") for line in lines] == ["big", "two", None]
    assert lines[0]["budgets"] == {"0": 1 << 20}
    for line in lines[:2]:
        made = planner.Plan.from_json(json.dumps(line["plan"]))
        assert is_valid(planner.check(planner_model(llama), made.device_map))
    refused = command("plan", llama, "--budgets", "-", stdin='{"name": 5, "0": "1MiB"}\n')
    assert (refused.exit_code, "a name is text" in refused.stderr) == (2, True)


def planner_model(folder: str) -> object:
    from planner.checker.described import model_from_sizes
    from planner.checkpoint.source import open_source
    from planner.model.layout import Layout

    tree = open_source(folder).tree
    sizes = Layout(tree).stored_sizes()
    return model_from_sizes({name: int(sizes.get(name, 0)) for name in tree.uncovered([])[1]})


def test_a_fleet_on_a_terminal_is_a_table(llama: str) -> None:
    Path("rows.jsonl").write_text(ROWS)
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "planner", "plan", llama, "--budgets", "rows.jsonl"],
        stdout=child,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "110"},
    )
    os.close(child)
    text = b""
    while True:
        try:
            piece = os.read(parent, 65536)
        except OSError:
            break
        if not piece:
            break
        text += piece
    assert process.wait(120) == 1
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text.decode())
    lines = [line.split() for line in plain.splitlines() if line.strip()]
    assert lines[0] == ["name", "verdict", "offloaded", "tightest", "card"]
    assert [line[0] for line in lines[1:]] == ["big", "two", "3"]
    assert [line[1] for line in lines[1:]] == ["fits", "runs,", "does"]


# ---- Slips and other machines


@pytest.mark.parametrize(
    ("device", "meant"), [("gpu", "0"), ("gpu:1", "1"), ("cudo:0", "cuda:0"), ("dsk", "disk")]
)
def test_a_misspelt_device_is_told_without_torch(llama: str, device: str, meant: str) -> None:
    done = python(
        "-c",
        "import sys; from planner.cli.app import app\n"
        "from click.testing import CliRunner; done = CliRunner().invoke(app, sys.argv[1:])\n"
        "print(done.exit_code, 'torch' in sys.modules, done.stderr)",
        *("plan", llama, "-d", f"{device}=1MiB"),
    )
    assert done.stdout.startswith("2 False"), done.stdout + done.stderr
    assert f"did you mean {meant}?" in done.stdout


def test_every_module_is_imported_where_systems_lack_modules_of_this_one() -> None:
    """Windows has none of these, macOS not all."""
    hidden = ("resource", "fcntl", "pwd", "grp", "termios", "tty", "pty", "syslog", "posix_ipc")
    program = (
        "import sys, pkgutil, importlib\n"
        f"sys.modules.update(dict.fromkeys({hidden!r}))\n"
        "import planner, planner.cli.app\n"
        "for found in pkgutil.walk_packages(planner.__path__, 'planner.'):\n"
        "    if '__main__' not in found.name: importlib.import_module(found.name)\n"
    )
    done = python("-c", program)
    assert done.returncode == 0, done.stderr


def test_a_file_called_planner_is_not_taken_for_the_command(llama: str) -> None:
    """Python itself runs a `planner.py` of the folder for `python -m planner`; the command does not, nor does `python -P -m`."""
    Path("planner.py").write_text("")
    asked = ("plan", llama, "-d", "0=1MiB", "-o", "plan.json")
    for words in ([str(SCRIPT)], [sys.executable, "-P", "-m", "planner"]):
        done = subprocess.run([*words, *asked], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert "wrote the plan" in done.stderr


@pytest.mark.parametrize("lacking", ["click", "planner._core", "planner.planning.api"])
def test_a_broken_installation_does_not_look_like_no(llama: str, lacking: str) -> None:
    program = f"import sys; sys.modules[{lacking!r}] = None; from planner.cli import main; main()"
    done = python("-c", program, "plan", llama, "-d", "0=1MiB")
    assert done.returncode == 70, done.stderr
    assert "the installation is broken" in done.stderr and "pip install" in done.stderr


def test_what_takes_long_says_what_it_does(
    monkeypatch: pytest.MonkeyPatch, command: Command, llama: str
) -> None:
    import time

    from planner.planning import plan

    def slow(*arguments: object, **settings: object) -> planner.Plan:
        time.sleep(0.3)
        return plan(*arguments, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr("planner.cli.waiting._PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr("planner.cli.plan.plan", slow)
    done = command("plan", llama, "-d", "0=1MiB", "--json")
    assert "planner: planning …\n" in done.stderr
    json.loads(done.stdout)
    monkeypatch.setattr("planner.cli.waiting._PATIENCE_SECONDS", 60)
    assert command("plan", llama, "-d", "0=1MiB", "--json").stderr == ""


def test_without_an_accelerator_what_was_looked_for_is_said(command: Command, llama: str) -> None:
    import torch

    if torch.accelerator.is_available():
        pytest.skip("there is an accelerator")
    for arguments in (["plan", llama], ["devices"]):
        done = command(*arguments)
        assert done.exit_code == 0
        said = done.stderr + done.stdout
        assert "no accelerator was found: torch" in said and str(torch.__version__) in said


# ---- A no


def test_a_no_is_drawn_and_written(command: Command, llama: str) -> None:
    asked = ("plan", llama, "-d", "0=1KiB", "-d", "1=2KiB", "--html", "no.html")
    done = command(*asked)
    assert done.exit_code == 1
    assert done.stdout.splitlines()[1].startswith("Does not fit: ")
    assert "wrote a report of what is left over to no.html" in done.stderr
    assert "the model does not fit" in done.stderr
    page = Path("no.html").read_text()
    assert page.startswith("<!doctype html>") and "left over" in page
    Path("no.html").unlink()
    assert answer(command(*asked, "--json"))["error"]["exit_code"] == 1
    assert Path("no.html").read_text() == page
    only = command("plan", llama, "-d", "0=1KiB", "--html", "-")
    assert (only.exit_code, only.stdout.startswith("<!doctype html>")) == (1, True)


def test_what_would_make_it_fit_does(command: Command, own_folder: Path) -> None:
    no = command("plan", "--example", "llama-70b", "-d", "0=80GiB", "-d", "1=24GiB")
    assert no.exit_code == 1
    (option,) = re.findall(r"--dtype (\w+)", no.stdout)
    assert command("plan", "--example", "llama-70b", *TWO_CARDS[:4], "--dtype", option).exit_code == 0
    (more,) = re.findall(r"(\d+\.\d) GiB more on GPU 1", no.stdout)
    room = f"1={24 + float(more)}GiB"
    assert command("plan", "--example", "llama-70b", "-d", "0=80GiB", "-d", room).exit_code == 0
