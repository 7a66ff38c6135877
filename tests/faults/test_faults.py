"""After any faults, a run to its end gives the tables of undisturbed runs and pays for no stored call again."""

import json
import os
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("schedules.py")

pytestmark = pytest.mark.faults


def schedules(folder: Path, first: int, last: int, every: int) -> list[dict[str, object]]:
    """What became of the schedules of these seeds, one of `every` over two nights."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), str(first), str(last), str(every)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=7200,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def check(found: list[dict[str, object]], count: int) -> None:
    injected: Counter[str] = Counter()
    for one in found:
        injected.update(one["injected"])  # type: ignore[arg-type]
    totals = {
        "schedules": len(found),
        "injected": dict(sorted(injected.items())),
        "repeated calls": sum(int(str(one["repeated"])) for one in found),
        "differences": sum(bool(one["differences"]) for one in found),
        "orphans": sum(bool(one["orphans"]) for one in found),
    }
    sys.stderr.write(f"{json.dumps(totals)}\n")
    assert len(found) == count
    for one in found:
        assert one["repeated"] == 0, one
        assert one["differences"] == [], one
        assert one["orphans"] == [], one
        assert int(str(one["asked_again"])) <= int(str(one["allowed"])), one
    # A fault that waits where a run no longer comes strikes nobody; most must strike.
    assert sum(injected.values()) > count // 2


def test_twenty_schedules_of_faults(tmp_path: Path) -> None:
    check(schedules(tmp_path, 0, 20, every=10), 20)


@pytest.mark.slow
def test_two_hundred_schedules_of_faults(tmp_path: Path) -> None:
    parts = [(tmp_path / str(first), first, first + 50, 1) for first in range(1000, 1200, 50)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = list(pool.map(lambda part: schedules(*part), parts))
    check([one for part in found for one in part], 200)
