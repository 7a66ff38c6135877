"""Generation: pending calls through an engine, their texts written in segments while they are produced.

A segment is one immutable Parquet file; once it exists its calls are paid for and never made again. A killed run
loses at most the texts since the last segment. A prompt that does not fit the engine's context is no call and leaves
nothing: it is asked as soon as there is room for it.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import pyarrow as pa
from pydantic import BaseModel, Field

from augment.budget import Meter
from augment.engine.base import Completion, Engine, Request, sampling_of_attempt
from augment.engine.vllm import PROMPT_TOO_LONG
from augment.pending import as_requests
from augment.quality.gate import QualityGate, Verdict
from augment.quality.status import Status
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

    `calls` counts requests, `statuses` the texts in use; `retries` are second attempts beside them, `mended` of which
    made a text usable. `waiting` calls were not made: the budget was spent. `too_long` prompts are no calls and
    stay pending; the longest of them has `longest_prompt` tokens.
    """

    calls: int = 0
    calls_by_kind: dict[str, int] = field(default_factory=dict)
    retries: int = 0
    mended: int = 0
    waiting: int = 0
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


def generate(
    pending: pa.Table,
    engine: Engine,
    folder: Path,
    run: str,
    config: SegmentConfig,
    clock: Callable[[], datetime],
    *,
    meter: Meter,
    gate: QualityGate,
    stored: Callable[[], None] = lambda: None,
    progress: Progress | None = None,
) -> GenerationReport:
    """Texts of the `pending` calls (see `augment.pending`) that `meter` allows, in `folder` as `<run>-<n>.parquet`.

    Every text is judged by `gate`; what may come out better is asked once more, after all others. Both attempts are
    kept. `stored` is called after every segment. When the engine fails midway, the finished texts are stored before its
    error is raised. Raises UnansweredCalls when the engine skips some.
    """
    if not pending.num_rows:
        return GenerationReport()
    calls = _Calls(pending, engine, meter, gate, _SegmentWriter(engine, folder, run, config, clock, stored))
    started = time.monotonic()
    try:
        calls.make(as_requests(pending), progress)
        retried = [replace(request, attempt=1) for request in calls.again]
        calls.make(iter(retried), progress)
    finally:
        calls.writer.flush()
        meter.close()
    ended = time.monotonic()
    writer = calls.writer
    generating = getattr(engine, "generating_seconds", ended - started)
    return GenerationReport(
        calls=calls.answered,
        calls_by_kind=dict(calls.kinds),
        retries=calls.retries,
        mended=calls.mended,
        waiting=pending.num_rows - calls.answered - len(calls.too_long),
        too_long=len(calls.too_long),
        longest_prompt=max(calls.too_long.values(), default=0),
        tokens_in=writer.tokens_in,
        tokens_out=writer.tokens_out,
        seconds=round(ended - started, 2),
        tokens_per_s=round(writer.tokens_out / max(generating, 1e-3), 1),
        statuses={status: count for status, count in calls.statuses.items() if count},
        segments=writer.segments,
    )


class _Calls:
    """The calls of one generation: handed out as the meter allows, judged and written as they come back."""

    def __init__(
        self, pending: pa.Table, engine: Engine, meter: Meter, gate: QualityGate, writer: "_SegmentWriter"
    ) -> None:
        names = ("request_key", "kind", "prompt_version")
        columns = (pending.column(name).to_pylist() for name in names)
        self._about = {key: (kind, version) for key, kind, version in zip(*columns, strict=True)}
        self._engine, self._meter, self._gate, self.writer = engine, meter, gate, writer
        self._under_way: dict[str, Request] = {}
        self._first: float | None = None
        self._verdicts: dict[str, Status] = {}
        self.again: list[Request] = []
        self.too_long: dict[str, int] = {}
        self.kinds: Counter[str] = Counter()
        self.statuses: Counter[str] = Counter()
        self.answered = self.retries = self.mended = 0

    def make(self, requests: Iterator[Request], progress: Progress | None) -> None:
        """Make these calls until the meter stops; it may go on once what is under way has written less than it may."""
        waiting = deque[Request]()
        while True:
            for completion in self._engine.generate(self._allowed(requests, waiting)):
                self._take_in(completion)
                if progress:
                    rate = self.writer.tokens_out / max(time.monotonic() - (self._first or 0.0), 1e-3)
                    progress(self.answered + len(self.too_long), len(self._about), self.writer.tokens_out, rate)
            if self._under_way:
                raise UnansweredCalls(len(self._under_way), self.answered + len(self._under_way))
            if not waiting:
                return
            if not self._meter.take():
                return
            self._meter.give_back()

    def _allowed(self, requests: Iterator[Request], waiting: deque[Request]) -> Iterator[Request]:
        while True:
            request = waiting.popleft() if waiting else next(requests, None)
            if request is None:
                return
            if not self._meter.take():
                waiting.append(request)
                return
            self._under_way[request.request_key] = request
            yield request

    def _take_in(self, completion: Completion) -> None:
        self._first = self._first or time.monotonic()
        request = self._under_way.pop(completion.request_key)
        kind, version = self._about[request.request_key]
        if completion.finish_reason == PROMPT_TOO_LONG:
            self._meter.give_back()
            self.too_long[request.request_key] = completion.tokens_in
            return
        self._meter.settle(completion.tokens_out)
        verdict = self._gate.judge(kind, request.prompt, completion.text, completion.finish_reason)
        self.writer.add(completion, version, request.attempt, verdict)
        if request.attempt:
            self.retries += 1
            if verdict.status is Status.OK:
                self.mended += 1
                self.statuses[str(self._verdicts[request.request_key])] -= 1
                self.statuses[str(Status.OK)] += 1
            return
        self.answered += 1
        self.kinds[kind] += 1
        self.statuses[str(verdict.status)] += 1
        if self._gate.retryable(verdict.status):
            self._verdicts[request.request_key] = verdict.status
            self.again.append(request)


class _SegmentWriter:
    """Collects completions into rows of `knowledge` and writes a file at every limit."""

    def __init__(
        self,
        engine: Engine,
        folder: Path,
        run: str,
        config: SegmentConfig,
        clock: Callable[[], datetime],
        stored: Callable[[], None],
    ) -> None:
        self._engine, self._folder, self._run = engine, folder, run
        self._config, self._clock, self._stored = config, clock, stored
        self._rows: list[dict[str, object]] = []
        self._since = time.monotonic()
        self.tokens_in = self.tokens_out = self.segments = 0

    def add(self, completion: Completion, prompt_version: str, attempt: int, verdict: Verdict) -> None:
        sampling = _sampling(self._engine, attempt)
        self._rows.append(
            {
                "request_key": completion.request_key,
                "text": completion.text,
                "status": str(verdict.status),
                "finish_reason": completion.finish_reason,
                "tokens_in": completion.tokens_in,
                "tokens_out": completion.tokens_out,
                "model": f"{self._engine.model}@{self._engine.revision}",
                "sampling": canonical_json(sampling).decode(),
                "verification": self._engine.verification,
                "pool_id": completion.pool_id,
                "prompt_version": prompt_version,
                "drafted": completion.drafted,
                "accepted": completion.accepted,
                "relaxed": completion.relaxed,
                "steps": completion.steps,
                "attempt": attempt,
                "reason": verdict.reason,
                "created_at": self._clock(),
            }
        )
        self.tokens_in += completion.tokens_in
        self.tokens_out += completion.tokens_out
        if len(self._rows) >= self._config.rows or time.monotonic() - self._since >= self._config.max_seconds:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            path = self._folder / f"{self._run}-{self.segments:05d}.parquet"
            write_table(path, pa.Table.from_pylist(self._rows, KNOWLEDGE))
            log.info("segment %s: %d texts, %d output tokens so far", path.name, len(self._rows), self.tokens_out)
            self.segments += 1
            self._rows = []
            self._stored()
        self._since = time.monotonic()


def _sampling(engine: Engine, attempt: int) -> dict[str, object]:
    """What the `attempt`-th answer to a call was sampled with."""
    sampling = dict(engine.sampling)
    if attempt:
        temperature, seed = float(str(sampling.get("temperature", 0.0))), int(str(sampling.get("seed", 0)))
        sampling["temperature"], sampling["seed"] = sampling_of_attempt(temperature, seed, attempt)
    return sampling
