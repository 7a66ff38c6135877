"""Publication of the public tables: new immutable files, then one atomic replacement of the manifest.

Callers hold the writer lock. Nothing that fails here moves the pointer, and readers see the old snapshot or the new.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from dataclasses import replace as with_changes
from datetime import datetime
from pathlib import Path

import pyarrow as pa

from warehouse import catalog
from warehouse.fitness import ChecksConfig, Examined, UnfitFeatures, check_whole, rung_counts, visible_rows
from warehouse.keys import digest
from warehouse.retention import relist, retire
from warehouse.schemas import FEATURES, FEATURES_CONTRACT, Rung
from warehouse.snapshot import Manifest, Snapshot, read_manifest, require_public, write_manifest
from warehouse.store import FileRef, TableWriter

__all__ = ["UnfitFeatures", "publish", "publish_files", "rollback", "snapshots"]


def publish(
    root: Path,
    add: Mapping[str, pa.Table | Iterable[pa.Table]],
    *,
    replace: bool,
    now: datetime,
    lineage: Mapping[str, object],
    checks: ChecksConfig | None = None,
    keep: int | None = None,
) -> Snapshot:
    """The snapshot that is current afterwards, with the rows of `add` in it and the catalogue rebuilt.

    `add` maps table names to rows with the columns of `schemas.FEATURES`, or to an iterable of such tables, an entity
    never split between them; `snapshot_id` may be absent and is filled in. With `replace` the named tables hold exactly
    these rows, otherwise they gain them; tables not named keep theirs. With nothing to add the current snapshot is
    returned as it is (the first call publishes an empty one). With `keep` all but that many snapshots are retired.
    Raises UnfitFeatures, before anything moves, when rows break the contract or fail `checks`.
    """
    assert now.tzinfo is not None, "times are in UTC"
    require_public(add)
    manifest = read_manifest(root)
    parent = manifest.current_snapshot()
    number = 1 + max((int(snapshot.snapshot_id[:8]) for snapshot in manifest.snapshots), default=0)
    made_of = [None if parent is None else parent.snapshot_id, now.isoformat(), dict(lineage)]
    snapshot_id = f"{number:08d}-{digest(made_of)[:8]}"
    added: dict[str, _Added] = {}
    try:
        for table, rows in add.items():
            dim = 0 if parent is None or replace else parent.augment_dim(table)
            pieces = [rows] if isinstance(rows, pa.Table) else rows
            added[table] = _write(root, snapshot_id, pieces, Examined(table, dim, checks))
        # To replace no rows by none changes nothing either.
        emptied = set() if parent is None or not replace else {table for table in added if parent.tables[table]}
        named = {table: new for table, new in added.items() if new.file is not None or table in emptied}
        if parent is not None and not named:
            catalog.rebuild(root)
            return parent
        tables, stats = _tables(root, parent, named, replace, checks)
    except UnfitFeatures:
        for new in added.values():
            if new.file is not None:
                (root / new.file.path).unlink()
        raise
    snapshot = Snapshot(
        snapshot_id=snapshot_id,
        created_at=now,
        parent=None if parent is None else parent.snapshot_id,
        tables=tables,
        stats=stats,
        lineage=dict(lineage),
    )
    _make_current(root, manifest, snapshot, keep)
    return snapshot


def publish_files(
    root: Path, tables: Mapping[str, tuple[FileRef, ...]], *, now: datetime, keep: int | None
) -> Snapshot:
    """A new current snapshot that holds the same rows in other files (`warehouse.compaction`); paths are relative."""
    manifest = read_manifest(root)
    parent = manifest.current_snapshot()
    assert parent is not None, "there are no rows before a first publication"
    for table, files in tables.items():
        assert sum(f.rows for f in files) == sum(f.rows for f in parent.tables[table]), f"{table} lost rows"
    number = 1 + max(int(snapshot.snapshot_id[:8]) for snapshot in manifest.snapshots)
    # What made the rows stays in the lineage: the next run asks it whether they are still of its adapter.
    lineage = {**parent.lineage, "compacted_from": parent.snapshot_id}
    snapshot = Snapshot(
        snapshot_id=f"{number:08d}-{digest([parent.snapshot_id, now.isoformat(), lineage])[:8]}",
        created_at=now,
        parent=parent.snapshot_id,
        tables={**parent.tables, **tables},
        stats={table: {**stats, "rows_added": 0} for table, stats in parent.stats.items()},
        lineage=lineage,
    )
    _make_current(root, manifest, snapshot, keep)
    return snapshot


def snapshots(root: Path) -> list[Snapshot]:
    """All snapshots of the warehouse `root` that are not retired, oldest first."""
    return list(read_manifest(root).listed)


def rollback(root: Path, snapshot_id: str) -> Snapshot:
    """The snapshot `snapshot_id`, which is current afterwards. Only the pointer moves; no file is written or removed.

    Raises UsageError for an unknown id, CorruptWarehouse when one of its files is gone.
    """
    manifest = read_manifest(root)
    snapshot = manifest.get(snapshot_id)
    for table in FEATURES:
        snapshot.files(root, table)
    write_manifest(root, with_changes(relist(manifest, snapshot_id), current=snapshot_id))
    catalog.rebuild(root)
    return snapshot


@dataclass(frozen=True)
class _Added:
    """What a publication wrote of one table: a file (relative to the warehouse) unless there were no rows."""

    file: FileRef | None
    examined: Examined


def _write(root: Path, snapshot_id: str, pieces: Iterable[pa.Table], examined: Examined) -> _Added:
    """The rows of `pieces`, examined and written one piece after the other."""
    schema = FEATURES[examined.table]
    filled = (examined.take(piece) for piece in pieces)
    first = next((piece for piece in filled if piece.num_rows), None)
    if first is None:
        return _Added(None, examined)
    with TableWriter(root / "features" / examined.table / f"{snapshot_id}.parquet", schema) as writer:
        piece: pa.Table | None = first
        while piece is not None:
            if piece.num_rows:
                ids = pa.repeat(pa.scalar(snapshot_id), piece.num_rows)
                writer.write(piece.append_column(schema.field("snapshot_id"), ids))
            piece = next(filled, None)
    assert writer.ref is not None
    path = Path(writer.ref.path).relative_to(root).as_posix()
    return _Added(with_changes(writer.ref, path=path, contract=FEATURES_CONTRACT), examined)


def _tables(
    root: Path, parent: Snapshot | None, added: Mapping[str, _Added], replace: bool, checks: ChecksConfig | None
) -> tuple[dict[str, tuple[FileRef, ...]], dict[str, dict[str, int]]]:
    """Files and counts per table of the snapshot that follows `parent`. Raises UnfitFeatures."""
    tables, stats = {}, {}
    for table in FEATURES:
        new = added.get(table)
        kept = parent is not None and not (replace and new is not None)
        files = parent.tables[table] if parent is not None and kept else ()
        rungs: Counter[str] = rung_counts(root, parent, table) if parent is not None and kept else Counter()
        if new is not None:
            files = files if new.file is None else (*files, new.file)
            rungs += new.examined.rungs
            if checks is not None:
                before = visible_rows(root, parent, table) if parent is not None and replace else 0
                check_whole(new.examined, rungs, before, checks)
        tables[table] = files
        dim = parent.augment_dim(table) if new is None and parent is not None else 0
        stats[table] = {
            "rows": sum(ref.rows for ref in files),
            "rows_added": 0 if new is None else new.examined.rows,
            "augment_dim": dim if new is None else new.examined.dim,
            **{str(rung): rungs[rung] for rung in Rung},
        }
    return tables, stats


def _make_current(root: Path, manifest: Manifest, snapshot: Snapshot, keep: int | None) -> None:
    """Publish `snapshot`: after this call readers see it, or, killed at any moment, the one before."""
    grown = with_changes(manifest, current=snapshot.snapshot_id, snapshots=(*manifest.snapshots, snapshot))
    write_manifest(root, grown if keep is None else retire(grown, keep, snapshot.created_at))
    catalog.rebuild(root)
