"""Erasures that are killed: a copy of a warehouse for each change of the file system, before which the process dies.

    python kill_erasure.py PRISTINE OUT USER ITEM STEPS...     # prints, as JSON, whether each step was reached

Children are forked before DuckDB or Arrow has started a thread; OUT/<step> is the warehouse as the kill left it, and
OUT/<step>-again the same after the erasure was given again.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from warehouse.erase import IdColumns, erase
from warehouse.lock import writer_lock
from warehouse.traces import Subjects

CHANGES = ("replace", "link", "unlink", "rmdir")


def main(pristine: str, out: str, user: str, item: str, *steps: str) -> None:
    subjects = Subjects(frozenset([user]), frozenset([item]))
    reached = {}
    for step in map(int, steps):
        root = Path(out, str(step))
        shutil.copytree(pristine, root)
        reached[step] = _in_child(lambda root=root, step=step: _erase(root, subjects, step)) == -signal.SIGKILL
        shutil.copytree(root, f"{root}-again")
        done = _in_child(lambda root=root: _erase(Path(f"{root}-again"), subjects, None))
        assert done == 0, f"the erasure after a kill at step {step} ended with {done}"
    sys.stdout.write(json.dumps(reached))


def _erase(root: Path, subjects: Subjects, dies_at: int | None) -> None:
    with writer_lock(root, "test"):
        if dies_at is not None:
            _die_before(dies_at)
        erase(root, subjects, IdColumns(), lambda: datetime.now(UTC))


def _die_before(step: int) -> None:
    """Have the process killed just before its `step`-th change of the file system, counted from 0."""
    left = step

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def made(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return change(*arguments, **named)

        return made

    for name in CHANGES:
        setattr(os, name, counted(getattr(os, name)))


def _in_child(work: Callable[[], None]) -> int:
    """How a child that does `work` ended: 0, 1 or minus the signal."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


if __name__ == "__main__":
    main(*sys.argv[1:])
