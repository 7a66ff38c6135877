"""The backfill flow: a refresh whose calls are limited to an interval of event time. Restartable like any run."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from prefect import flow
from pydantic import model_validator

from augment.scope import Scope
from flows.refresh import RefreshParams, run_all


class BackfillParams(RefreshParams, frozen=True):
    """A refresh that asks only about partitions sealed in [start, end) and the items in them.

    Times without a zone are UTC.
    """

    start: datetime
    end: datetime

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        scope = self.scope()
        assert scope.start is not None
        assert scope.end is not None
        if scope.start >= scope.end:
            raise ValueError(f"start {self.start} is not before end {self.end}: the interval [start, end) is empty")
        return self

    def scope(self) -> Scope:
        start, end = (t if t.tzinfo else t.replace(tzinfo=UTC) for t in (self.start, self.end))
        return Scope(limit_users=self.limit_users, start=start, end=end)


@flow(name="backfill", persist_result=False)
def backfill(
    start: datetime,
    end: datetime,
    config: Path = Path("lorestream.toml"),
    overrides: Mapping[str, Any] | None = None,
    limit_users: int | None = None,
) -> dict[str, object]:
    """What one backfill did (see `RunReport`); the parameters are those of BackfillParams, flat."""
    params = BackfillParams(
        start=start, end=end, config=config, overrides=dict(overrides or {}), limit_users=limit_users
    )
    return run_all(params, "lorestream backfill")
