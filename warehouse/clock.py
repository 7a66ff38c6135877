"""Which feature row counts when, by either clock, as SQL that the Python join and the macros share.

By the `event` clock a row counts from `valid_from` on, whenever it was made: training sets are rebuilt so. By the
`known` clock it counts once it was also created: that is what serving had. Both are exclusive of `valid_from` itself,
so a row built from an event never meets that event (DESIGN section 3, rules 4 and 5).
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Literal

import pyarrow as pa

from warehouse.schemas import TIMESTAMP

Clock = Literal["event", "known"]

ENTITY = {"user_features": "user_id", "item_features": "item_id"}

# What decides between rows of one entity and one `valid_from`; the greatest counts.
_TIES = {"user_id": ("created_at", "partition_no", "snapshot_id"), "item_id": ("created_at", "snapshot_id")}


def tie_columns(entity: str) -> tuple[str, ...]:
    """Columns that tell which of two rows with one entity and one `valid_from` is the newer, the weightiest first."""
    return _TIES[entity]


def newest(entity: str) -> str:
    """SQL order of rows with one entity and one `valid_from`, the row that counts first."""
    return ", ".join(f"{column} DESC" for column in _TIES[entity])


def visible_us(clock: Clock) -> str:
    """SQL for the first microsecond since 1970 in which a row is seen; numbers mean UTC in every session."""
    after_its_events = "epoch_us(valid_from) + 1"
    return after_its_events if clock == "event" else f"greatest({after_its_events}, epoch_us(created_at))"


def reigning_rows(source: str, entity: str, columns: Sequence[str], clock: Clock, key: str | None = None) -> str:
    """SQL for the rows of `source` that are the newest visible one at some moment, with their `visible_us`.

    Of each entity (or `key`, a column that stands for it) a row reigns from its `visible_us` to that of the next, so
    an as-of join on that column alone finds the newest row seen. Knowledge of an old moment that was made late becomes
    visible under a newer one and never reigns: only rows that raise the running maximum of `valid_from` do.
    """
    key, visible = key or entity, visible_us(clock)
    window = f"PARTITION BY {key} ORDER BY {visible}, valid_from, {', '.join(_TIES[entity])}"
    # Of rows that become visible together the last one is the newest.
    reigns = f"lead({visible}) OVER ({window}) IS DISTINCT FROM {visible}"
    if clock == "known":
        reigns += f" AND valid_from >= max(valid_from) OVER ({window} ROWS UNBOUNDED PRECEDING)"
    return f"SELECT {', '.join((key, *columns))}, {visible} AS visible_us FROM {source} QUALIFY {reigns}"


def instant_us(moment: datetime) -> int:
    """Microseconds since 1970 of a moment; without a zone it is in UTC."""
    aware = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment
    return int(pa.scalar(aware, TIMESTAMP).cast(pa.int64()).as_py())
