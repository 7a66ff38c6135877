"""Tables on their way in and out: any dataframe to Arrow, and Arrow to the dataframe or tensors a reader wants.

pandas, polars and torch are used only when asked for; none of them is needed to read a warehouse.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from warehouse.errors import UsageError
from warehouse.optional import needs

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd  # type: ignore[import-untyped]
    import polars as pl
    import torch


@dataclass(frozen=True)
class Frame:
    """Rows read from a warehouse, to be taken as Arrow, pandas, polars or torch."""

    table: pa.Table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def columns(self) -> list[str]:
        """Names of the columns."""
        return list(self.table.column_names)

    def to_arrow(self) -> pa.Table:
        """The rows as a pyarrow table, without a copy."""
        return self.table

    def to_pandas(self) -> "pd.DataFrame":
        """The rows as a pandas frame (index kept if the rows came from pandas); vectors are numpy arrays.

        Raises MissingLibrary where pandas is not installed.
        """
        with needs("pandas", "Frame.to_pandas()"):
            import pandas as pd  # noqa: F401
        return self.table.to_pandas()

    def to_polars(self) -> "pl.DataFrame":
        """The rows as a polars frame; vectors are `List(Float32)`. Raises MissingLibrary where there is no polars."""
        with needs("polars", "Frame.to_polars()"):
            import polars as pl
        frame = pl.from_arrow(self.table)
        assert isinstance(frame, pl.DataFrame)
        return frame

    def to_torch(self, columns: Sequence[str] | None = None) -> "dict[str, torch.Tensor]":
        """Tensors by column name: numbers and bools [n], vectors [n, d], times [n] int64 microseconds since 1970.

        Without `columns`, all that can be tensors: strings are left out, and so are columns with a null in them.
        Raises UsageError for a column named in `columns` that cannot be one, with the reason, and MissingLibrary
        where torch or numpy is not installed.
        """
        with needs("torch", "Frame.to_torch()"):
            import torch
        tensors: dict[str, torch.Tensor] = {}
        for name in self.columns if columns is None else columns:
            if name not in self.columns:
                raise UsageError(f"There is no column `{name}`; the columns are {', '.join(self.columns)}.")
            problem = _why_no_tensor(self.table[name])
            if problem is None:
                tensors[name] = torch.from_numpy(_numbers(self.table[name]))
            elif columns is not None:
                raise UsageError(f"Column `{name}` cannot become a tensor: {problem}")
        return tensors

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self.table.__arrow_c_stream__(requested_schema)


def as_arrow(rows: object) -> pa.Table:
    """`rows` as a pyarrow table: from pyarrow, pandas, polars, a DuckDB relation, or anything with an Arrow stream.

    Raises UsageError for anything else.
    """
    if isinstance(rows, pa.Table):
        return rows
    if isinstance(rows, pa.RecordBatch):
        return pa.Table.from_batches([rows])
    # By name, not by type: importing pandas to ask would make every reader need it.
    if type(rows).__module__.split(".")[0] == "pandas" and type(rows).__name__ == "DataFrame":
        try:
            return pa.Table.from_pandas(rows)
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise UsageError(f"The pandas frame has a column of mixed types ({error}). Cast it first.") from error
    if hasattr(rows, "__arrow_c_stream__"):
        return pa.table(rows)
    raise UsageError(
        f"The impressions are a {type(rows).__module__}.{type(rows).__qualname__}; give a pyarrow table, a pandas or "
        "polars DataFrame (collect a LazyFrame first), or a DuckDB relation."
    )


def _why_no_tensor(column: pa.ChunkedArray) -> str | None:
    """Why `column` cannot be a tensor, or None when it can."""
    kind = column.type
    if column.null_count:
        return f"it has {column.null_count} nulls. Use fill='zeros' for vectors, or drop those rows."
    if _is_vector(kind):
        lengths = pc.unique(pc.list_value_length(column))
        return None if len(lengths) <= 1 else f"its vectors have lengths {sorted(lengths.to_pylist())}."
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return None
    return None if pa.types.is_timestamp(kind) else f"it is {kind}."


def _is_vector(kind: pa.DataType) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return is_list and bool(pa.types.is_floating(kind.value_type))


def _numbers(column: pa.ChunkedArray) -> "np.ndarray":
    """The numbers of `column`, [n] or [n, d], copied once: torch would let one write to Arrow's own buffers."""
    import numpy as np

    rows = len(column)
    if _is_vector(column.type):
        flat = _numbers(pa.chunked_array([pc.list_flatten(chunk) for chunk in column.chunks], column.type.value_type))
        return flat.reshape(rows, len(flat) // rows if rows else 0)
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("us", tz=column.type.tz), safe=False).cast(pa.int64())
    numbers = np.empty(rows, column.type.to_pandas_dtype())
    start = 0
    for chunk in column.chunks:
        numbers[start : start + len(chunk)] = chunk.to_numpy(zero_copy_only=False)
        start += len(chunk)
    return numbers
