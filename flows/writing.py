"""Holding a warehouse for writing: the local folder's lock and, with a `store`, its lease and what it holds."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from flows.config import Config
from warehouse.ledger import existing_ledger
from warehouse.lock import writer_lock
from warehouse.workingcopy import WorkingCopy, working_copy


@contextmanager
def writing(config: Config, owner: str, wait_s: float = 0.0, *, clean: bool = True) -> Iterator[WorkingCopy | None]:
    """Hold the configured warehouse for the block, as `owner`; what is done in it has reached the store afterwards.

    Gives the working copy of the store, None where there is none. Raises WarehouseNotFound where neither the folder nor
    the store has a warehouse, WriterBusy as `writer_lock` does, and what `working_copy` raises.
    """
    if config.store is None:
        existing_ledger(config.root)
        with writer_lock(config.root, owner, wait_s, clean=clean):
            yield None
        return
    give_up = time.monotonic() + wait_s
    with writer_lock(config.root, owner, wait_s, clean=clean):
        left = max(give_up - time.monotonic(), 0.0)
        with working_copy(config.root, config.store, owner, left) as copy:
            existing_ledger(config.root)
            yield copy
