"""Small files of the internal tables merged, so that a table that grew over many nights stays a few files.

One commit of the ledger puts merged files in the place of their parts, which stay until `warehouse.garbage` has waited
for their readers. A kill before it leaves a merged file that no commit names, and that the next call writes again.

Left out are open partitions (a file per bucket, all written anew by a run), pools, and segments of texts and vectors
that no commit has named yet.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from warehouse.keys import digest
from warehouse.ledger import Ledger
from warehouse.schemas import SEGMENTED
from warehouse.segments import MERGED
from warehouse.snapshot import read_inputs, read_manifest, replace_inputs
from warehouse.sql import reading_stored
from warehouse.store import ROW_GROUP_ROWS, TableWriter

TABLES = (
    *("behaviours", "items", "users", "rejected", "partitions", "requests"),
    *("groups", "group_members", "item_factors"),
    *SEGMENTED,
)

_MB = 1_000_000


def merge_internal(root: Path, *, target_mb: int, now: datetime) -> dict[str, dict[str, int]]:
    """Files of each table `before` and `after`, where small ones were merged into files of about `target_mb`.

    Rows keep their order, and what the current snapshot was made from stays known under the new names. Callers hold the
    writer lock. Raises CorruptWarehouse for a file that is missing or damaged.
    """
    ledger = Ledger(root)
    parts: dict[str, list[list[Path]]] = {}
    for table in TABLES:
        tail = _small_tail(ledger, table, target_mb * _MB)
        batches = in_batches([path.stat().st_size for path in tail], target_mb * _MB)
        if batches:
            parts[table] = [[tail[place] for place in batch] for batch in batches]
    if not parts:
        return {}
    merged = {table: [_merge(root / table, batch) for batch in batches] for table, batches in parts.items()}
    before = {table: len(ledger.files(table)) for table in parts}
    ledger.commit(
        "compact",
        add=merged,
        remove={table: [path for batch in batches for path in batch] for table, batches in parts.items()},
        stats={"merged": before},
        now=now,
    )
    _rename_inputs(root, parts, merged)
    return {table: {"before": before[table], "after": len(ledger.files(table))} for table in parts}


def in_batches(sizes: Sequence[int], target: int) -> list[list[int]]:
    """Places in `sizes`, in batches of two or more that come to about `target` each; none of a single one."""
    batches: list[list[int]] = []
    left = 0
    for place, size in enumerate(sizes):
        if left <= 0:
            batches.append([])
            left = target
        batches[-1].append(place)
        left -= size
    if len(batches) > 1 and len(batches[-1]) == 1:
        last = batches.pop()
        batches[-1] += last
    return batches if len(sizes) > 1 else []


def _small_tail(ledger: Ledger, table: str, target: int) -> list[Path]:
    """The last files of `table`, as far back as they are below half of `target` and of one schema.

    Only the last ones, since a commit adds files at the end, where merged rows then keep their order.
    """
    files = ledger.files(table)
    # These are behaviours as well, until a run has cut them into partitions.
    waiting = set(ledger.files("unpartitioned"))
    tail: list[Path] = []
    with reading_stored(files):
        for path in reversed(files):
            small = path.stat().st_size < target / 2 and path not in waiting
            if not small or (tail and not pq.read_schema(path).equals(pq.read_schema(tail[-1]))):
                break
            tail.append(path)
    return tail[::-1]


def _merge(folder: Path, batch: Sequence[Path]) -> Path:
    """The file that holds the rows of `batch`, named by what it is made of."""
    out = folder / f"{MERGED}{digest([path.name for path in batch])[:16]}.parquet"
    with reading_stored(batch), TableWriter(out, pq.read_schema(batch[0])) as writer:
        held: list[pa.RecordBatch] = []
        for path in batch:
            with pq.ParquetFile(path) as file:
                for rows in file.iter_batches(ROW_GROUP_ROWS):
                    held.append(rows)
                    if sum(len(part) for part in held) >= ROW_GROUP_ROWS:
                        writer.write(pa.Table.from_batches(held))
                        held = []
        if held:
            writer.write(pa.Table.from_batches(held))
    return out


def _rename_inputs(
    root: Path, parts: Mapping[str, Sequence[Sequence[Path]]], merged: Mapping[str, Sequence[Path]]
) -> None:
    """Have the current snapshot's inputs name the merged files where they name all of its parts.

    Otherwise the next publication would take the merged rows for new ones, and look at everybody.
    """
    current = read_manifest(root).current_snapshot()
    inputs = {} if current is None else read_inputs(root, current)
    files = inputs.get("files")
    if current is None or not isinstance(files, dict):
        return
    for table, batches in parts.items():
        for batch, out in zip(batches, merged[table], strict=True):
            names = [path.name for path in batch]
            seen = files.get(table, [])
            if set(names) <= set(seen):
                files[table] = [*(name for name in seen if name not in names), out.name]
    replace_inputs(root, current, inputs)
