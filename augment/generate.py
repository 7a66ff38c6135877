"""Generation: pending calls through an engine, their texts written in segments while they are produced.

A segment is one immutable Parquet file; once it exists its calls are paid for and never made again. A killed run
loses at most the texts since the last segment. A prompt that does not fit the engine's context is no call and leaves
nothing: it is asked as soon as there is room for it.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field

from augment.engine.base import Completion, Engine
from augment.engine.vllm import PROMPT_TOO_LONG
from augment.plan import as_requests
from warehouse.errors import LorestreamError
from warehouse.keys import canonical_json
from warehouse.schemas import KNOWLEDGE
from warehouse.store import write_table

log = logging.getLogger("lorestream.generate")


class SegmentConfig(BaseModel, frozen=True, extra="forbid"):
    """When finished texts are put on disk: at whichever limit is reached first."""

    rows: int = Field(256, ge=1)
    # A slow model finishes few texts a minute; what is paid for should not wait for a full segment.
    max_seconds: float = Field(60.0, gt=0)


class Status(StrEnum):
    """Whether a text may become a vector."""

    OK = "ok"
    EMPTY = "empty"
    TRUNCATED = "truncated"


class UnansweredCalls(LorestreamError):
    """An engine ended without answering every call it was given."""

    def __init__(self, missing: int, calls: int) -> None:
        self.missing, self.calls = missing, calls
        super().__init__(
            f"The engine left {missing} of {calls} calls unanswered. "
            "What it answered is stored; run again for the rest."
        )


@dataclass(frozen=True)
class GenerationReport:
    """What generation did; `seconds` includes loading the model, `tokens_per_s` does not.

    `too_long` prompts are no calls and stay pending; the longest of them has `longest_prompt` tokens.
    """

    calls: int = 0
    calls_by_kind: dict[str, int] = field(default_factory=dict)
    too_long: int = 0
    longest_prompt: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    seconds: float = 0.0
    tokens_per_s: float = 0.0
    statuses: dict[str, int] = field(default_factory=dict)
    segments: int = 0


Progress = Callable[[int, int, int, float], None]
"""Called with requests done, requests in all, output tokens so far and those per second since the first text."""


def status_of(completion: Completion) -> Status:
    """`ok`, or why the text is not encoded: nothing in it, or cut at the token limit."""
    if not completion.text.strip():
        return Status.EMPTY
    return Status.TRUNCATED if completion.finish_reason != "stop" else Status.OK


def generate(
    pending: pa.Table,
    prompt_versions: Mapping[str, str],
    engine: Engine,
    folder: Path,
    run: str,
    config: SegmentConfig,
    clock: Callable[[], datetime],
    progress: Progress | None = None,
) -> GenerationReport:
    """Texts of all `pending` calls whose prompts fit, stored under `folder` as `<run>-<n>.parquet`.

    `pending` and `prompt_versions` come from `plan.pending_requests`. When the engine fails midway, the finished
    texts are stored before its error is raised. Raises UnansweredCalls when the engine skips some.
    """
    if not pending.num_rows:
        return GenerationReport()
    writer = _SegmentWriter(engine, prompt_versions, folder, run, config, clock)
    started = time.monotonic()
    first: float | None = None
    too_long: dict[str, int] = {}
    try:
        for completion in engine.generate(as_requests(pending)):
            now = time.monotonic()
            first = first or now
            if completion.finish_reason == PROMPT_TOO_LONG:
                too_long[completion.request_key] = completion.tokens_in
            else:
                writer.add(completion)
            if progress:
                done, rate = writer.calls + len(too_long), writer.tokens_out / max(now - first, 1e-3)
                progress(done, pending.num_rows, writer.tokens_out, rate)
    finally:
        writer.flush()
    unanswered = pending.num_rows - writer.calls - len(too_long)
    if unanswered:
        raise UnansweredCalls(unanswered, pending.num_rows)
    ended = time.monotonic()
    generating = getattr(engine, "generating_seconds", ended - started)
    refused = pc.is_in(pending.column("request_key"), value_set=pa.array(too_long, pa.string()))
    made = pc.value_counts(pending.column("kind").filter(pc.invert(refused)))
    return GenerationReport(
        calls=writer.calls,
        calls_by_kind={row["values"]: row["counts"] for row in made.to_pylist()},
        too_long=len(too_long),
        longest_prompt=max(too_long.values(), default=0),
        tokens_in=writer.tokens_in,
        tokens_out=writer.tokens_out,
        seconds=round(ended - started, 2),
        tokens_per_s=round(writer.tokens_out / max(generating, 1e-3), 1),
        statuses=dict(writer.statuses),
        segments=writer.segments,
    )


class _SegmentWriter:
    """Collects completions into rows of `knowledge` and writes a file at every limit."""

    def __init__(
        self,
        engine: Engine,
        prompt_versions: Mapping[str, str],
        folder: Path,
        run: str,
        config: SegmentConfig,
        clock: Callable[[], datetime],
    ) -> None:
        self._model = f"{engine.model}@{engine.revision}"
        self._verification = engine.verification
        self._sampling = canonical_json(dict(engine.sampling)).decode()
        self._versions, self._folder, self._run = prompt_versions, folder, run
        self._config, self._clock = config, clock
        self._rows: list[dict[str, object]] = []
        self._since = time.monotonic()
        self.calls = self.tokens_in = self.tokens_out = self.segments = 0
        self.statuses: Counter[str] = Counter()

    def add(self, completion: Completion) -> None:
        status = status_of(completion)
        self._rows.append(
            {
                "request_key": completion.request_key,
                "text": completion.text,
                "status": str(status),
                "finish_reason": completion.finish_reason,
                "tokens_in": completion.tokens_in,
                "tokens_out": completion.tokens_out,
                "model": self._model,
                "sampling": self._sampling,
                "verification": self._verification,
                "pool_id": completion.pool_id,
                "prompt_version": self._versions[completion.request_key],
                "drafted": completion.drafted,
                "accepted": completion.accepted,
                "relaxed": completion.relaxed,
                "steps": completion.steps,
                "created_at": self._clock(),
            }
        )
        self.calls += 1
        self.tokens_in += completion.tokens_in
        self.tokens_out += completion.tokens_out
        self.statuses[str(status)] += 1
        if len(self._rows) >= self._config.rows or time.monotonic() - self._since >= self._config.max_seconds:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            path = self._folder / f"{self._run}-{self.segments:05d}.parquet"
            write_table(path, pa.Table.from_pylist(self._rows, KNOWLEDGE))
            log.info("segment %s: %d texts, %d output tokens so far", path.name, len(self._rows), self.tokens_out)
            self.segments += 1
            self._rows = []
        self._since = time.monotonic()
