"""The event log as groups see it: which user met which item of the catalogue, by sign, before an instant."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from zlib import crc32

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from warehouse.schemas import BEHAVIOURS
from warehouse.sql import connect, parquet_view

Codes = NDArray[np.int32]


@dataclass(frozen=True)
class Pairs:
    """Distinct pairs of `users` entities and `items` of the catalogue: codes user [n] and item [n], in that order.

    A pair counts once, however often it was met: a song on repeat is one taste.
    """

    users: int
    items: int
    user: Codes
    item: Codes


@dataclass(frozen=True)
class UserActivity:
    """Users with events of one sign, by id: their `ids` (string), how many such events, and the `last` one's time."""

    ids: pa.Array
    events: NDArray[np.int64]
    last: pa.Array

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: NDArray[np.int64]) -> "UserActivity":
        """The users at `rows`, in that order."""
        return UserActivity(self.ids.take(pa.array(rows)), self.events[rows], self.last.take(pa.array(rows)))

    def without(self, known: pa.Array) -> "UserActivity":
        """The users that are not among `known` ids."""
        is_known = pc.is_in(self.ids, value_set=known).to_numpy(zero_copy_only=False)
        return self.take(np.flatnonzero(~is_known))


class EventLog:
    """Behaviours with items of a catalogue before an instant; `items` are the catalogue's ids, sorted."""

    def __init__(self, con: duckdb.DuckDBPyConnection, items: Sequence[str]) -> None:
        self._con = con
        self.items = items

    def end(self) -> datetime | None:
        """The time of the last event, None without one."""
        last: datetime | None = self._con.sql("SELECT max(ts) AS ts FROM seen").to_arrow_table()["ts"][0].as_py()
        return last

    def activity(self, positive: bool) -> UserActivity:
        """All users with events of the sign."""
        table = self._con.sql(
            "SELECT user_id, count(*) AS events, max(ts) AS last FROM seen WHERE positive = $sign "
            "GROUP BY user_id ORDER BY user_id",
            params={"sign": positive},
        ).to_arrow_table()
        ids, events, last = (_chunk(table.column(name)) for name in ("user_id", "events", "last"))
        return UserActivity(ids, events.to_numpy().astype(np.int64), last)

    def pairs(self, positive: bool, users: pa.Array) -> Pairs:
        """The pairs of these users; their codes are the places in `users`."""
        wanted = pa.table({"user_id": users, "user": pa.array(np.arange(len(users), dtype=np.int32))})
        self._con.register("wanted", wanted)
        found = self._con.sql(
            'SELECT DISTINCT "user", item FROM seen JOIN wanted USING (user_id) WHERE positive = $sign',
            params={"sign": positive},
        ).fetchnumpy()
        self._con.unregister("wanted")
        user, item = (np.asarray(found[name], np.int32) for name in ("user", "item"))
        order = np.lexsort((item, user))
        return Pairs(len(users), len(self.items), user[order], item[order])


@contextmanager
def open_log(
    events: Sequence[Path], positive: str, items: Sequence[str], until: datetime | None = None
) -> Iterator[EventLog]:
    """The log in the Parquet files `events` (BEHAVIOURS), open for the block.

    `positive` is the SQL of the rule that tells positive events from negative ones. `items` are distinct ids, sorted.
    Events at `until` or later are not there, nor are those with other items: nobody could name these in a prompt.
    """
    codes = np.arange(len(items), dtype=np.int32)
    catalogue = pa.table({"item_id": pa.array(items, pa.string()), "item": pa.array(codes)})
    before = "true" if until is None else f"ts < TIMESTAMPTZ '{until.isoformat()}'"
    with connect() as con:
        parquet_view(con, "behaviours", events, BEHAVIOURS)
        con.register("catalogue", catalogue)
        con.execute(
            f"CREATE TEMP VIEW seen AS SELECT user_id, item, ts, ({positive}) AS positive "
            f"FROM behaviours JOIN catalogue USING (item_id) WHERE {before}"
        )
        yield EventLog(con, items)


def parts(sizes: NDArray[np.int64], most: int) -> Iterator[slice]:
    """Consecutive slices whose `sizes` add up to `most` or less each; one that is larger stands alone."""
    start, held = 0, 0
    for place, size in enumerate(sizes.tolist()):
        if place > start and held + size > most:
            yield slice(start, place)
            start, held = place, 0
        held += size
    if start < len(sizes):
        yield slice(start, len(sizes))


def sample(users: UserActivity, max_events: int) -> pa.Array:
    """Ids of all users, or of so many in the order of their hashes that they have at most `max_events` events.

    At least one; stable under new users, which are sampled or not by their own ids.
    """
    if users.events.sum() <= max_events:
        return users.ids
    ids = users.ids.to_pylist()
    order = sorted(range(len(ids)), key=lambda place: (crc32(ids[place].encode()), ids[place]))
    fits = np.cumsum(users.events[order]) <= max_events
    return users.ids.take(pa.array(sorted(order[: max(1, int(fits.sum()))])))


def _chunk(column: pa.ChunkedArray) -> pa.Array:
    """One array of a column; `combine_chunks` gives a chunked one where there is no chunk."""
    whole = column.combine_chunks()
    return whole if isinstance(whole, pa.Array) else pa.concat_arrays([pa.array([], column.type), *whole.chunks])
