"""Reading a warehouse from Python: open, join by time, tables. Needs pyarrow and duckdb only.

import lorestream
w = lorestream.open("path")
train = w.join(impressions, user="user_id", item="item_id", ts="ts").to_pandas()
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from warehouse.errors import UsageError, WarehouseNotFound
from warehouse.frame import Frame, as_arrow
from warehouse.join import ENTITY, Fill, asof_join
from warehouse.ledger import FOLDER as LEDGER_FOLDER
from warehouse.mirror import Cache
from warehouse.objects import FsspecObjects, is_url
from warehouse.schemas import FEATURES
from warehouse.snapshot import MANIFEST_PATH, Manifest, Snapshot, read_manifest, require_public
from warehouse.store import read_table

Clock = Literal["event", "known"]


def open(path: str | Path, snapshot: str | None = None, cache: str | Path | None = None) -> "Warehouse":
    """The warehouse at `path` as it is now, reading `snapshot` or else the current one.

    What it returns does not change while a writer publishes: open again to see newer snapshots. `path` may be the URL
    of a mirror (`lorestream mirror`), such as s3://bucket/warehouse; the snapshot's files are then copied to the folder
    `cache` (default: one in ~/.cache/lorestream), each once.
    Raises WarehouseNotFound when there is none, UsageError when nothing was published or the snapshot is unknown,
    CorruptWarehouse when the manifest is lost or damaged.
    """
    mirror = None
    if is_url(path):
        mirror = Cache(str(path), FsspecObjects(str(path)), None if cache is None else Path(cache))
    root = Path(path) if mirror is None else mirror.refresh()
    if not (root / MANIFEST_PATH).is_file() and not (root / LEDGER_FOLDER).is_dir():
        raise WarehouseNotFound(str(path))
    manifest = read_manifest(root)
    chosen = manifest.current_snapshot() if snapshot is None else manifest.get(snapshot)
    if chosen is None:
        raise UsageError(f"The warehouse {path} has published nothing yet. Finish a `lorestream run` first.")
    opened = Warehouse(root, manifest, chosen, mirror)
    opened._choose(None)
    return opened


@dataclass(frozen=True)
class Warehouse:
    """A warehouse open for reading, pinned to one snapshot. It holds no file and no lock open."""

    root: Path
    manifest: Manifest
    snapshot: Snapshot
    # Where its files come from when they are first read, if it is a mirror.
    mirror: Cache | None = None

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
        """The impressions, same rows in the same order, with what was known of user and item just before `ts`.

        New columns, for `user` and likewise for `item`: user_augment (list<float32>, see `fill`), has_user_augment
        (bool), user_valid_from and user_rung (null when nothing was valid yet). The match is the newest row with
        valid_from < ts, so no row sees its own event or a later one.

        `impressions`: a pyarrow table, pandas or polars frame, or DuckDB relation. `user`, `item`, `ts` name its
        columns; None for `user` or `item` leaves that side out. Ids are strings or whole numbers; times are
        timestamps, in UTC if they have no zone. `fill`: what stands where there is no vector, `zeros` or `null`.
        Raises UsageError for a column that is absent, of another type, or already there.
        """
        if clock != "event":
            raise UsageError(f"join(clock={clock!r}) is not there yet; only clock='event' is.")
        if fill not in get_args(Fill):
            raise UsageError(f"join(fill={fill!r}) is unknown; it is one of {', '.join(get_args(Fill))}.")
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

    def _choose(self, snapshot: str | None) -> Snapshot:
        chosen = self.snapshot if snapshot is None else self.manifest.get(snapshot)
        if self.mirror is not None:
            self.mirror.fetch(chosen)
        return chosen
