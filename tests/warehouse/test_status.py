"""Status and snapshots where there is no warehouse."""

from collections.abc import Callable
from pathlib import Path

import pytest

from warehouse.errors import WarehouseNotFound
from warehouse.status import snapshot_list, warehouse_status


@pytest.mark.parametrize("read", [snapshot_list, warehouse_status])
def test_there_is_no_status_without_a_warehouse(tmp_path: Path, read: Callable[[Path], object]) -> None:
    with pytest.raises(WarehouseNotFound, match="lorestream init"):
        read(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()
