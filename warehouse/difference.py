"""What changed between two snapshots: rows, whose knowledge they hold, and how far the vectors have drifted."""

from collections.abc import Sequence
from math import sqrt
from pathlib import Path

import duckdb

from warehouse.clock import ENTITY, newest
from warehouse.fitness import rung_counts
from warehouse.schemas import FEATURES, Rung
from warehouse.snapshot import Snapshot, read_manifest
from warehouse.sql import connect, parquet_view
from warehouse.store import FileRef

# DuckDB spills past this.
_MEMORY_GB = 2.0


def difference(root: Path, old: str, new: str) -> dict[str, object]:
    """By table what `new` shows that `old` does not: rows added, changed and removed, coverage by rung, drift.

    A row is what readers see: of rows of one entity and instant, the newest. One has changed when its vector or rung
    has; one of the same numbers made anew has not. Coverage is each rung's share of all rows. Drift compares all
    vectors of both: mean and standard deviation of their norms, and by how much the mean vector moved, in units of the
    old norms' mean (null without vectors, or where their length changed).
    Raises UsageError for an unknown snapshot, CorruptWarehouse for files that are gone.
    """
    manifest = read_manifest(root)
    before, after = manifest.get(old), manifest.get(new)
    return {
        "old": before.snapshot_id,
        "new": after.snapshot_id,
        **{table: _table_difference(root, table, before, after) for table in FEATURES},
    }


def _table_difference(root: Path, table: str, before: Snapshot, after: Snapshot) -> dict[str, object]:
    with connect(_MEMORY_GB) as con:
        for name, snapshot in (("old", before), ("new", after)):
            snapshot.files(root, table)
            parquet_view(con, name, _paths(root, snapshot.tables[table]), FEATURES[table], grown=True)
        changes = _changes(con, root, table, before, after)
        drift = _drift(con, before.augment_dim(table), after.augment_dim(table))
    coverage = {}
    for name, snapshot in (("old", before), ("new", after)):
        counts = rung_counts(root, snapshot, table)
        coverage[name] = {str(r): round(counts[r] / max(counts.total(), 1), 6) for r in Rung}
    return {**changes, "coverage": coverage, "drift": drift}


def _changes(
    con: duckdb.DuckDBPyConnection, root: Path, table: str, before: Snapshot, after: Snapshot
) -> dict[str, object]:
    """Only entities and instants in a file that one snapshot alone has can differ: the others are not compared."""
    entity = ENTITY[table]
    shared = set(before.tables[table]) & set(after.tables[table])
    own = [ref for s in (before, after) for ref in s.tables[table] if ref not in shared]
    parquet_view(con, "touched", _paths(root, own), FEATURES[table], grown=True)
    seen = (
        f"SELECT {entity}, valid_from, augment, rung FROM {{side}} "
        f"SEMI JOIN (SELECT DISTINCT {entity}, valid_from FROM touched) USING ({entity}, valid_from) "
        f"QUALIFY row_number() OVER (PARTITION BY {entity}, valid_from ORDER BY {newest(entity)}) = 1"
    )
    # Digests of the vectors rather than the vectors: the comparison holds all of one side in memory.
    digests = "SELECT {entity}, valid_from, rung, hash(augment) AS vector FROM ({seen})"
    old, new = (digests.format(entity=entity, seen=seen.format(side=side)) for side in ("old", "new"))
    [counts] = con.execute(
        f"""
        SELECT count(*) FILTER (o.rung IS NULL), count(*) FILTER (n.rung IS NULL),
               count(*) FILTER (o.rung IS NOT NULL AND n.rung IS NOT NULL
                                AND (o.rung <> n.rung OR o.vector IS DISTINCT FROM n.vector))
        FROM ({old}) o FULL JOIN ({new}) n USING ({entity}, valid_from)
        """
    ).fetchall()
    return dict(zip(("added", "removed", "changed"), counts, strict=True))


def _drift(con: duckdb.DuckDBPyConnection, old_dim: int, new_dim: int) -> dict[str, object]:
    (old_norms, old_mean), (new_norms, new_mean) = _moments(con, "old", old_dim), _moments(con, "new", new_dim)
    moved = None
    if old_norms["mean"] and new_mean and old_dim == new_dim:
        moved = sqrt(sum((a - b) ** 2 for a, b in zip(old_mean, new_mean, strict=True))) / old_norms["mean"]
    return {"norm_old": old_norms, "norm_new": new_norms, "mean_moved": moved}


def _moments(con: duckdb.DuckDBPyConnection, side: str, dim: int) -> tuple[dict[str, float | None], list[float]]:
    """Mean and standard deviation of the norms of all vectors, and the mean vector."""
    if not dim:
        return {"mean": None, "deviation": None}, []
    # One expression per number: unnesting the vectors would make as many rows as there are numbers.
    means = ", ".join(f"avg(augment[{place}]::DOUBLE)" for place in range(1, dim + 1))
    [row] = con.execute(
        f"""
        SELECT avg(norm), stddev_pop(norm), {means}
        FROM (SELECT augment, sqrt(list_dot_product(augment::DOUBLE[], augment::DOUBLE[])) AS norm
              FROM {side} WHERE augment IS NOT NULL)
        """
    ).fetchall()
    return {"mean": row[0], "deviation": row[1]}, [] if row[0] is None else list(row[2:])


def _paths(root: Path, files: Sequence[FileRef]) -> list[Path]:
    return [root.resolve() / ref.path for ref in files]
