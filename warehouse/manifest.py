"""Publication of the public tables: new immutable files, then one atomic replacement of the manifest.

Callers hold the writer lock. Nothing that fails here moves the pointer, and readers see the old snapshot or the new.
"""

from collections.abc import Mapping
from dataclasses import replace as with_changes
from datetime import datetime
from hashlib import blake2b
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from warehouse import catalog
from warehouse.errors import LorestreamError
from warehouse.keys import canonical_json
from warehouse.schemas import FEATURES, Rung
from warehouse.snapshot import MANIFEST_PATH, Manifest, Snapshot, manifest_json, read_manifest, require_public
from warehouse.store import ROW_GROUP_ROWS, write_json, write_table


class UnfitFeatures(LorestreamError):
    """Rows that were about to be published break the contract of a public table."""

    def __init__(self, table: str, problem: str) -> None:
        self.table, self.problem = table, problem
        super().__init__(f"`{table}` was not published: {problem} The current snapshot stays as it was.")


def publish(
    root: Path, add: Mapping[str, pa.Table], *, replace: bool, now: datetime, lineage: Mapping[str, object]
) -> Snapshot:
    """The snapshot that is current afterwards, with the rows of `add` in it and the catalogue rebuilt.

    `add` maps table names to rows with the columns of `schemas.FEATURES`; `snapshot_id` may be absent and is filled in.
    With `replace` the named tables hold exactly these rows, otherwise they gain them; tables not named keep theirs.
    With nothing to add the current snapshot is returned as it is (the first call publishes an empty one).
    Raises UnfitFeatures, before anything moves, when rows break the contract.
    """
    assert now.tzinfo is not None, "times are in UTC"
    require_public(add)
    manifest = read_manifest(root)
    parent = manifest.current_snapshot()
    named = {table: _conform(table, rows) for table, rows in add.items() if replace or rows.num_rows}
    if parent is not None and not named:
        catalog.rebuild(root)
        return parent

    number = 1 + max((int(snapshot.snapshot_id[:8]) for snapshot in manifest.snapshots), default=0)
    snapshot_id = f"{number:08d}-{_content_digest(named, lineage)}"
    tables = {table: () if parent is None else parent.tables[table] for table in FEATURES}
    dims = {table: 0 if parent is None else parent.augment_dim(table) for table in FEATURES}
    for table, rows in named.items():
        kept = () if replace else tables[table]
        dims[table] = _checked_dim(table, rows, dims[table] if kept else 0)
        if rows.num_rows:
            rows = rows.append_column(
                FEATURES[table].field("snapshot_id"), pa.repeat(pa.scalar(snapshot_id), rows.num_rows)
            )
            ref = write_table(root / "features" / table / f"{snapshot_id}.parquet", rows)
            kept = (*kept, with_changes(ref, path=Path(ref.path).relative_to(root).as_posix()))
        tables[table] = kept

    snapshot = Snapshot(
        snapshot_id=snapshot_id,
        created_at=now,
        parent=None if parent is None else parent.snapshot_id,
        tables=tables,
        stats={
            table: {
                "rows": sum(ref.rows for ref in tables[table]),
                "rows_added": named[table].num_rows if table in named else 0,
                "augment_dim": dims[table],
            }
            for table in FEATURES
        },
        lineage=dict(lineage),
    )
    write_json(root / MANIFEST_PATH, manifest_json(Manifest(snapshot_id, (*manifest.snapshots, snapshot))))
    catalog.rebuild(root)
    return snapshot


def snapshots(root: Path) -> list[Snapshot]:
    """All snapshots of the warehouse `root`, oldest first."""
    return list(read_manifest(root).snapshots)


def rollback(root: Path, snapshot_id: str) -> Snapshot:
    """The snapshot `snapshot_id`, which is current afterwards. Only the pointer moves; no file is written or removed.

    Raises UsageError for an unknown id, CorruptWarehouse when one of its files is gone.
    """
    manifest = read_manifest(root)
    snapshot = manifest.get(snapshot_id)
    for table in FEATURES:
        snapshot.files(root, table)
    write_json(root / MANIFEST_PATH, manifest_json(with_changes(manifest, current=snapshot_id)))
    catalog.rebuild(root)
    return snapshot


def _conform(table: str, rows: pa.Table) -> pa.Table:
    """`rows` in the contract's columns less `snapshot_id`, sorted by entity and time so that readers can skip."""
    schema = FEATURES[table]
    wanted = schema.remove(schema.get_field_index("snapshot_id"))
    if "snapshot_id" in rows.column_names:
        rows = rows.drop_columns(["snapshot_id"])
    if rows.column_names != wanted.names:
        raise UnfitFeatures(table, f"it has the columns {rows.column_names}, the contract says {wanted.names}.")
    for field in wanted:
        found = rows.schema.field(field.name).type
        if not found.equals(field.type):
            raise UnfitFeatures(table, f"column `{field.name}` is {found}, the contract says {field.type}.")
        if not field.nullable and rows[field.name].null_count:
            raise UnfitFeatures(table, f"column `{field.name}` has {rows[field.name].null_count} nulls.")
    order = [(name, "ascending") for name in (wanted.names[0], "valid_from", "created_at")]
    return rows.sort_by(order).cast(wanted)


def _checked_dim(table: str, rows: pa.Table, published: int) -> int:
    """The one length of all augment vectors, which must be `published` unless that is 0 (nothing published yet)."""
    if not rows.num_rows:
        return published

    def reject(bad: pa.ChunkedArray | pa.Array, problem: str) -> None:
        first = pc.index(bad, True).as_py()
        if first >= 0:
            entity = rows.column_names[0]
            raise UnfitFeatures(table, f"{problem} (first at {entity} {rows[entity][first].as_py()!r}).")

    augment, dims, rungs = rows["augment"], rows["augment_dim"], rows["rung"]
    known = pc.is_in(rungs, value_set=pa.array([str(rung) for rung in Rung]))
    reject(pc.invert(known), f"`rung` must be one of {', '.join(Rung)}")
    reject(
        pc.not_equal(pc.is_null(augment), pc.equal(rungs, str(Rung.NONE))),
        "`augment` must be null where `rung` is `none`, and only there",
    )
    reject(
        pc.fill_null(pc.not_equal(pc.list_value_length(augment), dims), False),
        "`augment` has another length than `augment_dim` says",
    )
    reject(_with_unfit_number(augment), "`augment` holds a number that is null, NaN or infinite")
    distinct = sorted({*pc.unique(dims).to_pylist(), *([published] if published else [])})
    if len(distinct) > 1:
        raise UnfitFeatures(
            table, f"its vectors have lengths {distinct}, one snapshot holds one. Publish all rows with `replace`."
        )
    return int(distinct[0])


def _with_unfit_number(augment: pa.ChunkedArray) -> pa.Array:
    """True for each row of `augment` [list<float>] with an element that is null or not finite."""
    vectors = augment.combine_chunks()
    unfit = pc.invert(pc.fill_null(pc.is_finite(pc.list_flatten(vectors)), False))
    rows = pc.unique(pc.filter(pc.list_parent_indices(vectors), unfit))
    return pc.is_in(pa.array(range(len(vectors)), pa.int64()), value_set=rows)


def _content_digest(tables: Mapping[str, pa.Table], lineage: Mapping[str, object]) -> str:
    """Eight hex digits of what is being published, rows and lineage alike."""
    hasher = blake2b(canonical_json(lineage), digest_size=4)
    for table in sorted(tables):
        hasher.update(table.encode())
        for batch in tables[table].combine_chunks().to_batches(max_chunksize=ROW_GROUP_ROWS):
            hasher.update(batch.serialize())
    return hasher.hexdigest()
