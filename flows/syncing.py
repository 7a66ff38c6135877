"""What `lorestream sync` does: the local folder and the object store brought to the same state."""

from dataclasses import asdict

from flows.config import Config
from flows.writing import writing
from warehouse.errors import ConfigError


def synchronise(config: Config) -> dict[str, object]:
    """What was fetched, sent and removed. Raises ConfigError without a store, and what `writing` raises."""
    if config.store is None:
        raise ConfigError('There is no store. Add store = "s3://bucket/warehouse" to the configuration.')
    with writing(config, "lorestream sync") as copy:
        assert copy is not None, "a configuration with a store gives a working copy"
        copy.settle()
        return {"store": config.store, "warehouse": str(config.root), **asdict(copy.traffic)}
