"""What `lorestream gc` does: retire and forget old snapshots, and remove the files that no record names."""

from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

from flows.run import utc_now
from warehouse.garbage import collect_garbage
from warehouse.ledger import existing_ledger
from warehouse.lock import writer_lock


def remove_garbage(
    root: Path, keep: int, grace: timedelta, dry_run: bool = False, wait_s: float = 0.0
) -> dict[str, object]:
    """Counts and bytes of what was removed, or would be (`warehouse.garbage`).

    A dry run takes the lock as well: what another writer is just making looks like garbage. Raises WriterBusy, and
    WarehouseNotFound where there is no warehouse.
    """
    existing_ledger(root)
    # Not cleaned by the lock, so that what killed writers left is counted with the rest.
    with writer_lock(root, "lorestream gc", wait_s, clean=False):
        return asdict(collect_garbage(root, keep=keep, grace=grace, now=utc_now(), dry_run=dry_run))
