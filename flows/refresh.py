"""The nightly flow: ingest, partition, plan, generate, encode, adapt, publish. Order, retries and artifacts only."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, Field

from augment.scope import Scope
from flows import asking, grouping, pools, stages
from flows.config import load_config
from flows.progress import stage_progress
from flows.run import closing_run
from warehouse.errors import LorestreamError
from warehouse.lock import writer_lock
from warehouse.overlay import overlay


class RefreshParams(BaseModel, frozen=True, extra="forbid"):
    """What a refresh takes: the config file, settings laid over it, and how many users to treat (None: all)."""

    config: Path = Path("lorestream.toml")
    # Dotted keys of the config file: {"engine.model": "/models/one"}.
    overrides: dict[str, Any] = {}
    limit_users: int | None = Field(None, ge=1)

    def scope(self) -> Scope:
        return Scope(limit_users=self.limit_users)


def _worth_retrying(_task: object, _run: object, state: Any) -> bool:
    """An engine or disk may recover; a mistake in the configuration or the input will not."""
    error = state.result(raise_on_failure=False)
    return not (isinstance(error, LorestreamError) and error.exit_code != 1)


def stage_task(function: Callable[..., object], retries: int = 0) -> Any:
    """A Prefect task of one stage; what it does stays callable without Prefect as `task.fn`."""
    # No cache: what is done is known from the warehouse, and a Run holds things that cannot be pickled.
    return task(
        name=function.__name__.replace("_", "-"),
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=retries,
        retry_delay_seconds=[5.0, 60.0][:retries],
        retry_jitter_factor=0.3,
        retry_condition_fn=_worth_retrying,
    )(function)


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
    config: Path = Path("lorestream.toml"), overrides: Mapping[str, Any] | None = None, limit_users: int | None = None
) -> dict[str, object]:
    """What one run did (see `RunReport`). A run with nothing new makes no call and publishes no snapshot.

    The parameters are those of RefreshParams, flat, so that `prefect deployment run -p limit_users=500` reads well.
    """
    return run_all(
        RefreshParams(config=config, overrides=dict(overrides or {}), limit_users=limit_users), "lorestream run"
    )


def run_all(params: RefreshParams, owner: str) -> dict[str, object]:
    """The stages in order under the writer lock; called from inside a flow."""
    config = load_config(params.config, params.overrides)
    with closing_run(config, params.scope()) as run, writer_lock(run.root, owner), stage_progress() as progress:
        ingest(run)
        partition(run)
        form_groups(run)
        asking.ask(run, progress, plan, choose_pool, call_engine)
        encode(run, progress)
        adapt(run)
        publish(run)
        create_markdown_artifact(run.report.as_markdown(), key="run-report", description=f"Run {run.name}")
        return run.report.as_dict()


def preview(params: RefreshParams) -> dict[str, object]:
    """What a refresh or backfill would do: new events, partitions, and calls and tokens per kind. Writes nothing."""
    config = load_config(params.config, params.overrides)
    with overlay(config.root) as copy, closing_run(config, params.scope(), root=copy) as run:
        stages.ingest(run)
        stages.partition(run)
        grouping.form_groups(run)
        asking.plan(run)
        return asking.forecast(run)
