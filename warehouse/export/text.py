"""Vectors as text: RecBole's atomic files, and EasyRec's CSV with numbers joined by `|`.

Numbers are written with as many digits as it takes to read the same float32 back. Neither reader is safe with quotes,
so ids that would need them, or that pandas takes for a missing value, are refused.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from warehouse.errors import UsageError
from warehouse.export.vectors import Vectors
from warehouse.store import replacing

_ROWS_PER_WRITE = 2**17

# What `pandas.read_csv`, which RecBole reads with, turns into a missing value.
_TAKEN_FOR_MISSING = (
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "NaN", "None", "n/a", "nan", "null",
)  # fmt: skip


def write_recbole(out: Path, vectors: Vectors, cut: str) -> list[Path]:
    """The written `<dataset>.<side>emb<cut>`, `<dataset>` being the folder's name, as RecBole wants it."""
    name = vectors.side[0] + "id"
    path = out / f"{out.resolve().name}.{vectors.side}emb{cut}"
    _refuse(vectors.ids, r'[\t\r\n"]', "RecBole")
    missing = vectors.ids.filter(pc.is_in(vectors.ids, value_set=pa.array(_TAKEN_FOR_MISSING)))
    if len(missing):
        raise UsageError(
            f"The {vectors.side} id {missing[0].as_py()!r} cannot be exported to RecBole, which reads it as a missing "
            "value. Rename that id, or export to another format."
        )
    # Another name than user_id or item_id: RecBole joins it to those by `alias_of_user_id`.
    _write_lines(path, f"{name}:token\t{vectors.side}_emb:float_seq\n", vectors, "\t", " ")
    return [path]


def write_easyrec(out: Path, vectors: Vectors, cut: str) -> list[Path]:
    """The written `<side>_augment<cut>.csv` with a header: id, and the vector as one field for a RawFeature."""
    path = out / f"{vectors.side}_augment{cut}.csv"
    _refuse(vectors.ids, r'[,\r\n"]', "EasyRec")
    _write_lines(path, f"{vectors.entity},{vectors.side}_augment\n", vectors, ",", "|")
    return [path]


def _write_lines(path: Path, header: str, vectors: Vectors, between: str, within: str) -> None:
    dim = vectors.dim
    with replacing(path) as temporary, temporary.open("wb") as stream:
        stream.write(header.encode())
        for start in range(0, len(vectors.ids), _ROWS_PER_WRITE):
            ids = vectors.ids.slice(start, _ROWS_PER_WRITE)
            numbers = vectors.numbers.slice(start * dim, len(ids) * dim).cast(pa.string())
            offsets = pa.array(range(0, len(numbers) + 1, dim), pa.int32())
            joined = pc.binary_join(pa.ListArray.from_arrays(offsets, numbers), within)
            lines = pc.binary_join_element_wise(ids, joined, between)
            stream.write("".join(f"{line}\n" for line in lines.to_pylist()).encode())


def _refuse(ids: pa.Array, pattern: str, reader: str) -> None:
    bad = ids.filter(pc.match_substring_regex(ids, pattern))
    if len(bad):
        raise UsageError(
            f"The id {bad[0].as_py()!r} cannot be exported to {reader}: it holds a character that ends a field there. "
            "Rename that id, or export to another format."
        )
