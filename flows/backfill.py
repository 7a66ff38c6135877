"""The backfill flow: what is missing in an interval of event time, chunk by chunk, each published as it finishes.

Restartable like any run: what was asked and answered is stored, so a second call cuts what is left into chunks.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from prefect import flow
from pydantic import Field, model_validator

from augment.chunks import ChunkPlan, cut_interval
from augment.scope import Scope
from flows.config import load_config
from flows.progress import stage_progress
from flows.refresh import RefreshParams, make_knowledge, preview, reported, take_in
from flows.run import Run, closing_run

log = logging.getLogger("lorestream")

CHUNK_CALLS = 5000
_SHOWN_CHUNKS = 20

Turn = Callable[[], AbstractContextManager[None]]


class BackfillParams(RefreshParams, frozen=True):
    """A refresh that asks only about partitions sealed in [start, end) and the items in them.

    Times without a zone are UTC. A chunk has `chunk_days` of event time, or else at most `chunk_calls` calls.
    """

    start: datetime
    end: datetime
    chunk_days: float | None = Field(None, gt=0, allow_inf_nan=False)
    chunk_calls: int = Field(CHUNK_CALLS, ge=1)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        start, end = self.interval
        if start >= end:
            raise ValueError(f"start {self.start} is not before end {self.end}: the interval [start, end) is empty")
        if self.chunk_days is not None and self.chunk_calls != CHUNK_CALLS:
            raise ValueError(
                f"chunk_days = {self.chunk_days} and chunk_calls = {self.chunk_calls}: chunks go by one of them"
            )
        return self

    @property
    def interval(self) -> tuple[datetime, datetime]:
        """Start and end in UTC."""
        start, end = ((t if t.tzinfo else t.replace(tzinfo=UTC)).astimezone(UTC) for t in (self.start, self.end))
        return start, end

    def scope(self) -> Scope:
        start, end = self.interval
        return Scope(limit_users=self.limit_users, start=start, end=end)


@flow(name="backfill", persist_result=False)
def backfill(
    start: datetime,
    end: datetime,
    config: Path = Path("lorestream.toml"),
    overrides: Mapping[str, Any] | None = None,
    limit_users: int | None = None,
    wait_s: float = 0.0,
    chunk_days: float | None = None,
    chunk_calls: int = CHUNK_CALLS,
) -> dict[str, object]:
    """What one backfill did (see `RunReport`) and its chunks; the parameters are those of BackfillParams, flat.

    With `wait_s`, the warehouse is given to other writers between chunks, if any are waiting.
    """
    params = BackfillParams(
        start=start,
        end=end,
        config=config,
        overrides=dict(overrides or {}),
        limit_users=limit_users,
        wait_s=wait_s,
        chunk_days=chunk_days,
        chunk_calls=chunk_calls,
    )
    loaded = load_config(params.config, params.overrides)
    with (
        closing_run(loaded, params.scope()) as run,
        _turns(run, params.wait_s) as turn,
        stage_progress() as progress,
    ):
        with turn():
            take_in(run)
            cut = plan_chunks(run, params)
            _say(run, params, cut)
        bounds = [(chunk.start, chunk.end) for chunk in cut.chunks]
        # At last the whole interval, in which the last chunk is missing, and what hangs on no chunk: calls of groups,
        # and answers of an interrupted run that have no vector or row yet.
        scopes = [*(replace(params.scope(), start=first, end=last) for first, last in bounds[:-1]), params.scope()]
        chunks = []
        for number, scope in enumerate(scopes):
            with turn():
                before = (run.report.calls, run.report.rows_published)
                run.turn_to(scope, f"{number:04d}")
                make_knowledge(run, progress)
            calls, rows = (run.report.calls - before[0], run.report.rows_published - before[1])
            log.info("chunk %d of %d: %d calls, %d rows published", number + 1, len(scopes), calls, rows)
            first, last = bounds[number] if bounds else params.interval
            chunks.append({"from": first.isoformat(), "to": last.isoformat(), "calls": calls, "rows_published": rows})
        return {**reported(run), "interval": _interval(params, cut), "chunks": chunks}


def preview_backfill(params: BackfillParams) -> dict[str, object]:
    """What a backfill would do: see `preview`, and the chunks with the calls that are missing in each."""

    def more(run: Run) -> Mapping[str, object]:
        cut = plan_chunks(run, params)
        chunks = [{"from": c.start.isoformat(), "to": c.end.isoformat(), "calls": c.calls} for c in cut.chunks]
        return {
            "interval": _interval(params, cut),
            "chunks": chunks,
            "notes": [*run.report.notes, *_differences(params, cut)],
        }

    return preview(params, more)


def plan_chunks(run: Run, params: BackfillParams) -> ChunkPlan:
    """The chunks of what is missing now."""
    return cut_interval(
        run.planning_sources,
        run.identity,
        run.prompt_versions,
        run.config.knowledge,
        params.scope(),
        chunk_days=params.chunk_days,
        chunk_calls=params.chunk_calls,
    )


@contextmanager
def _turns(run: Run, wait_s: float) -> Iterator[Turn]:
    """What to hold for a step of the work: the lock, given back in between where this writer may wait for it again."""
    owner = "lorestream backfill"
    if wait_s:
        yield lambda: run.writing(owner, wait_s)
    else:
        with run.writing(owner):
            yield nullcontext


def _interval(params: BackfillParams, cut: ChunkPlan) -> dict[str, object]:
    start, end = params.interval
    found = [None if t is None else t.isoformat() for t in (cut.start, cut.end)]
    return {
        "asked": [start.isoformat(), end.isoformat()],
        "sealed_in_it": found,
        "partitions": cut.partitions,
        "calls": cut.calls,
        "answered_before": cut.answered,
    }


def _differences(params: BackfillParams, cut: ChunkPlan) -> list[str]:
    """How what is done differs from what was asked for."""
    start, end = params.interval
    if cut.start is None or cut.end is None:
        sealed = "none at all" if cut.first is None else f"those that there are from {cut.first} to {cut.last}"
        return [f"no partition was sealed in [{start}, {end}), {sealed}: nothing to do"]
    notes = []
    if (cut.start, cut.end) != (start, end):
        notes.append(f"[{start}, {end}) was narrowed to [{cut.start}, {cut.end}): only there were partitions sealed")
    if cut.answered:
        notes.append(f"{cut.answered} of {cut.calls} calls in it were answered before and are not made again")
    return notes


def _say(run: Run, params: BackfillParams, cut: ChunkPlan) -> None:
    """Print the plan, and keep in the report how it differs from what was asked for."""
    notes = _differences(params, cut)
    run.report.notes += notes
    for note in notes:
        log.info("%s", note)
    log.info(
        "plan: %d missing calls for %d partitions and the items in them, in %d chunks",
        cut.calls - cut.answered,
        cut.partitions,
        len(cut.chunks),
    )
    for chunk in cut.chunks[:_SHOWN_CHUNKS]:
        log.info("  [%s, %s): %d calls", chunk.start, chunk.end, chunk.calls)
    if len(cut.chunks) > _SHOWN_CHUNKS:
        log.info("  and %d more", len(cut.chunks) - _SHOWN_CHUNKS)
