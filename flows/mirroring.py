"""What `lorestream mirror` does: the published tables brought to an object store (`warehouse.mirror`)."""

from dataclasses import asdict
from pathlib import Path

from warehouse.errors import ConfigError
from warehouse.ledger import existing_ledger
from warehouse.lock import writer_lock
from warehouse.mirror import mirror
from warehouse.objects import FsspecObjects


def copy_to_mirror(root: Path, url: str | None) -> dict[str, object]:
    """What was copied and removed. Raises ConfigError without a URL, WarehouseNotFound where there is no warehouse."""
    if url is None:
        raise ConfigError(
            'There is no mirror. Give its URL, or add mirror = "s3://bucket/warehouse" to the configuration.'
        )
    existing_ledger(root)
    with writer_lock(root, "lorestream mirror"):
        return {"mirror": url, **asdict(mirror(root, FsspecObjects(url)))}
