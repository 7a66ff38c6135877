"""Spending within a budget: at most so many calls and output tokens per period, whatever is interrupted.

What a period has spent stands in `spending/<period>.json`. A call is reserved on disk before it is made, with the most
tokens that it may write, and settled when its text has come; what a killed run had reserved counts as spent in full.
So a period's calls and tokens never pass the budget, and a crash can only make them fewer.
"""

from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, Field, model_validator

from warehouse.errors import CorruptWarehouse
from warehouse.store import read_json, write_json

FOLDER = "spending"
SCHEMA_VERSION = 1

# Calls reserved by one write to disk: a killed run loses no more than these and what was under way.
_BLOCK = 64


class BudgetConfig(BaseModel, frozen=True, extra="forbid"):
    """How much may be spent per period of the calendar (UTC), and what decides who comes first."""

    # None: as many as are missing.
    max_calls: int | None = Field(None, ge=0)
    max_output_tokens: int | None = Field(None, ge=0)
    # Weeks begin on Monday.
    period: Literal["day", "week", "month"] = "day"
    # Traffic is counted in so many days before the newest event.
    traffic_days: float = Field(30.0, gt=0)
    # Optional Parquet or CSV with columns entity (user or item), id, score: the CTR model's predictions. Entities that
    # it is unsure of come first (CoReLLa's finding).
    scores: Path | None = None

    @model_validator(mode="after")
    def _scores_order_a_budget(self) -> Self:
        if self.scores is not None and not self.limited:
            raise ValueError(
                f"scores = {str(self.scores)!r} says who comes first, and without max_calls or max_output_tokens all "
                "come. Set one of these, or leave it out"
            )
        return self

    @property
    def limited(self) -> bool:
        return self.max_calls is not None or self.max_output_tokens is not None

    def period_of(self, now: datetime) -> str:
        """The name of the period that `now` (UTC) is in: 2026-11-20, 2026-W47 or 2026-11."""
        if self.period == "week":
            year, week, _ = now.isocalendar()
            return f"{year}-W{week:02d}"
        return f"{now:%Y-%m-%d}" if self.period == "day" else f"{now:%Y-%m}"


@dataclass(frozen=True)
class Spending:
    """What a period has spent: settled calls with their tokens, and calls reserved but not settled."""

    calls: int = 0
    tokens: int = 0
    open_calls: int = 0
    open_tokens: int = 0

    def closed(self) -> "Spending":
        """The same once nobody is left to settle: what was reserved is spent."""
        return Spending(self.calls + self.open_calls, self.tokens + self.open_tokens)


def read_spending(root: Path, period: str) -> Spending:
    """What `period` has spent in the warehouse `root`. Raises CorruptWarehouse for a damaged record."""
    path = root / FOLDER / f"{period}.json"
    if not path.exists():
        return Spending()
    found = read_json(path, "spending record", SCHEMA_VERSION)
    values = {name: found.get(name) for name in Spending.__dataclass_fields__}
    if not all(isinstance(value, int) and value >= 0 for value in values.values()):
        raise CorruptWarehouse(
            f"The spending record {path} holds {values}, which are no counts. Restore it from a backup, or remove it: "
            "then the period's spending counts from nothing."
        )
    return Spending(**values)  # type: ignore[arg-type]


class Meter:
    """Hands out the calls that a budget still allows. Make it under the writer lock: it is the only one to spend.

    Without limits nothing is written. `most_tokens` is what one call may write at most.
    """

    def __init__(self, root: Path, config: BudgetConfig, now: datetime, most_tokens: int) -> None:
        self._config, self._most = config, most_tokens
        self.period = config.period_of(now)
        self._path = root / FOLDER / f"{self.period}.json"
        # What an earlier run reserved and never settled was perhaps paid for.
        self._spent = read_spending(root, self.period).closed()
        self._reserved = 0
        self._under_way = 0

    @property
    def calls_left(self) -> int | None:
        """Calls that may still be made, those under way aside; None without a limit."""
        limit = self._config.max_calls
        return None if limit is None else max(limit - self._spent.calls - self._under_way, 0)

    @property
    def tokens_left(self) -> int | None:
        """Output tokens that may still be written when every call under way writes all it may; None without a limit."""
        limit = self._config.max_output_tokens
        return None if limit is None else max(limit - self._spent.tokens - self._under_way * self._most, 0)

    def take(self) -> bool:
        """Whether one more call may be made now; if so, it is reserved."""
        calls, tokens = self.calls_left, self.tokens_left
        if calls == 0 or (tokens is not None and tokens < self._most):
            return False
        self._under_way += 1
        if self._config.limited and self._under_way > self._reserved:
            room = [_BLOCK]
            if calls is not None:
                room.append(calls)
            if tokens is not None:
                room.append(tokens // self._most)
            self._reserved = self._under_way - 1 + min(room)
            self._write()
        return True

    def settle(self, tokens: int) -> None:
        """A call that was taken has come back with so many output tokens."""
        assert self._under_way > 0, "settled more calls than were taken"
        self._under_way -= 1
        self._reserved -= 1
        self._spent = replace(self._spent, calls=self._spent.calls + 1, tokens=self._spent.tokens + tokens)

    def give_back(self) -> None:
        """A call that was taken turned out not to be made."""
        assert self._under_way > 0, "gave back more calls than were taken"
        self._under_way -= 1

    def close(self) -> None:
        """Write down what was spent. Calls still under way count in full: nobody knows what became of them."""
        if self._config.limited:
            self._reserved = self._under_way
            self._write()

    def _write(self) -> None:
        open_calls = self._reserved
        record = replace(self._spent, open_calls=open_calls, open_tokens=open_calls * self._most)
        write_json(self._path, {"schema_version": SCHEMA_VERSION, "period": self.period, **asdict(record)})
