from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pytest
from pydantic import ValidationError

from warehouse.fitness import ChecksConfig
from warehouse.manifest import UnfitFeatures, publish
from warehouse.schemas import FEATURES
from warehouse.snapshot import read_manifest

Build = Callable[..., pa.Table]
Clock = Callable[[int], datetime]


@pytest.fixture
def users(feature_rows: Build, at: Clock) -> Build:
    """`users("a", "b")`: one row per user."""
    return lambda *ids, **row: feature_rows("user_features", [{"user_id": i, "valid_from": at(1), **row} for i in ids])


def refused(
    root: Path, now: datetime, rows: pa.Table, checks: ChecksConfig, message: str, replace: bool = False
) -> None:
    """The publication is refused with `message`, and nothing of it is left."""
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with pytest.raises(UnfitFeatures, match=message):
        publish(root, {"user_features": rows}, replace=replace, now=now, lineage={}, checks=checks)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_norms_out_of_range_are_refused_with_the_first_that_is(tmp_path: Path, users: Build, at: Clock) -> None:
    publish(tmp_path, {"user_features": users("z")}, replace=False, now=at(1), lineage={})
    rows = pa.concat_tables([users("a", augment=[3.0, 4.0]), users("b", augment=None), users("c", augment=[6.0, 8.0])])
    out_of = r"1 of its vectors have a norm outside \[{}\]; first that of user_id '{}', {}\..*lorestream train"
    refused(tmp_path, at(2), rows, ChecksConfig(max_norm=9.0), out_of.format("0, 9", "c", "10"))
    refused(tmp_path, at(2), rows, ChecksConfig(min_norm=5.5), out_of.format(r"5\.5, 1000", "a", "5"))
    checks = ChecksConfig(min_norm=5.0, max_norm=10.0)
    made = publish(tmp_path, {"user_features": rows}, replace=False, now=at(2), lineage={}, checks=checks)
    assert made.stats["user_features"]["rows"] == 4


def test_coverage_counts_all_rows_of_the_snapshot(tmp_path: Path, users: Build, at: Clock) -> None:
    publish(tmp_path, {"user_features": users("a", "b")}, replace=False, now=at(1), lineage={})
    none = users("c", "d", augment=None)
    half, more = ChecksConfig(min_coverage=0.5), ChecksConfig(min_coverage=0.51)
    refused(tmp_path, at(2), none, more, r"only 2 of its 4 rows \(50\.0%\) .*`checks.min_coverage` asks for 51\.0%")
    refused(tmp_path, at(2), none, half, r"only 0 of its 2 rows \(0\.0%\)", replace=True)
    made = publish(tmp_path, {"user_features": none}, replace=False, now=at(2), lineage={}, checks=half)
    assert made.stats["user_features"]["none"] == 2


def test_a_replacement_may_not_lose_rows_without_being_told(tmp_path: Path, users: Build, at: Clock) -> None:
    publish(tmp_path, {"user_features": users("a", "b", "c", "d")}, replace=False, now=at(1), lineage={})
    # Readers see four rows, not five.
    publish(tmp_path, {"user_features": users("a", created_at=at(2))}, replace=False, now=at(2), lineage={})
    assert sum(ref.rows for ref in read_manifest(tmp_path).snapshots[-1].tables["user_features"]) == 5
    three, strict = users("a", "b", "e"), ChecksConfig()
    refused(tmp_path, at(3), three, strict, "would show 3 rows .* instead of 4.*--allow-fewer-rows", replace=True)
    refused(tmp_path, at(3), users(), strict, "would show 0 rows .* instead of 4", replace=True)
    told = ChecksConfig(max_row_fall=0.25)
    made = publish(tmp_path, {"user_features": three}, replace=True, now=at(3), lineage={}, checks=told)
    assert made.stats["user_features"]["rows"] == 3
    publish(tmp_path, {"user_features": users("x")}, replace=False, now=at(4), lineage={}, checks=strict)


def test_tables_that_are_not_named_are_not_checked(tmp_path: Path, users: Build, at: Clock) -> None:
    publish(tmp_path, {"user_features": users("a", augment=None)}, replace=False, now=at(1), lineage={})
    items = FEATURES["item_features"].empty_table()
    covered = ChecksConfig(min_coverage=1.0)
    publish(tmp_path, {"item_features": items}, replace=True, now=at(2), lineage={}, checks=covered)


def test_a_range_of_norms_that_nothing_fits_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"min_norm = 5.0 is above max_norm = 1.0"):
        ChecksConfig(min_norm=5.0, max_norm=1.0)
