"""Compaction: small files of the public tables merged into few larger ones, published as a snapshot of the same rows.

Every publication adds a file per table, and readers open them all. Rows keep the `snapshot_id` under which they first
came, so a join finds the same rows before and after. The old files stay for the snapshots that name them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as with_changes
from datetime import datetime
from pathlib import Path

from warehouse.clock import ENTITY
from warehouse.keys import digest
from warehouse.manifest import publish_files
from warehouse.schemas import FEATURES, FEATURES_CONTRACT
from warehouse.snapshot import read_manifest
from warehouse.store import FileRef, read_table, write_table

_MB = 1_000_000


@dataclass(frozen=True)
class CompactionReport:
    """What was merged: files and bytes of the current snapshot by table, before and after. `snapshot` is current."""

    snapshot: str | None
    merged: int = 0
    files_before: dict[str, int] = field(default_factory=dict)
    files_after: dict[str, int] = field(default_factory=dict)
    bytes_before: int = 0
    bytes_after: int = 0


def compact(root: Path, *, target_mb: int, now: datetime, keep: int | None = None) -> CompactionReport:
    """A report on the current snapshot's files, those below half of `target_mb` merged into files of about that size.

    Callers hold the writer lock. With fewer than two small files per table nothing is written. `keep` as in `publish`.
    A merge takes memory for some two and a half targets of rows.
    """
    current = read_manifest(root).current_snapshot()
    if current is None:
        return CompactionReport(None)
    made: dict[str, tuple[FileRef, ...]] = {}
    merged = 0
    for table in FEATURES:
        current.files(root, table)
        files = list(current.tables[table])
        for batch in small_batches(files, target_mb * _MB):
            files = [ref for ref in files if ref not in batch] + [_merge(root, table, batch)]
            merged += len(batch)
        made[table] = tuple(files)
    after = publish_files(root, made, now=now, keep=keep) if merged else current
    return CompactionReport(
        snapshot=after.snapshot_id,
        merged=merged,
        files_before={table: len(files) for table, files in current.tables.items()},
        files_after={table: len(files) for table, files in after.tables.items()},
        bytes_before=sum(ref.bytes for files in current.tables.values() for ref in files),
        bytes_after=sum(ref.bytes for files in after.tables.values() for ref in files),
    )


def small_batches(files: Sequence[FileRef], target: int) -> Iterator[list[FileRef]]:
    """The files below half of `target` bytes, in batches of two or more that come to about `target` each."""
    batch: list[FileRef] = []
    for ref in files:
        if ref.bytes < target / 2:
            batch.append(ref)
            if sum(small.bytes for small in batch) >= target:
                yield batch
                batch = []
    if len(batch) > 1:
        yield batch


def _merge(root: Path, table: str, batch: Sequence[FileRef]) -> FileRef:
    rows = read_table([root / ref.path for ref in batch], FEATURES[table], grown=True)
    rows = rows.sort_by([(name, "ascending") for name in (ENTITY[table], "valid_from", "created_at")])
    # Named by what it was made of: a compaction that was killed and repeated writes the same file again.
    name = f"{Path(batch[-1].path).stem[:8]}-merged-{digest([ref.digest for ref in batch])[:8]}"
    ref = write_table(root / "features" / table / f"{name}.parquet", rows)
    return with_changes(ref, path=Path(ref.path).relative_to(root).as_posix(), contract=FEATURES_CONTRACT)
