"""Reading a warehouse from Python: open, join by time, tables. Needs pyarrow and duckdb only.

import lorestream
w = lorestream.open("path")
train = w.join(impressions, user="user_id", item="item_id", ts="ts").to_pandas()
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, get_args

from warehouse.cache import Cache
from warehouse.clock import ENTITY, Clock
from warehouse.errors import UsageError, WarehouseNotFound
from warehouse.explain import explain_row
from warehouse.export.tables import Format, export_snapshot
from warehouse.frame import Frame, as_arrow
from warehouse.join import Fill, asof_join
from warehouse.ledger import FOLDER as LEDGER_FOLDER
from warehouse.objects import FsspecObjects, is_url
from warehouse.schemas import FEATURES
from warehouse.snapshot import MANIFEST_PATH, Manifest, Snapshot, read_manifest, require_public
from warehouse.store import read_table


def open(path: str | Path, snapshot: str | None = None, cache: str | Path | None = None) -> "Warehouse":
    """The warehouse at `path` as it is now, reading `snapshot` or else the current one.

    What it returns does not change while a writer publishes: open again to see newer snapshots. `path` may be the URL
    of a store (`store` in the configuration), such as s3://bucket/warehouse; the snapshot's files are then copied to
    the folder `cache` (default: one in ~/.cache/lorestream), each once.
    Raises WarehouseNotFound when there is none, UsageError when nothing was published or the snapshot is unknown,
    CorruptWarehouse when the manifest is lost or damaged.
    """
    copied = None
    if is_url(path):
        copied = Cache(str(path), FsspecObjects(str(path)), None if cache is None else Path(cache))
    root = Path(path) if copied is None else copied.refresh()
    if not (root / MANIFEST_PATH).is_file() and not (root / LEDGER_FOLDER).is_dir():
        raise WarehouseNotFound(str(path))
    manifest = read_manifest(root)
    chosen = manifest.current_snapshot() if snapshot is None else manifest.get(snapshot)
    if chosen is None:
        raise UsageError(f"The warehouse {path} has published nothing yet. Finish a `lorestream run` first.")
    opened = Warehouse(root, manifest, chosen, copied)
    opened._choose(None)
    return opened


@dataclass(frozen=True)
class Warehouse:
    """A warehouse open for reading, pinned to one snapshot. It holds no file and no lock open."""

    root: Path
    manifest: Manifest
    snapshot: Snapshot
    # Where its files come from when they are first read, if they lie in a store.
    cache: Cache | None = None

    @property
    def current_snapshot(self) -> str:
        """Id of the snapshot that is read unless a call names another."""
        return self.snapshot.snapshot_id

    def snapshots(self) -> list[Snapshot]:
        """All snapshots there were when the warehouse was opened, oldest first; retired ones are left out."""
        return list(self.manifest.listed)

    def join(
        self,
        impressions: object,
        user: str | None = "user_id",
        item: str | None = "item_id",
        ts: str = "ts",
        clock: Clock = "event",
        snapshot: str | None = None,
        fill: Fill = "zeros",
    ) -> Frame:
        """The impressions, same rows in the same order, with what there is to know of user and item before `ts`.

        New columns, for `user` and likewise for `item`: user_augment (list<float32>, see `fill`), has_user_augment
        (bool), user_valid_from and user_rung (null when there was no row yet). The match is the newest row with
        valid_from < ts, so no row sees its own event or a later one. `clock` says which rows there are:

        - event: all of the snapshot, whenever they were made; this is how training sets are rebuilt
        - known: those with created_at <= ts, which is what serving had at that moment. A retrained adapter makes
          every row anew, so to look behind its `created_at` name a `snapshot` from before it.

        `impressions`: a pyarrow table, pandas or polars frame, or DuckDB relation. `user`, `item`, `ts` name its
        columns; None for `user` or `item` leaves that side out. Ids are strings or whole numbers; times are
        timestamps, in UTC if they have no zone. `fill`: what stands where there is no vector, `zeros` or `null`.
        Raises UsageError for a column that is absent, of another type, or already there.
        """
        for name, given, known in (("clock", clock, Clock), ("fill", fill, Fill)):
            if given not in get_args(known):
                raise UsageError(f"join({name}={given!r}) is unknown; it is one of {', '.join(get_args(known))}.")
        if user is None and item is None:
            raise UsageError("join() was told to leave out both sides. Name the user or the item column.")
        chosen, rows = self._choose(snapshot), as_arrow(impressions)
        for table, column in (("user_features", user), ("item_features", item)):
            if column is not None:
                rows = asof_join(
                    rows,
                    chosen.files(self.root, table),
                    entity=ENTITY[table],
                    on=column,
                    ts=ts,
                    dim=chosen.augment_dim(table),
                    fill=fill,
                    clock=clock,
                )
        return Frame(rows)

    def table(self, name: str, columns: Sequence[str] | None = None, snapshot: str | None = None) -> Frame:
        """All rows of the public table `name` (user_features or item_features), or only some `columns` of them.

        Raises UsageError for a table or column that does not exist.
        """
        require_public([name])
        for column in columns or ():
            if column not in FEATURES[name].names:
                raise UsageError(f"`{name}` has no column `{column}`; it has {', '.join(FEATURES[name].names)}.")
        files = self._choose(snapshot).files(self.root, name)
        return Frame(read_table(files, FEATURES[name], columns, grown=True))

    def explain(
        self,
        ts: datetime | str,
        user: str | None = None,
        item: str | None = None,
        clock: Clock = "event",
        snapshot: str | None = None,
    ) -> dict[str, Any]:
        """What made the value that `join` gives a user, or an item, at the moment `ts`: see `warehouse.explain`.

        Raises UsageError unless exactly one of `user` and `item` is named, and for a `ts` that is no moment.
        """
        if (user is None) == (item is None):
            raise UsageError("explain() tells of one user or one item: name exactly one of them.")
        entity, entity_id = ("item_id", item) if user is None else ("user_id", user)
        assert entity_id is not None
        return explain_row(self.root, self.manifest, self._choose(snapshot), entity, entity_id, _moment(ts), clock)

    def export(
        self, to: Format, out: str | Path, at: datetime | None = None, snapshot: str | None = None
    ) -> dict[str, object]:
        """What was written to the folder `out` for another library: fuxictr, recbole, npy, easyrec or feast.

        `at` is the end of the training data: only knowledge from before it is exported, in files named by it.
        Raises UsageError for an unknown format, an id that it cannot hold, or when there is no vector to export.
        """
        return export_snapshot(self.root, self._choose(snapshot), to, Path(out), at)

    def _choose(self, snapshot: str | None) -> Snapshot:
        chosen = self.snapshot if snapshot is None else self.manifest.get(snapshot)
        if self.cache is not None:
            self.cache.fetch(chosen)
        return chosen


def _moment(given: datetime | str) -> datetime:
    try:
        moment = datetime.fromisoformat(given) if isinstance(given, str) else given
    except ValueError:
        moment = None
    if not isinstance(moment, datetime):
        raise UsageError(
            f"ts = {given!r} is no moment. Give a datetime, or text such as 2025-06-01 or 2025-06-01T12:00:00+00:00."
        )
    return moment
