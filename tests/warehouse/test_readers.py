"""Readers beside a writer that never rests: what they see is one snapshot or another, never a mixture."""

import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from tests.warehouse.conftest import _rows
from warehouse.compaction import compact
from warehouse.garbage import collect_garbage
from warehouse.manifest import publish
from warehouse.reader import open as open_warehouse
from warehouse.snapshot import read_manifest
from warehouse.sql import quote

START = datetime(2020, 1, 1, tzinfo=UTC)
USERS = 5
ROOT = Path(__file__).parents[2]

WRITER = """
import sys
from datetime import UTC, datetime
from pathlib import Path

from tests.warehouse.test_readers import write

write(Path(sys.argv[1]), int(sys.argv[2]))
"""


def rows_of(publication: int) -> dict[str, pa.Table]:
    """A row for each of so many users and items, all with the publication's number in them."""
    moment = START + timedelta(seconds=publication)
    common = {"valid_from": moment, "created_at": moment, "augment": [float(publication)] * 2}
    users = [{"user_id": f"u{n}", "partition_no": publication, **common} for n in range(USERS)]
    items = [{"item_id": f"i{n}", **common} for n in range(USERS)]
    return {"user_features": _rows("user_features", users), "item_features": _rows("item_features", items)}


def write(root: Path, publications: int) -> None:
    """Publish so often: mostly additions, now and then a replacement, a compaction or a collection of garbage."""
    for number in range(1, publications + 1):
        now = START + timedelta(hours=number)
        replace = number % 13 == 0
        publish(root, rows_of(number), replace=replace, now=now, lineage={"publication": number}, keep=4)
        if number % 7 == 0:
            compact(root, target_mb=1, now=now, keep=4)
        if number % 11 == 0:
            # A snapshot is left alone for sixty publications after it was retired.
            collect_garbage(root, keep=4, grace=timedelta(hours=60), now=now)


def check_python(root: Path) -> int:
    """Number of the publication that was read, all of it in one state."""
    warehouse = open_warehouse(root)
    number = warehouse.snapshot.lineage["publication"]
    assert isinstance(number, int)
    users, items = (warehouse.table(name).to_arrow() for name in ("user_features", "item_features"))
    assert users.num_rows == warehouse.snapshot.stats["user_features"]["rows"]
    assert users.num_rows == items.num_rows
    shown = pa.table(
        {"user_id": ["u0", "u4"], "item_id": ["i0", "i4"], "ts": [START + timedelta(days=9000)] * 2},
    )
    joined = warehouse.join(shown).to_arrow()
    for side in ("user", "item"):
        assert joined[f"{side}_augment"].to_pylist() == [[number, number]] * 2
    return number


def check_sql(root: Path, held: duckdb.DuckDBPyConnection | None = None) -> int:
    """The same in a bare DuckDB, in one query over both tables; `held` has attached the catalogue before."""
    con = held or attach(root)
    try:
        [(users, lowest, highest, items, snapshot)] = con.sql(
            """
            SELECT (SELECT count(*) FROM features.user_features_latest),
                   (SELECT min(augment[1]) FROM features.user_features_latest),
                   (SELECT max(augment[1]) FROM features.item_features_latest),
                   (SELECT count(*) FROM features.item_features_latest),
                   (SELECT snapshot_id FROM features.current_snapshot)
            """
        ).fetchall()
    finally:
        if held is None:
            con.close()
    assert (users, items) == (USERS, USERS)
    assert lowest == highest
    assert isinstance(snapshot, str)
    return int(lowest)


def attach(root: Path) -> duckdb.DuckDBPyConnection:
    """A connection to the catalogue, at the second attempt where the first fell on its replacement.

    DuckDB opens the file twice to attach it (see `warehouse.catalog`). What it attached is whole: all but the headers,
    which are only pointers, comes from the second.
    """
    con = duckdb.connect()
    statement = f"ATTACH {quote(str(root / 'features.duckdb'))} AS features (READ_ONLY)"
    try:
        con.execute(statement)
    except duckdb.IOException:
        con.close()
        con = duckdb.connect()
        con.execute(statement)
    return con


def beside_a_writer(root: Path, publications: int) -> dict[str, list[int]]:
    """What three readers saw, in order, while a process published so often."""
    write(root, 1)
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(root), str(publications)], cwd=ROOT)
    seen: dict[str, list[int]] = {"python": [], "sql": [], "sql session": []}
    faults: list[BaseException] = []

    def loop(name: str, read: Callable[[], int]) -> None:
        try:
            while child.poll() is None:
                seen[name].append(read())
            seen[name].append(read())
        except BaseException as error:
            faults.append(error)

    def session() -> int:
        """A session reads twice from the catalogue that it attached, whatever is published in between."""
        con = attach(root)
        try:
            first = check_sql(root, con)
            assert check_sql(root, con) == first
        finally:
            con.close()
        return first

    readers: dict[str, Any] = {
        "python": lambda: check_python(root),
        "sql": lambda: check_sql(root),
        "sql session": session,
    }
    threads = [threading.Thread(target=loop, args=item) for item in readers.items()]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        child.kill()
        child.wait()
    if faults:
        raise faults[0]
    assert child.returncode == 0
    return seen


def check_seen(publications: int, seen: dict[str, list[int]]) -> None:
    for name, numbers in seen.items():
        # The writer counts from one again after the first publication.
        assert numbers[-1] == publications, name
        assert numbers == sorted(numbers), name


def test_readers_beside_a_writer_see_one_snapshot_at_a_time(tmp_path: Path) -> None:
    seen = beside_a_writer(tmp_path, 14)
    check_seen(14, seen)
    assert len(set(seen["python"])) > 1


@pytest.mark.slow
def test_readers_beside_thousands_of_publications_see_one_snapshot_at_a_time(tmp_path: Path) -> None:
    publications = 3000
    seen = beside_a_writer(tmp_path, publications)
    check_seen(publications, seen)
    assert len(read_manifest(tmp_path).snapshots) < 100
    assert all(len(set(numbers)) > 100 for numbers in seen.values())
