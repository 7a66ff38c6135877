"""The housekeeping flow: small files merged, old snapshots retired, and what nobody needs any longer removed."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import flow

from flows.config import Config, load_config
from flows.garbage import remove_garbage
from flows.refresh import stage_task
from flows.run import utc_now
from flows.writing import writing
from warehouse.compaction import compact as merge_files


def merge_small_files(config: Config) -> dict[str, object]:
    """Files and bytes of the current snapshot before and after (`warehouse.compaction`)."""
    snapshots = config.snapshots
    with writing(config, "lorestream compact"):
        made = merge_files(config.root, target_mb=snapshots.target_mb, now=utc_now(), keep=snapshots.keep)
    return asdict(made)


merge = stage_task(merge_small_files)
collect = stage_task(remove_garbage)


@flow(name="compact", persist_result=False)
def compact(
    config: Path = Path("lorestream.toml"), overrides: Mapping[str, Any] | None = None, collect_garbage: bool = True
) -> dict[str, object]:
    """What was merged, and (unless told not to) what was removed; needs no model."""
    loaded = load_config(config, overrides)
    found: dict[str, object] = dict(merge(loaded))
    if collect_garbage:
        found["garbage"] = collect(loaded)
    return found
