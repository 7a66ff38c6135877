from collections.abc import Callable
from datetime import datetime
from math import sqrt
from pathlib import Path
from statistics import fmean, pstdev
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warehouse import catalog
from warehouse.difference import difference
from warehouse.errors import UsageError
from warehouse.manifest import publish
from warehouse.reader import open as open_warehouse

Build = Callable[..., pa.Table]
Clock = Callable[[int], datetime]
Row = dict[str, Any]

publications = st.lists(
    st.tuples(
        st.booleans(),
        st.lists(
            st.tuples(st.sampled_from("abc"), st.integers(0, 2), st.sampled_from([None, [3.0, 4.0], [1.0, 0.0]])),
            max_size=4,
            unique_by=lambda row: row[:2],
        ),
    ),
    min_size=1,
    max_size=4,
)


def shown(rows: list[Row]) -> dict[tuple[str, datetime], Row]:
    """What readers see, by reading all rows in order of creation."""
    return {(row["user_id"], row["valid_from"]): row for row in sorted(rows, key=lambda row: row["created_at"])}


def naive(old: list[Row], new: list[Row]) -> dict[str, Any]:
    before, after = shown(old), shown(new)
    both = before.keys() & after.keys()
    return {
        "added": len(after.keys() - before.keys()),
        "removed": len(before.keys() - after.keys()),
        "changed": sum(before[k]["augment"] != after[k]["augment"] for k in both),
        "coverage": {
            side: {
                rung: round(sum(row["rung"] == rung for row in rows) / len(rows), 6) if rows else 0.0
                for rung in ("own", "group", "global", "none")
            }
            for side, rows in (("old", old), ("new", new))
        },
        "drift": naive_drift(*([row["augment"] for row in rows if row["augment"]] for rows in (old, new))),
    }


def naive_drift(old: list[list[float]], new: list[list[float]]) -> dict[str, Any]:
    def norms(vectors: list[list[float]]) -> dict[str, float | None]:
        found = [sqrt(x * x + y * y) for x, y in vectors]
        return {"mean": fmean(found) if found else None, "deviation": pstdev(found) if found else None}

    moved = None
    if old and new:
        means = [[fmean(v[place] for v in vectors) for place in (0, 1)] for vectors in (old, new)]
        moved = sqrt(sum((a - b) ** 2 for a, b in zip(*means, strict=True))) / fmean(
            sqrt(x * x + y * y) for x, y in old
        )
    return {"norm_old": norms(old), "norm_new": norms(new), "mean_moved": moved}


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for name, part in value.items() for k, v in flat(part, f"{prefix}.{name}").items()}


@given(plan=publications)
@settings(max_examples=12, deadline=None)
def test_the_difference_of_any_two_snapshots_equals_a_naive_oracle(
    feature_rows: Build, at: Clock, plan: list[tuple[bool, list[tuple[str, int, Any]]]]
) -> None:
    with TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(catalog, "rebuild", lambda root: root)
        patch.setattr("warehouse.store._flush", lambda path: None)
        root = Path(folder)
        ids = [publish(root, {}, replace=False, now=at(0), lineage={}).snapshot_id]
        for number, (replace, rows) in enumerate(plan, start=1):
            made = [{"user_id": u, "valid_from": at(v), "created_at": at(number), "augment": x} for u, v, x in rows]
            table = feature_rows("user_features", made)
            ids.append(publish(root, {"user_features": table}, replace=replace, now=at(number), lineage={}).snapshot_id)
        for old, new in ((ids[-2], ids[-1]), (ids[-1], ids[0]), (ids[0], ids[-1])):
            rows = [open_warehouse(root, s).table("user_features").to_arrow().to_pylist() for s in (old, new)]
            found = flat(difference(root, old, new)["user_features"])
            assert found == pytest.approx(flat(naive(*rows)))


def test_the_same_rows_in_other_files_are_no_change(tmp_path: Path, feature_rows: Build, at: Clock) -> None:
    rows = feature_rows("user_features", [{"user_id": u, "valid_from": at(1)} for u in "ab"])
    made = [publish(tmp_path, {"user_features": rows}, replace=True, now=at(n), lineage={}) for n in (1, 2)]
    found = difference(tmp_path, *(snapshot.snapshot_id for snapshot in made))
    users = found["user_features"]
    assert isinstance(users, dict)
    assert (users["added"], users["removed"], users["changed"]) == (0, 0, 0)
    assert users["drift"]["mean_moved"] == 0.0
    with pytest.raises(UsageError, match="no snapshot `nope`"):
        difference(tmp_path, "nope", made[0].snapshot_id)


def test_vectors_of_another_length_have_changed_and_no_drift_of_the_mean(
    tmp_path: Path, feature_rows: Build, at: Clock
) -> None:
    ids = []
    for dim in (2, 3):
        rows = feature_rows("user_features", [{"user_id": "a", "valid_from": at(1)}], dim)
        ids.append(publish(tmp_path, {"user_features": rows}, replace=True, now=at(dim), lineage={}).snapshot_id)
    users = difference(tmp_path, *ids)["user_features"]
    assert isinstance(users, dict)
    assert users["changed"] == 1
    assert users["drift"]["mean_moved"] is None
    assert users["drift"]["norm_new"]["mean"] == pytest.approx(sqrt(3 * 0.25))
