"""The nightly flow: ingest, partition, plan, generate, encode, adapt, publish. Order, retries and artifacts only."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from pydantic import BaseModel, Field

from augment.scope import Scope
from flows import asking, grouping, pools, stages
from flows.config import load_config
from flows.progress import StageProgress, stage_progress
from flows.run import Run, closing_run
from flows.tasks import stage_task
from warehouse.overlay import overlay


class RefreshParams(BaseModel, frozen=True, extra="forbid"):
    """What a refresh takes: the config file, settings laid over it, how many users to treat (None: all), and how long
    to wait for another writer."""

    config: Path = Path("lorestream.toml")
    # Dotted keys of the config file: {"engine.model": "/models/one"}.
    overrides: dict[str, Any] = {}
    limit_users: int | None = Field(None, ge=1)
    wait_s: float = Field(0.0, ge=0, allow_inf_nan=False)

    def scope(self) -> Scope:
        return Scope(limit_users=self.limit_users)


ingest = stage_task(stages.ingest)
partition = stage_task(stages.partition)
form_groups = stage_task(grouping.form_groups)
plan = stage_task(asking.plan)
choose_pool = stage_task(pools.choose_pool)
# Safe to retry: finished texts are stored, so a second attempt makes the remaining calls only.
call_engine = stage_task(asking.call_engine, retries=2)
encode = stage_task(stages.encode, retries=1)
adapt = stage_task(stages.adapt)
publish = stage_task(stages.publish)


@flow(name="refresh", persist_result=False)
def refresh(
    config: Path = Path("lorestream.toml"),
    overrides: Mapping[str, Any] | None = None,
    limit_users: int | None = None,
    wait_s: float = 0.0,
) -> dict[str, object]:
    """What one run did (see `RunReport`). A run with nothing new makes no call and publishes no snapshot.

    The parameters are those of RefreshParams, flat, so that `prefect deployment run -p limit_users=500` reads well.
    """
    params = RefreshParams(config=config, overrides=dict(overrides or {}), limit_users=limit_users, wait_s=wait_s)
    loaded = load_config(params.config, params.overrides)
    with closing_run(loaded, params.scope()) as run, stage_progress() as progress:
        with run.writing("lorestream run", params.wait_s):
            take_in(run)
            make_knowledge(run, progress)
        return reported(run)


def take_in(run: Run) -> None:
    """What is new in the inputs, cut into partitions, and everybody in a group."""
    ingest(run)
    partition(run)
    form_groups(run)


def make_knowledge(run: Run, progress: StageProgress) -> None:
    """What is missing in the run's scope: asked, encoded, adapted, published."""
    asking.ask(run, progress, plan, choose_pool, call_engine)
    encode(run, progress)
    adapt(run)
    publish(run)


def reported(run: Run) -> dict[str, object]:
    """The run's report, which is also left as an artifact."""
    create_markdown_artifact(run.report.as_markdown(), key="run-report", description=f"Run {run.report.run}")
    return run.report.as_dict()


def preview(params: RefreshParams, more: Callable[[Run], Mapping[str, object]] = lambda _run: {}) -> dict[str, object]:
    """What a refresh would do: new events, partitions, calls and tokens per kind, and `more`. Writes nothing."""
    config = load_config(params.config, params.overrides)
    with overlay(config.root) as copy, closing_run(config, params.scope(), root=copy) as run:
        stages.ingest(run)
        stages.partition(run)
        grouping.form_groups(run)
        asking.plan(run)
        return {**asking.forecast(run), **more(run)}
