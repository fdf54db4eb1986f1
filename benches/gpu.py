"""The first run on a machine with a GPU: its tests, then loading, streaming and borders beside transformers and accelerate.

    python3 benches/gpu.py [FOLDER]        at most eight minutes; 6 GB of files in FOLDER, which go again
    python3 benches/gpu.py --wheel W.whl   with the extension from an abi3 wheel, where it is not built in the tree
    python3 benches/gpu.py --virtual       a rehearsal on the virtual accelerators, with a small model

Needs python3 with torch and pytest; what more of transformers and accelerate is there is run beside. Nothing is installed. Each
part runs in a process of its own and has its share of the time, what earlier parts have left included; what does not fit is said.
Where OUT is set, everything is written there. Exit code 1: tests failed, or a part did; 2: there is nothing to run on.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from timing import table

ROOT = Path(__file__).resolve().parents[1]
MARK = "pytest.mark." + "gpu"
SHARES = {"machine": 30, "tests": 40, "model": 20, "load": 15, "stream": 25, "border": 10}
FIGURES = ("load", "stream", "border")
# For pytest to write what it knows, and for the last lines here.
GRACE_S = 10.0


@dataclass
class Part:
    """How one part ended, and what it has found until then."""

    name: str
    seconds: float = 0.0
    ended: str = "done"
    figures: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    found: dict[str, Any] = field(default_factory=dict)


class Budget:
    """Time for the parts that are left, by their shares."""

    def __init__(self, seconds: float, parts: list[str]) -> None:
        self._end_s = time.monotonic() + seconds - GRACE_S
        self._left = {name: SHARES[name] for name in parts}

    def seconds(self, name: str) -> float:
        """For a part that starts now."""
        left_s = max(0.0, self._end_s - time.monotonic())
        share = self._left[name] / sum(self._left.values())
        del self._left[name]
        return left_s * share


class Run:
    """Starts parts as processes; they write what they find into files, so that a part that is stopped has shown something.

    Args:
        folder: for the model's files, and what parts write.
        environment: where parts find the package, the tests and this folder.
        options: as given.
    """

    def __init__(self, folder: Path, environment: dict[str, str], options: argparse.Namespace) -> None:
        self.folder = folder
        self.environment = environment
        self.options = options
        self.log = folder / "gpu_tests.txt"

    def part(self, name: str, seconds: float) -> Part:
        """Runs one, and gathers what it has written."""
        if name == "tests":
            return self.tests(seconds)
        results = self.folder / f"{name}.jsonl"
        end_s = time.monotonic() + seconds  # this clock is the same in all processes
        command = [*self.program("gpu_parts.py"), name, str(self.folder), str(results), f"{end_s}"]
        command += ["--rounds", str(self.options.rounds), "--without", *self.options.without]
        part = self.timed(name, command, seconds, signal.SIGTERM)
        for row in rows_of(results):
            part.figures += row.get("figures", [])
            part.notes += row.get("notes", [])
            part.found |= row.get("found", {})
        return part

    def tests(self, seconds: float) -> Part:
        """All tests with the mark, found by it."""
        results = self.folder / "tests.jsonl"
        given = ["-m", "gpu", "-rfEP", "-p", "no:cacheprovider"]
        # What all tests share needs it, and is there for others than these.
        given += [] if importlib.util.find_spec("hypothesis") else ["--noconftest"]
        given += map(str, marked(self.options.tests))
        command = [*self.program("gpu_tests.py"), str(results), "--", *given]
        part = self.timed("tests", command, seconds, signal.SIGINT, self.log)
        by_end: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": [], "unfinished": []}
        for name, outcome in dict(rows_of(results)).items():
            by_end[outcome].append(name)
        part.found = {outcome: len(names) for outcome, names in by_end.items()}
        part.notes += [f"{end}: {name}" for end in ("failed", "unfinished") for name in by_end[end]]
        if part.ended != "done":
            print(*self.log.read_text().splitlines()[-60:], sep="\n")
        return part

    def program(self, name: str) -> list[str]:
        """How one of the programs beside this one is started."""
        return [
            sys.executable,
            str(ROOT / "benches" / name),
            *(["--virtual"] if self.options.virtual else []),
        ]

    def timed(
        self,
        name: str,
        command: list[str],
        seconds: float,
        stop: signal.Signals,
        log: Path | None = None,
    ) -> Part:
        """Runs a part until it ends or its time is up; all processes that it has started end with it."""
        print(f"{name}: at most {seconds:.0f} s …", flush=True)
        start_s = time.monotonic()
        out = log.open("w") if log else None
        process = subprocess.Popen(
            command, cwd=ROOT, env=self.environment, stdout=out, stderr=out, start_new_session=True
        )
        ended = "done"
        try:
            if code := process.wait(seconds):
                ended = f"failed, exit code {code}"
        except subprocess.TimeoutExpired:
            ended = "out of time"
            os.killpg(process.pid, stop)
            try:
                process.wait(GRACE_S / 2)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        finally:
            if out:
                out.close()
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        return Part(name, round(time.monotonic() - start_s, 1), ended)


def marked(folder: Path) -> list[Path]:
    """Files of tests that name the mark."""
    return sorted(path for path in folder.rglob("test_*.py") if MARK in path.read_text())


def rows_of(results: Path) -> list[Any]:
    """What a part has written; nothing where it was stopped before."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def package_folder(wheel: Path | None, unpacked: Path) -> Path:
    """Where the package lies with its extension: the tree, or a wheel's contents.

    Raises:
        SystemExit: there is neither.
    """
    built = ROOT / "python"
    if wheel is None and any(built.glob("planner/_core*.so")):
        return built
    wheels = [wheel] if wheel else sorted((ROOT / "dist").glob("*abi3*.whl"))
    if not wheels:
        print(
            "There is no extension in python/planner and no wheel in dist: `make build` or `make wheel` on a machine with Rust "
            "makes them; then give --wheel.",
            file=sys.stderr,
        )
        raise SystemExit(2)
    with zipfile.ZipFile(wheels[-1]) as archive:
        archive.extractall(unpacked)
    return unpacked


def environment(package: Path) -> dict[str, str]:
    """For parts: the package before whatever is installed, and no network."""
    paths = [package, ROOT / "tests", ROOT / "benches", *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "HF_HUB_OFFLINE": "1",
        "TQDM_DISABLE": "1",
    }


def shown(parts: list[Part]) -> str:
    """One table, and what was left out."""
    lines = [
        [part.name, row["what"], row["shown"] or "not measured", row["beside"]]
        for part in parts
        for row in part.figures
    ]
    said = [f"{part.name}: {note}" for part in parts for note in part.notes]
    said += [f"{part.name}: {part.ended} after {part.seconds} s" for part in parts if part.ended != "done"]
    tests = next((part.found for part in parts if part.name == "tests"), {})
    if tests:
        said.append("tests: " + ", ".join(f"{count} {outcome}" for outcome, count in tests.items()))
    text = table(["part", "what", "figure", "medians, rounds"], lines) if lines else "no figures"
    return "\n".join([text, *said])


def options_of(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folder", nargs="?", type=Path, help="on a disk, not in memory; by default a temporary one"
    )
    parser.add_argument("--wheel", type=Path)
    parser.add_argument("--virtual", action="store_true")
    parser.add_argument("--only", nargs="+", choices=("tests", *FIGURES), default=["tests", *FIGURES])
    parser.add_argument(
        "--without", nargs="+", choices=("transformers", "accelerate", "safetensors"), default=[]
    )
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=9, help="at most")
    parser.add_argument("--tests", type=Path, default=ROOT / "tests", help="where tests with the mark are")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    options = options_of(arguments)
    wanted = {"machine", *options.only, *(["model"] if {"load", "stream"} & set(options.only) else [])}
    names = [name for name in SHARES if name in wanted]
    budget = Budget(60 * options.minutes, names)
    parts: list[Part] = []
    with tempfile.TemporaryDirectory(dir=options.folder) as made:
        folder = Path(made)
        run = Run(folder, environment(package_folder(options.wheel, folder / "wheel")), options)
        for name in names:
            parts.append(run.part(name, budget.seconds(name)))
            if parts[0].ended != "done":  # without an accelerator there is nothing to run on
                break
        code = exit_code(parts)
        print(shown(parts))
        if out := os.environ.get("OUT"):
            whole = {"exit_code": code, "parts": [asdict(part) for part in parts]}
            Path(out, "gpu.json").write_text(json.dumps(whole, indent=1))
            if run.log.exists():
                Path(out, run.log.name).write_text(run.log.read_text())
    return code


def exit_code(parts: list[Part]) -> int:
    """Of figures, what there is in time is enough; of tests that were stopped, nothing can be said."""
    if parts[0].ended != "done":
        return 2
    return int(
        any(
            part.ended.startswith("failed") or (part.name == "tests" and part.ended != "done")
            for part in parts
        )
    )


if __name__ == "__main__":
    sys.exit(main())
