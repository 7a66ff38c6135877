"""The `export` verb: the published vectors as files of another library."""

from datetime import UTC, datetime
from pathlib import Path
from typing import cast

from flows.config import Config
from warehouse.export.tables import Format
from warehouse.reader import open as open_warehouse


def export(config: Config, to: str, out: Path, at: datetime | None, snapshot: str | None) -> dict[str, object]:
    """What was written to `out`, per table; `at` cuts off what was known later. Raises as `Warehouse.export` does."""
    moment = at.replace(tzinfo=UTC) if at is not None and at.tzinfo is None else at
    made = open_warehouse(config.root, snapshot).export(cast(Format, to), out, moment)
    return {"out": str(out), **made}
