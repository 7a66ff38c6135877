"""Garbage collection: files that no record refers to, and snapshots that retention has given up.

Records are the manifest, the ledger, and, for adapters, spending and new segments of texts and vectors, the existence
of the file. What is in none of the folders that writers write to is nobody's garbage and stays.
"""

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from warehouse.ledger import Ledger
from warehouse.retention import retire
from warehouse.schemas import FEATURES, SEGMENTED
from warehouse.segments import MERGED
from warehouse.snapshot import INPUTS_FOLDER, Manifest, Snapshot, read_manifest, write_manifest
from warehouse.store import find_temporary

# Folders whose files count only if the ledger says so. A run killed before its first commit may have made any of them.
LEDGER_FOLDERS = frozenset(
    {
        *("behaviours", "items", "users", "rejected", "partitions", "open", "requests"),
        *("groups", "group_members", "item_factors", "pools"),
    }
)
# Where a file counts because it exists, or may do so.
RECORD_FOLDERS = frozenset({"ledger", *SEGMENTED, "adapters", "spending"})


@dataclass
class GarbageReport:
    """What was removed (or, in a dry run, would be): files and bytes by reason, and the snapshots given up.

    `waiting` files are garbage too, but younger than the grace period: a reader may have them open.
    """

    dry_run: bool
    files: int = 0
    bytes: int = 0
    by_reason: dict[str, int] = field(default_factory=dict)
    snapshots_retired: list[str] = field(default_factory=list)
    snapshots_expired: list[str] = field(default_factory=list)
    waiting_files: int = 0
    waiting_bytes: int = 0


def collect_garbage(root: Path, *, keep: int, grace: timedelta, now: datetime, dry_run: bool = False) -> GarbageReport:
    """A report of what was removed from the warehouse `root`. Callers hold the writer lock.

    Snapshots beyond `keep` are retired; those that were retired for `grace` are forgotten and their files removed, as
    far as no other snapshot shares them. Files that the ledger has dropped for `grace`, or that a killed writer left so
    long ago, go too. The manifest is written before any file goes, so a kill leaves files that the next call finds.
    """
    report = GarbageReport(dry_run)
    before = read_manifest(root)
    manifest = retire(before, keep, now)
    report.snapshots_retired = sorted(manifest.retired.keys() - before.retired.keys())
    manifest, report.snapshots_expired = _expire(manifest, now - grace)
    if manifest != before and not dry_run:
        write_manifest(root, manifest)
    former = _named(s for s in before.snapshots if s.snapshot_id in report.snapshots_expired)
    for path, reason, since in _garbage(root, manifest, former):
        size = _size(path)
        if since is not None and since > now - grace:
            report.waiting_files += 1
            report.waiting_bytes += size
            continue
        report.files += 1
        report.bytes += size
        report.by_reason[reason] = report.by_reason.get(reason, 0) + 1
        if dry_run:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return report


def _expire(manifest: Manifest, until: datetime) -> tuple[Manifest, list[str]]:
    """`manifest` without the snapshots that were retired at or before `until`, and their ids."""
    expired = sorted(name for name, at in manifest.retired.items() if at <= until)
    left = replace(
        manifest,
        snapshots=tuple(s for s in manifest.snapshots if s.snapshot_id not in expired),
        retired={name: at for name, at in manifest.retired.items() if name not in expired},
    )
    return left, expired


def _garbage(root: Path, manifest: Manifest, former: set[str]) -> Iterator[tuple[Path, str, datetime | None]]:
    """Each file or folder that nothing refers to, why, and since when; None where no reader can need it.

    `former` files belonged to a snapshot that has just expired: their grace period is over.
    """
    temporary = find_temporary(root)
    # An adapter's folder is written under such a name before it is renamed.
    for path in (*temporary, *root.glob("adapters/.adapter-*")):
        yield path, "half-written", None
    named = _named(manifest.snapshots)
    for path in _files(root, [f"features/{table}" for table in FEATURES]):
        name = path.relative_to(root).as_posix()
        if name in former - named:
            yield path, "of an expired snapshot", None
        elif name not in named:
            yield path, "in no snapshot", _modified(path)
    inputs = {snapshot.lineage.get("inputs") for snapshot in manifest.snapshots}
    for path in sorted((root / INPUTS_FOLDER).glob("[!.]*.json")):
        if path.relative_to(root).as_posix() not in inputs:
            yield path, "inputs of no snapshot", None
    ledger = Ledger(root)
    dropped = ledger.dropped()
    named_in = {path for commit in ledger.commits() for paths in commit.add.values() for path in paths}
    folders = LEDGER_FOLDERS | {path.split("/")[0] for path in named_in} - RECORD_FOLDERS - {"features"}
    for path in _files(root, sorted(folders | set(SEGMENTED))):
        name = path.relative_to(root).as_posix()
        if name in dropped:
            yield path, "superseded", dropped[name]
        elif name not in named_in and (name.split("/")[0] not in SEGMENTED or path.name.startswith(MERGED)):
            yield path, "in no commit", _modified(path)


def _named(snapshots: Iterable[Snapshot]) -> set[str]:
    return {ref.path for snapshot in snapshots for refs in snapshot.tables.values() for ref in refs}


def _files(root: Path, folders: list[str]) -> Iterator[Path]:
    """Finished files of these folders."""
    for folder in folders:
        for path in sorted((root / folder).rglob("*")):
            hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
            if path.is_file() and not hidden and path.suffix in (".parquet", ".pool"):
                yield path


def _modified(path: Path) -> datetime:
    return datetime.fromtimestamp(path.stat().st_mtime, UTC)


def _size(path: Path) -> int:
    return sum(f.stat().st_size for f in (path.rglob("*") if path.is_dir() else [path]) if f.is_file())
