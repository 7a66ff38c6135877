"""Refreshes and backfills in processes of their own, with scripted answers, that may be killed or run at once.

    python flow_processes.py STEPS        # a JSON list of lists of steps that run side by side

A step is {"verb": "refresh" or "backfill", "shop": the folder of a shop, ...parameters of the flow}, with `dies_after`
so many answers or `dies_at` the replacement of a file of that name; or {"verb": "copy", "shop": ..., "to": ...,
"later": a folder whose inputs the copy gains}. Prints how each ended. Every answer that is given adds a line to
`answers.log` of its shop. Children are forked from one process that has imported everything and started no thread.
"""

import json
import os
import shutil
import signal
import sys
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import flows.backfill
import flows.refresh
import flows.run
from augment.engine.base import Completion, Request
from augment.engine.scripted import ScriptedEngine
from tests.flows.shop import QuickEncoder
from warehouse.errors import LorestreamError

TASKS = ("ingest", "partition", "form_groups", "plan", "choose_pool", "call_engine", "encode", "adapt", "publish")


class LoggedEngine(ScriptedEngine):
    """Notes every answer in a file, and dies once the last of `dies_after` answers was taken."""

    def __init__(self, log: Path, dies_after: int | None) -> None:
        super().__init__(lambda prompt: f"An answer about {sha256(prompt.encode()).hexdigest()}.")
        self._log, self._left = log, dies_after

    def generate(self, requests: Iterable[Request]) -> Iterator[Completion]:
        for completion in super().generate(requests):
            with self._log.open("a") as log:
                log.write(f"{completion.request_key}\n")
            yield completion
            if self._left is not None:
                self._left -= 1
                if not self._left:
                    os.kill(os.getpid(), signal.SIGKILL)


def main(steps: str) -> None:
    # The stages as plain functions: no server of Prefect is wanted here.
    for name in TASKS:
        setattr(flows.refresh, name, getattr(flows.refresh, name).fn)
    flows.refresh.create_markdown_artifact = lambda *_args, **_named: None
    flows.run.TextEncoder = QuickEncoder
    ends = []
    for together in json.loads(steps):
        children = [_child(**step) for step in together]
        ends.append([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
    sys.stdout.write(json.dumps(ends))


def _child(**step: Any) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        _copy(**step) if step["verb"] == "copy" else _run(**step)
        code = 0
    except LorestreamError as error:
        sys.stderr.write(f"{error}\n")
        code = error.exit_code
    finally:
        sys.stderr.flush()
        os._exit(code)


def _copy(verb: str, shop: str, to: str, later: str) -> None:
    shutil.copytree(shop, to)
    Path(to, "answers.log").unlink()
    shutil.copytree(Path(later, "inputs"), Path(to, "inputs"), dirs_exist_ok=True)


def _run(verb: str, shop: str, dies_after: int | None = None, dies_at: str | None = None, **named: Any) -> None:
    flows.run._make_engine = lambda _config: LoggedEngine(Path(shop, "answers.log"), dies_after)
    if dies_at is not None:
        replace = os.replace

        def dying(source: Any, target: Any) -> None:
            if Path(target).name == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(source, target)

        os.replace = dying  # type: ignore[assignment]
    flow = flows.backfill.backfill if verb == "backfill" else flows.refresh.refresh
    flow.fn(config=Path(shop, "lorestream.toml"), **named)


if __name__ == "__main__":
    main(*sys.argv[1:])
