"""What `lorestream gc` does: retire and forget old snapshots, and remove the files that no record names."""

from dataclasses import asdict

from flows.config import Config
from flows.run import utc_now
from flows.writing import writing
from warehouse.garbage import collect_garbage
from warehouse.ledger import Ledger
from warehouse.segments import give_up_lost


def remove_garbage(
    config: Config, dry_run: bool = False, wait_s: float = 0.0, forget_lost: bool = False
) -> dict[str, object]:
    """Counts and bytes of what was removed, or would be (`warehouse.garbage`); with `forget_lost` also the files of
    texts and vectors that are gone and on which the warehouse counts no more (`warehouse.segments`).

    A dry run takes the lock as well: what another writer is just making looks like garbage. Raises WriterBusy, and
    WarehouseNotFound where there is no warehouse.
    """
    keep, grace = config.snapshots.keep, config.snapshots.grace
    # Not cleaned by the lock, so that what killed writers left is counted with the rest.
    with writing(config, "lorestream gc", wait_s, clean=False) as copy:
        forgotten: dict[str, object] = {}
        if forget_lost:
            lost = give_up_lost(Ledger(config.root), utc_now(), dry_run=dry_run)
            forgotten["forgotten"] = [str(path) for path in lost]
        found = collect_garbage(config.root, keep=keep, grace=grace, now=utc_now(), dry_run=dry_run)
        if copy is not None and not dry_run:
            copy.settle()
        return {**asdict(found), **forgotten}
