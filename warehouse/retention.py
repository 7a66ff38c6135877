"""Which snapshots stay: the newest ones, those that somebody pinned, and the current one.

Retention only marks a snapshot as retired. Its files stay readable until `warehouse.garbage` removes them, a while
later: a reader that opened it in time reads on.
"""

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

from pydantic import BaseModel, Field

from warehouse.schemas import FEATURES
from warehouse.snapshot import Manifest, Snapshot, read_manifest, write_manifest


class SnapshotsConfig(BaseModel, frozen=True, extra="forbid"):
    """How long published snapshots live, and how small a file has to be to be merged with others."""

    # A month of nightly runs. Pinned snapshots and the current one stay beside these.
    keep: int = Field(30, ge=1)
    # A training job that reads an old snapshot may take hours after it opened it.
    grace_hours: float = Field(24.0, ge=0)
    # `compact` merges files below half of it. About a million vectors of 32 numbers: twice as many fit in any memory.
    target_mb: int = Field(128, ge=1)

    @property
    def grace(self) -> timedelta:
        return timedelta(hours=self.grace_hours)


def retire(manifest: Manifest, keep: int, now: datetime) -> Manifest:
    """`manifest`, its listed snapshots retired at `now` but for the newest `keep`, pinned ones and the current one."""
    newest = {snapshot.snapshot_id for snapshot in manifest.listed[-keep:]}
    spared = newest | manifest.pinned | {manifest.current}
    leaving = {s.snapshot_id: now for s in manifest.listed if s.snapshot_id not in spared}
    return replace(manifest, retired={**manifest.retired, **leaving}) if leaving else manifest


def pin(root: Path, snapshot_id: str) -> Snapshot:
    """The snapshot, which retention will spare from now on; one that was retired already is listed again.

    Callers hold the writer lock. Raises UsageError for an unknown id, CorruptWarehouse when one of its files is gone.
    """
    manifest = read_manifest(root)
    snapshot = manifest.get(snapshot_id)
    for table in FEATURES:
        snapshot.files(root, table)
    pinned = replace(relist(manifest, snapshot_id), pinned=manifest.pinned | {snapshot_id})
    write_manifest(root, pinned)
    return snapshot


def unpin(root: Path, snapshot_id: str) -> Snapshot:
    """The snapshot, which retention may retire from now on. Callers hold the writer lock. Raises UsageError."""
    manifest = read_manifest(root)
    snapshot = manifest.get(snapshot_id)
    write_manifest(root, replace(manifest, pinned=manifest.pinned - {snapshot_id}))
    return snapshot


def relist(manifest: Manifest, snapshot_id: str) -> Manifest:
    """`manifest` with that snapshot no longer retired."""
    return replace(manifest, retired={name: at for name, at in manifest.retired.items() if name != snapshot_id})
