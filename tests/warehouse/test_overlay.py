"""A dry run's copy of a warehouse: what it shares, and how its errors name files."""

from pathlib import Path

import pytest

from warehouse.errors import CorruptWarehouse
from warehouse.overlay import overlay
from warehouse.store import read_table


def test_new_files_vanish_and_old_ones_are_shared(tmp_path: Path) -> None:
    (tmp_path / "items").mkdir()
    (tmp_path / "items" / "a.parquet").write_bytes(b"a")
    with overlay(tmp_path) as copy:
        assert (copy / "items" / "a.parquet").read_bytes() == b"a"
        (copy / "items" / "b.parquet").write_bytes(b"b")
    assert [path.name for path in (tmp_path / "items").iterdir()] == ["a.parquet"]


@pytest.mark.parametrize("content", [None, b"not parquet"])
def test_an_error_names_the_real_file(tmp_path: Path, content: bytes | None) -> None:
    (tmp_path / "items").mkdir()
    file = tmp_path / "items" / "a.parquet"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(CorruptWarehouse) as caught, overlay(tmp_path) as copy:
        read_table([copy / "items" / "a.parquet"], None)
    assert str(file.resolve()) in str(caught.value)
    assert "lorestream-dry-run-" not in str(caught.value)
