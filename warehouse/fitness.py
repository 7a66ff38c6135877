"""Whether rows are fit to be published: the contract of a public table, and checks that a configuration may tighten.

Rows pass through piece by piece, so that a table need not fit in memory. Nothing here moves the pointer: an unfit
publication raises, and the current snapshot stays as it was.
"""

from collections import Counter
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, Field, model_validator

from warehouse.clock import ENTITY
from warehouse.errors import LorestreamError
from warehouse.schemas import FEATURES, Rung
from warehouse.snapshot import Snapshot
from warehouse.sql import connect, parquet_view

# DuckDB spills past this; counting goes on while a publication holds memory of its own.
_COUNTING_GB = 1.0


class ChecksConfig(BaseModel, frozen=True, extra="forbid"):
    """What a publication must fulfil beside the contract; one that does not leaves the current snapshot as it is."""

    # Adapters standardise: the mean norm is about sqrt(out_dim). One far above it comes from weights gone wrong.
    min_norm: float = Field(0.0, ge=0)
    max_norm: float = Field(1000.0, gt=0)
    # Share of a table's rows that must hold a vector (rung own, group or global); 0 asks for none.
    min_coverage: float = Field(0.0, ge=0, le=1)
    # Share of what readers see (entity and instant) that a publication which replaces a table may lose.
    max_row_fall: float = Field(0.0, ge=0, le=1)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_norm > self.max_norm:
            raise ValueError(f"min_norm = {self.min_norm} is above max_norm = {self.max_norm}: no vector would pass")
        return self


class UnfitFeatures(LorestreamError):
    """Rows that were about to be published break the contract of a public table, or a check."""

    def __init__(self, table: str, problem: str) -> None:
        self.table, self.problem = table, problem
        super().__init__(f"`{table}` was not published: {problem} The current snapshot stays as it was.")


class Examined:
    """The pieces of one table on their way to publication: checked as they pass, and what they came to in all.

    `dim` is the length of all augment vectors, given where rows are published already, else that of the first.
    """

    def __init__(self, table: str, dim: int, checks: ChecksConfig | None) -> None:
        self.table, self.dim, self.rows, self.instants = table, dim, 0, 0
        self.rungs: Counter[str] = Counter()
        self._checks = checks

    def take(self, rows: pa.Table) -> pa.Table:
        """`rows` in the contract's columns less `snapshot_id`, sorted by entity and time so that readers can skip.

        Raises UnfitFeatures, naming the first row, for what breaks the contract or has a norm out of range.
        """
        rows = _conform(self.table, rows)
        if rows.num_rows:
            self.dim = _checked_dim(self.table, rows, self.dim)
            if self._checks is not None:
                self._check_norms(rows, self._checks)
            self.rows += rows.num_rows
            self.rungs.update({row["values"]: row["counts"] for row in pc.value_counts(rows["rung"]).to_pylist()})
            self.instants += rows.select([ENTITY[self.table], "valid_from"]).group_by(
                [ENTITY[self.table], "valid_from"]
            ).aggregate([]).num_rows  # fmt: skip
        return rows

    def _check_norms(self, rows: pa.Table, checks: ChecksConfig) -> None:
        vectors = rows["augment"].combine_chunks()
        flat = pc.list_flatten(vectors)
        squares = pa.table({"row": pc.list_parent_indices(vectors), "square": pc.multiply(flat, flat).cast("double")})
        norms = squares.group_by("row").aggregate([("square", "sum")])
        norm = pc.sqrt(norms["square_sum"])
        out = pc.or_(pc.less(norm, checks.min_norm), pc.greater(norm, checks.max_norm))
        first = pc.index(out, True).as_py()
        if first >= 0:
            entity = rows.column_names[0]
            name = rows[entity][norms["row"][first].as_py()].as_py()
            raise UnfitFeatures(
                self.table,
                f"{pc.sum(out).as_py()} of its vectors have a norm outside [{checks.min_norm:g}, {checks.max_norm:g}]; "
                f"first that of {entity} {name!r}, {norm[first].as_py():.6g}. Train another adapter "
                "(`lorestream train`), or set `checks.min_norm` and `checks.max_norm` to what is right for this one.",
            )


def check_whole(examined: Examined, rungs: Counter[str], before: int, checks: ChecksConfig) -> None:
    """Raise UnfitFeatures where a table as it would be published, with `rungs` in all its rows, fails a check.

    `before` counts what readers saw of a table that is replaced (`visible_rows`); 0 where nothing is.
    """
    table, rows = examined.table, rungs.total()
    covered = rows - rungs[Rung.NONE]
    if covered < checks.min_coverage * rows:
        raise UnfitFeatures(
            table,
            f"only {covered} of its {rows} rows ({covered / rows:.1%}) would have a vector, `checks.min_coverage` asks "
            f"for {checks.min_coverage:.1%}. See `lorestream quality` for texts that are no use, or lower the check.",
        )
    if examined.instants < (1 - checks.max_row_fall) * before:
        raise UnfitFeatures(
            table,
            f"it would show {examined.instants} rows (one per entity and instant) instead of {before}, and "
            f"`checks.max_row_fall` allows a loss of {checks.max_row_fall:.1%}. If it is meant to shrink, run again "
            "with --allow-fewer-rows.",
        )


def rung_counts(root: Path, snapshot: Snapshot, table: str) -> Counter[str]:
    """Rows of `table` in `snapshot` by rung; counted from the files where an older Lorestream published them."""
    stats = snapshot.stats[table]
    if all(rung in stats for rung in Rung):
        return Counter({str(rung): stats[rung] for rung in Rung})
    with connect(_COUNTING_GB) as con:
        parquet_view(con, "published", snapshot.files(root, table), FEATURES[table])
        return Counter(dict(con.execute("SELECT rung, count(*) FROM published GROUP BY rung").fetchall()))


def visible_rows(root: Path, snapshot: Snapshot, table: str) -> int:
    """Pairs of entity and instant that `table` has in `snapshot`: of rows that share one, readers see the newest."""
    with connect(_COUNTING_GB) as con:
        parquet_view(con, "published", snapshot.files(root, table), FEATURES[table])
        query = f"SELECT count(*) FROM (SELECT DISTINCT {ENTITY[table]}, valid_from FROM published)"
        [(rows,)] = con.execute(query).fetchall()
    return int(rows)


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
