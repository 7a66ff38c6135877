"""Setting up: the commented configuration, the empty warehouse, and input tables from published data sets."""

from importlib.resources import files
from pathlib import Path

from flows.config import CONFIG_NAME, Config, load_config
from flows.run import utc_now
from flows.writing import writing
from warehouse.errors import UsageError
from warehouse.ledger import Ledger
from warehouse.lock import writer_lock
from warehouse.manifest import publish, rollback
from warehouse.movielens import import_movielens


def initialise(folder: Path) -> dict[str, object]:
    """Paths of the configuration and the empty warehouse made in `folder`. A configuration that is there is kept, and
    gets the warehouse that it names.

    Raises UsageError when the warehouse exists, or lies in a store; ConfigError for a configuration with faults.
    """
    config_file = folder / CONFIG_NAME
    kept = config_file.exists()
    if not kept:
        _write_template(config_file)
    config = load_config(config_file)
    if kept and config.store is not None:
        raise UsageError(
            f"{config_file} names the store {config.store}, from where `lorestream sync` fetches the warehouse. To "
            "make a new one, leave `store` out for now."
        )
    if kept and Ledger(config.root).commits():
        raise UsageError(
            f"{config_file} and its warehouse {config.root} exist already and were left as they are. Name another "
            "folder."
        )
    prepare_warehouse(config.root)
    return {
        "config": str(config_file),
        "warehouse": str(config.root),
        "kept_config": kept,
        "next": "Name your inputs and your model in it (or `lorestream import movielens PATH`), then `lorestream run`.",
    }


def _write_template(config_file: Path) -> None:
    try:
        config_file.parent.mkdir(parents=True, exist_ok=True)
        config_file.write_text(files("flows").joinpath(CONFIG_NAME).read_text(encoding="utf-8"), encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"{config_file} cannot be written: {error.strerror}. Name a folder you may write to."
        ) from error


def prepare_warehouse(root: Path) -> None:
    """Make `root` an empty warehouse that readers can open, unless it is one already."""
    if not Ledger(root).commits():
        with writer_lock(root, "lorestream init"):
            # In this order: from its first commit on, a warehouse has a manifest.
            publish(root, {}, replace=False, now=utc_now(), lineage={})
            Ledger(root).commit("init", add={}, now=utc_now())


def import_movielens_tables(path: Path, config_file: Path) -> dict[str, object]:
    """Counts of the input tables written where the configuration expects `inputs/`."""
    config = load_config(config_file)
    return dict(import_movielens(path, config.base / "inputs"))


def roll_back(config: Config, snapshot_id: str) -> dict[str, object]:
    """The snapshot that readers see from now on. Raises WarehouseNotFound where there is no warehouse."""
    with writing(config, "lorestream rollback"):
        snapshot = rollback(config.root, snapshot_id)
    return {"current_snapshot": snapshot.snapshot_id}
