"""What the verbs on snapshots do: compare two, pin and unpin one."""

from pathlib import Path

from flows.config import Config
from flows.writing import writing
from warehouse.difference import difference
from warehouse.errors import UsageError
from warehouse.ledger import existing_ledger
from warehouse.retention import pin, unpin
from warehouse.snapshot import read_manifest


def compare(root: Path, old: str, new: str | None) -> dict[str, object]:
    """What `new` (None: the current snapshot) shows that `old` does not (`warehouse.difference`)."""
    existing_ledger(root)
    chosen = new or read_manifest(root).current
    if chosen is None:
        raise UsageError(f"The warehouse {root} has published nothing yet. Finish a `lorestream run` first.")
    return difference(root, old, chosen)


def set_pin(config: Config, snapshot_id: str, pinned: bool) -> dict[str, object]:
    """The snapshot, and whether retention spares it from now on. Raises WarehouseNotFound, or UsageError."""
    with writing(config, f"lorestream snapshots {'pin' if pinned else 'unpin'}"):
        snapshot = (pin if pinned else unpin)(config.root, snapshot_id)
    return {"snapshot_id": snapshot.snapshot_id, "pinned": pinned}
