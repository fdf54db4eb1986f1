"""The command as a process: exit codes, pipes, interrupts, what it imports, how it starts."""

from __future__ import annotations

import json
import os
import pty
import resource
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from click.testing import CliRunner

from planner.cli.app import app

PLANNER = (sys.executable, "-m", "planner")
ROOM = ("-d", "0=4KiB", "-d", "cpu=1MiB")


def run(
    *arguments: str, stdin: str | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PLANNER, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **(env or {})},
    )


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["plan", "llama", *ROOM], 0),
        (["plan", "llama", "-d", "0=1KiB"], 1),
        (["plan", "llama", "-d", "0=1 parsec"], 2),
        (["plan"], 2),
        (["fly"], 2),
        ([], 0),
        (["--version"], 0),
        (["-V"], 0),
        (["help", "plan"], 0),
        (["help", "fly"], 2),
    ],
    ids=str,
)
def test_exit_codes(llama: str, arguments: list[str], code: int) -> None:
    done = run(*arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert bool(done.stdout) == (code < 2)


def test_the_console_script_is_the_same_command() -> None:
    script = Path(sys.executable).with_name("planner")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, run("--version").stdout)


def test_a_reader_that_leaves_ends_it_silently(llama: str) -> None:
    rows = Path("rows.jsonl")
    rows.write_text('{"0": "64KiB"}\n' * 3000)
    with subprocess.Popen(
        [*PLANNER, "plan", llama, "--budgets", str(rows)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None and child.stderr is not None
        first = child.stdout.readline()
        child.stdout.close()
        said = child.stderr.read()
        assert child.wait(120) == 141
    assert json.loads(first)["row"] == 1
    assert said == b""


def test_a_picture_whose_reader_has_left_ends_silently(llama: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    for arguments in (("plan", llama, *ROOM), ("sizes", llama), ("--help",)):
        done = subprocess.run([*PLANNER, *arguments], stdout=writing, stderr=subprocess.PIPE, timeout=120)
        assert (done.returncode, done.stderr) == (141, b""), arguments
    os.close(writing)


def test_a_full_disk_is_told(llama: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*PLANNER, "sizes", llama], stdout=full, stderr=subprocess.PIPE, text=True, timeout=120
        )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "No space left" in done.stderr


@pytest.mark.parametrize(
    ("closed", "arguments", "code", "said"),
    [
        (0, ["check", "llama", "-"], 2, "planner: -: cannot be read: standard input is closed\n"),
        (0, ["check", "llama", "-", "--json"], 2, ""),
        (1, ["sizes", "llama"], 2, "Bad file descriptor"),
        (1, ["sizes", "llama", "--json"], 2, "Bad file descriptor"),
        (1, ["plan", "llama", *ROOM], 2, "Bad file descriptor"),
        (1, ["--help"], 2, "Bad file descriptor"),
        (1, ["plan", "llama", "-d", "0=1KiB"], 2, "Bad file descriptor"),
        (1, ["plan", "llama", "-d", "0=1KiB", "-o", "plan.json", "--json"], 2, "Bad file descriptor"),
        (2, ["plan", "llama", *ROOM, "--json"], 0, ""),
        (2, ["plan", "nowhere"], 2, ""),
    ],
    ids=str,
)
def test_a_stream_that_was_closed_before_is_told(
    llama: str, closed: int, arguments: list[str], code: int, said: str
) -> None:
    """As services and schedulers start processes; Python has None in the place of such a stream."""
    done = subprocess.run(
        [*PLANNER, *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=partial(os.close, closed),
    )
    assert done.returncode == code, done.stderr
    assert said in done.stderr and done.stderr.count("\n") <= 1


def test_an_interrupt_ends_with_130() -> None:
    with subprocess.Popen(
        [*PLANNER, "explain", "-", "head"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Who runs the tests in the background may have told the system to ignore interrupts, which children inherit.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as child:
        _wait_until_reading(child.pid)
        child.send_signal(signal.SIGINT)
        child.wait(timeout=120)  # before its input ends, which would be an answer, too
        out, said = child.communicate()
    assert (child.returncode, out) == (130, b"")
    assert b"Traceback" not in said


def _wait_until_reading(process: int) -> None:
    """Until it sleeps in a read of its standard input: then the command runs."""
    for _ in range(600):
        if Path(f"/proc/{process}/syscall").read_text().split()[:2] == ["0", "0x0"]:  # read(0, …)
            return
        time.sleep(0.05)
    pytest.fail("the command never read its standard input")


def test_nothing_heavy_is_imported(llama: str) -> None:
    program = (
        "import sys\n"
        "from planner.cli.app import app\n"
        "from click.testing import CliRunner\n"
        "done = CliRunner().invoke(app, sys.argv[1:])\n"
        "assert done.exit_code == 0, done.output\n"
        "print(*[name for name in ('torch', 'numpy', 'transformers', 'accelerate', 'pydantic', 'rich') if name in sys.modules])"
    )
    heavy = {}
    for arguments in (
        ("--help",),
        ("plan", "--help"),
        ("plan", llama, *ROOM, "--json"),
        ("plan", llama, *ROOM, "--dtype", "bf16"),
        ("check", llama, "map.json", *ROOM),
        ("config", "show"),
    ):
        Path("map.json").write_text('{"": "cpu"}')
        done = subprocess.run(
            [sys.executable, "-c", program, *arguments], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        heavy[arguments[:2] if arguments[-1] == "--help" else arguments] = done.stdout.split()
    assert all(set(names) <= {"rich"} for names in heavy.values()), heavy
    assert heavy["--help",] == heavy["plan", "--help"] == heavy["plan", llama, *ROOM, "--json"] == []


def test_without_torch_named_budgets_are_enough(llama: str) -> None:
    Path("torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\", name='torch')\n")
    env = {"PYTHONPATH": os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])}
    assert run("plan", llama, *ROOM, "--dtype", "float16", env=env).returncode == 0
    without = run("plan", llama, env=env)
    assert without.returncode == 2
    assert "torch, which is not installed" in without.stderr
    assert run("plan", llama, "-d", "moon=1", env=env).returncode == 2


def cpu_seconds(*arguments: str) -> float:
    """Processor time of one run: what wall time is where nobody else computes."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run(*arguments).returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def test_help_is_quick() -> None:
    """Figures are in benches; this only sees that nothing large has crept in."""
    bare = min(cpu_seconds_of_python() for _ in range(5))
    assert min(cpu_seconds("--help") for _ in range(5)) - bare < 0.5


def cpu_seconds_of_python() -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", "pass"], check=True, timeout=120)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def on_terminal(*arguments: str) -> tuple[int, str]:
    """Exit code and output of a command whose output is a terminal."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        [*PLANNER, *arguments], stdin=child, stdout=child, stderr=child, env={**os.environ, "TERM": "xterm"}
    )
    os.close(child)
    text = b""
    while True:
        try:
            piece = os.read(parent, 65536)
        except OSError:  # what Linux says when the other end has closed
            break
        if not piece:
            break
        text += piece
    os.close(parent)
    return process.wait(120), text.decode()


def test_colour_is_for_terminals_only(llama: str) -> None:
    code, text = on_terminal("plan", llama, *ROOM)
    assert code == 0
    assert "\x1b[" in text
    assert "\x1b" not in run("plan", llama, *ROOM).stdout


def test_a_bar_is_for_terminals_only(llama: str) -> None:
    Path("rows.jsonl").write_text('{"0": "64KiB"}\n' * 600)
    code, text = on_terminal("plan", llama, "--budgets", "rows.jsonl", "-o", "plans.jsonl")
    assert code == 0
    assert "planning" in text
    piped = run("plan", llama, "--budgets", "rows.jsonl", "-o", "plans.jsonl")
    assert piped.stderr == "planner: wrote 600 answers to plans.jsonl\n"


def test_an_encoding_that_lacks_characters_is_no_error(llama: str) -> None:
    done = run("plan", llama, *ROOM, env={"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()


def test_a_shell_is_offered_commands_options_and_values() -> None:
    def offered(words: str) -> list[str]:
        env = {
            "_PLANNER_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
        }
        return [line.partition(",")[2] for line in run(env=env).stdout.split()]  # "plain,word"

    assert "_planner_completion" in run(env={"_PLANNER_COMPLETE": "bash_source"}).stdout
    assert offered("planner pl") == ["plan"]
    assert offered("planner config ex") == ["explain"]
    assert "--budgets" in offered("planner plan --bu")
    assert offered("planner plan --mode g") == ["gpu_only"]
    assert "bfloat16" in offered("planner plan --dtype bf")


def test_a_mistake_of_ours_has_its_own_code_and_says_how_to_report_it(
    monkeypatch: pytest.MonkeyPatch, llama: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr("planner.cli.plan.plan", fail)
    runner = CliRunner()
    short = runner.invoke(app, ["plan", llama, *ROOM])
    assert (short.exit_code, short.stdout) == (70, "")
    assert "internal error: KeyError: 'surprise'" in short.stderr
    assert "--traceback" in short.stderr and "Traceback" not in short.stderr
    full = runner.invoke(app, ["--traceback", "plan", llama, *ROOM])
    assert (full.exit_code, "Traceback" in full.stderr) == (70, True)
    told = runner.invoke(app, ["plan", llama, *ROOM, "--json"])
    assert json.loads(told.stdout)["error"]["type"] == "KeyError"
