"""The training flow: fit the frozen adapter anew, then publish every row with it as a new snapshot."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect import flow

from augment.scope import Scope
from flows import stages
from flows.config import load_config
from flows.refresh import publish
from flows.run import closing_run
from flows.tasks import stage_task

fit_adapter = stage_task(stages.fit_adapter)


@flow(name="train", persist_result=False)
def train(
    config: Path = Path("lorestream.toml"), overrides: Mapping[str, Any] | None = None, wait_s: float = 0.0
) -> dict[str, object]:
    """The new adapter's version and measures, and the rows published with it (see `RunReport`)."""
    loaded = load_config(config, overrides)
    with closing_run(loaded, Scope()) as run, run.writing("lorestream train", wait_s):
        fit_adapter(run)
        publish(run)
        return run.report.as_dict()
