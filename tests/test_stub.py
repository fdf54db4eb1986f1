"""The stub of the extension against the extension itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_stub_describes_the_extension(tmp_path: Path) -> None:
    """mypy's stubtest: the same names, the same signatures, nothing missing on either side."""
    # The stub stands alone. To follow the imports of the package around it, torch's among them, takes a minute.
    (tmp_path / "mypy.ini").write_text("[mypy]\nfollow_imports = skip\n")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "mypy.stubtest",
            "planner._core",
            "--mypy-config-file",
            str(tmp_path / "mypy.ini"),
        ],
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": str(ROOT / "python")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
