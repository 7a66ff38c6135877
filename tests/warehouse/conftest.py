"""Feature rows for the tests of this room."""

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from warehouse.schemas import FEATURES

Build = Callable[..., pa.Table]
Clock = Callable[[int], datetime]


def _at(seconds: int) -> datetime:
    return datetime(2020, 1, 1, tzinfo=UTC) + timedelta(seconds=seconds)


def _rows(table: str, rows: Iterable[dict[str, Any]], dim: int = 2) -> pa.Table:
    lineage = {"status": "ok", "source_digest": "d", "adapter_version": "a", "snapshot_id": "s", "augment_dim": dim}
    filled = []
    for row in rows:
        own = "none" if row.get("augment", ...) is None else "own"
        row = {"augment": [0.5] * dim, "created_at": _at(0), "rung": own, **lineage, **row}
        if table == "user_features":
            row = {"partition_no": 0, **row}
        filled.append(row)
    return pa.Table.from_pylist(filled, schema=FEATURES[table])


@pytest.fixture(scope="session")
def at() -> Clock:
    """Seconds after a fixed moment, as a time in UTC."""
    return _at


@pytest.fixture(scope="session")
def feature_rows() -> Build:
    """`feature_rows(table, rows, dim=2)`: a table in the contract's schema; what a row leaves out gets a default."""
    return _rows
