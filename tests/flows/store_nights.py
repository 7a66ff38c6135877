"""Nights of a tiny shop whose warehouse lives on an object store, each on a machine with its config and inputs alone.

    python store_nights.py FOLDER URL REQUESTS...    # prints, as JSON, how each machine ended

The machine of each number is killed at that request of its own which moves or changes an object; a last one runs to
its end. Every machine is a child process, forked before a library has started a thread.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from augment.generate import SegmentConfig
from flows.config import load_config
from flows.run import Run
from tests.faults.schedules import PaidEngine
from tests.flows.shop import QuickEncoder, event, open_shop, run_stages, write_events
from warehouse.objects import FsspecObjects

SEGMENT = 3
NIGHTS = 2
CHANGES = ("fetch", "write", "create", "store", "remove")


def new_machine(folder: Path, url: str | None) -> Path:
    """The config file on a machine that has the inputs of the first night, and nothing else but its store."""
    config = open_shop(folder, users=3, events_each=5)
    if url is not None:
        config.write_text(f'store = "{url}"\n{config.read_text()}')
    return config


def begin_night(config: Path, night: int) -> None:
    """What has come in until then; every machine sees the same inputs, wherever they lie."""
    if night:
        write_events(config.parent, f"-{night}", [event(u, u + 2, 100 * night + h) for u in range(3) for h in range(3)])


def run_night(config: Path, bill: Path, wait_s: float = 0.0) -> Run:
    """A whole run, whose answers add a line each to the bill."""
    loaded = load_config(config).model_copy(update={"segments": SegmentConfig(rows=SEGMENT)})
    run = Run(loaded, loaded.root, engine=PaidEngine(bill, lambda: None))
    run.encoder = QuickEncoder(loaded.encoder)  # type: ignore[assignment]
    with run.writing("night run", wait_s):
        run_stages(run)
    return run


def billed(bill: Path) -> list[str]:
    """The calls that were paid for, in order."""
    return bill.read_text().split() if bill.exists() else []


def main(folder: str, url: str, *requests: str) -> None:
    ends = []
    for number, kill_at in enumerate([*map(int, requests), -1]):
        config = new_machine(Path(folder, f"machine-{number}"), url)
        child = os.fork()
        if not child:
            code = 1
            try:
                _run(config, Path(folder, "bill"), kill_at)
                code = 0
            finally:
                os._exit(code)
        ends.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    sys.stdout.write(json.dumps(ends))


def _run(config: Path, bill: Path, kill_at: int) -> None:
    left = kill_at

    def dying(request: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(request)
        def asked(*arguments: Any) -> Any:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return request(*arguments)

        return asked

    for name in CHANGES:
        setattr(FsspecObjects, name, dying(getattr(FsspecObjects, name)))
    # As `short_leases` does in the tests' own process.
    import warehouse.lease as leases

    leases.LEASE, leases.CLOCKS_AGREE, leases._POLL_S = leases.LEASE / 100, leases.CLOCKS_AGREE * 0, 0.1
    run_night(config, bill, wait_s=60)


if __name__ == "__main__":
    main(*sys.argv[1:])
