"""The housekeeping flow: small files merged, old snapshots retired, and what nobody needs any longer removed."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import flow

from flows.config import Config, load_config
from flows.garbage import remove_garbage
from flows.run import utc_now
from flows.tasks import stage_task
from flows.writing import writing
from warehouse.compaction import compact as merge_files
from warehouse.merging import merge_internal


def merge_small_files(config: Config, wait_s: float = 0.0) -> dict[str, object]:
    """Files and bytes of the current snapshot before and after (`warehouse.compaction`), and files of the `internal`
    tables that were merged (`warehouse.merging`)."""
    snapshots = config.snapshots
    with writing(config, "lorestream compact", wait_s):
        made = merge_files(config.root, target_mb=snapshots.target_mb, now=utc_now(), keep=snapshots.keep)
        internal = merge_internal(config.root, target_mb=snapshots.target_mb, now=utc_now())
    return {**asdict(made), "internal": internal}


merge = stage_task(merge_small_files)
collect = stage_task(remove_garbage)


@flow(name="compact", persist_result=False)
def compact(
    config: Path = Path("lorestream.toml"),
    overrides: Mapping[str, Any] | None = None,
    collect_garbage: bool = True,
    wait_s: float = 0.0,
) -> dict[str, object]:
    """What was merged, and (unless told not to) what was removed; needs no model.

    Each of the two waits up to `wait_s` seconds for another writer.
    """
    loaded = load_config(config, overrides)
    found: dict[str, object] = dict(merge(loaded, wait_s))
    if collect_garbage:
        found["garbage"] = collect(loaded, wait_s=wait_s)
    return found
