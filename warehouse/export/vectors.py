"""What every export is made of: of each entity the newest vector of a snapshot before a moment, in order of id."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from warehouse.clock import ENTITY, instant_us, newest, visible_us
from warehouse.errors import CorruptWarehouse
from warehouse.schemas import FEATURES
from warehouse.sql import connect, parquet_view


@dataclass(frozen=True)
class Vectors:
    """Ids [n] of one side in ascending order, and the numbers [n * dim] of their vectors, one after the other.

    `without_vector` counts entities whose newest row holds none; like strangers, they are not among the ids.
    """

    side: str
    ids: pa.Array
    numbers: pa.Array
    dim: int
    without_vector: int

    @property
    def entity(self) -> str:
        """Name of the id column: user_id or item_id."""
        return f"{self.side}_id"


def newest_vectors(table: str, files: Sequence[Path], dim: int, at: datetime | None = None) -> Vectors:
    """The vectors that a join of all entities of `table` at the moment `at` would give; without `at`, the newest.

    Raises CorruptWarehouse for files that cannot be read.
    """
    entity = ENTITY[table]
    with connect() as con:
        parquet_view(con, "features", files, FEATURES[table])
        found = con.sql(
            f"SELECT {entity} AS id, augment FROM features WHERE {before(at)} "
            f"QUALIFY row_number() OVER (PARTITION BY {entity} ORDER BY valid_from DESC, {newest(entity)}) = 1 "
            "ORDER BY id"
        ).to_arrow_table()
    known = found.filter(pc.is_valid(found["augment"]))
    numbers = pa.concat_arrays([pa.array([], pa.float32()), *(chunk.flatten() for chunk in known["augment"].chunks)])
    if len(numbers) != len(known) * dim:
        raise CorruptWarehouse(
            f"`{table}` holds {len(known)} vectors of {len(numbers)} numbers in all, and not {dim} in each. Restore "
            "its files from a backup, or export another snapshot."
        )
    ids = pa.concat_arrays([pa.array([], pa.string()), *known["id"].chunks])
    return Vectors(entity.removesuffix("_id"), ids, numbers, dim, len(found) - len(known))


def before(at: datetime | None) -> str:
    """SQL for the rows that an event at the moment `at` may see."""
    return "true" if at is None else f"{visible_us('event')} <= {instant_us(at)}"
