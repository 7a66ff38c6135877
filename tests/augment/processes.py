"""A script in a Python process of its own, with this repository on its path and next to nothing in its environment."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


def last_line_of(script: str, folder: Path, *arguments: str) -> tuple[Any, str]:
    """What the JSON in the last line that `script` prints says, and its standard error; it must end with 0."""
    file = folder / "generate.py"
    file.write_text(script)
    done = subprocess.run(
        [sys.executable, str(file), *arguments],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1]), done.stderr
