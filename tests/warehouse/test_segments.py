"""Segments of texts count from the moment they exist, and once the ledger names them they are missed."""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warehouse.errors import CorruptWarehouse
from warehouse.garbage import collect_garbage
from warehouse.ledger import Ledger
from warehouse.manifest import publish
from warehouse.merging import merge_internal
from warehouse.segments import LostSegments, give_up_lost, record_segments, segments
from warehouse.store import read_table, write_table

Clock = Callable[[int], datetime]


@pytest.fixture
def root(tmp_path: Path, at: Clock) -> Path:
    publish(tmp_path, {}, replace=False, now=at(0), lineage={})
    return tmp_path


def write(root: Path, name: str, table: str = "knowledge") -> Path:
    path = root / table / f"{name}.parquet"
    write_table(path, pa.table({"request_key": [name]}))
    return path


def names(root: Path, table: str = "knowledge") -> list[str]:
    return [path.stem for path in segments(Ledger(root), table)]


def keys(root: Path) -> list[str]:
    return sorted(read_table(segments(Ledger(root), "knowledge"), None)["request_key"].to_pylist())


def test_a_segment_counts_before_and_after_it_is_named_and_is_named_once(root: Path, at: Clock) -> None:
    write(root, "a"), write(root, "b"), write(root, "v", "embeddings")
    assert names(root) == ["a", "b"]
    record_segments(Ledger(root), at(1))
    record_segments(Ledger(root), at(2))
    [commit] = Ledger(root).commits()
    assert commit.add == {
        "knowledge": ("knowledge/a.parquet", "knowledge/b.parquet"),
        "embeddings": ("embeddings/v.parquet",),
    }
    assert (names(root), names(root, "embeddings")) == (["a", "b"], ["v"])


@pytest.mark.parametrize("table", ["knowledge", "embeddings"])
def test_a_named_segment_that_vanishes_is_told_until_it_is_given_up(root: Path, at: Clock, table: str) -> None:
    lost, kept = write(root, "a", table), write(root, "b", table)
    record_segments(Ledger(root), at(1))
    content = lost.read_bytes()
    lost.unlink()
    for ask in (lambda: segments(Ledger(root), table), lambda: record_segments(Ledger(root), at(2))):
        with pytest.raises(LostSegments, match=rf"{lost} is missing.*gc --forget-lost"):
            ask()
    assert give_up_lost(Ledger(root), at(3), dry_run=True) == [lost]
    assert len(Ledger(root).commits()) == 1
    assert give_up_lost(Ledger(root), at(3)) == [lost]
    assert segments(Ledger(root), table) == [kept]
    assert give_up_lost(Ledger(root), at(4)) == []
    # Found again, it is not counted a second time beside what was made in its place.
    lost.write_bytes(content)
    record_segments(Ledger(root), at(5))
    assert segments(Ledger(root), table) == [kept]
    collect_garbage(root, keep=9, grace=timedelta(0), now=at(9))
    assert not lost.exists()
    assert kept.exists()


@pytest.mark.parametrize("table", ["knowledge", "embeddings"])
@pytest.mark.parametrize("is_named", [True, False])
def test_a_segment_that_was_cut_short_is_given_up_too(root: Path, at: Clock, table: str, is_named: bool) -> None:
    cut, kept = write(root, "a", table), write(root, "b", table)
    if is_named:
        record_segments(Ledger(root), at(1))
    cut.write_bytes(cut.read_bytes()[:100])
    with pytest.raises(CorruptWarehouse, match=rf"{cut} cannot be read as Parquet .*gc --forget-lost"):
        read_table(segments(Ledger(root), table), None)
    assert give_up_lost(Ledger(root), at(2), dry_run=True) == [cut]
    assert give_up_lost(Ledger(root), at(3)) == [cut]
    record_segments(Ledger(root), at(4))
    assert segments(Ledger(root), table) == [kept]
    collect_garbage(root, keep=9, grace=timedelta(0), now=at(9))
    assert not cut.exists()
    assert give_up_lost(Ledger(root), at(9)) == []


def test_a_merge_that_was_killed_before_its_commit_counts_no_text_twice(
    root: Path, at: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_arguments: object, **_named: object) -> None:
        raise KeyboardInterrupt

    write(root, "a"), write(root, "b")
    record_segments(Ledger(root), at(1))
    write(root, "c")
    with monkeypatch.context() as patch:
        patch.setattr("warehouse.merging.Ledger.commit", killed)
        with pytest.raises(KeyboardInterrupt):
            merge_internal(root, target_mb=1, now=at(2))
    assert len(list(root.glob("knowledge/merged-*"))) == 1
    record_segments(Ledger(root), at(3))
    assert keys(root) == ["a", "b", "c"]
    collect_garbage(root, keep=9, grace=timedelta(0), now=datetime.max.replace(tzinfo=at(0).tzinfo))
    assert sorted(path.stem for path in root.glob("knowledge/*")) == ["a", "b", "c"]


steps = st.lists(st.sampled_from(["write", "record", "merge", "collect", "lose", "cut", "give up"]), max_size=14)


@given(steps=steps, data=st.data())
@settings(max_examples=60, deadline=None)
def test_whatever_happens_each_text_counts_once_or_its_loss_is_told(
    tmp_path_factory: pytest.TempPathFactory, at: Clock, steps: list[str], data: st.DataObject
) -> None:
    """Against a model: which keys are there, which files that the ledger names are gone, and which were cut short."""
    root = tmp_path_factory.mktemp("warehouse")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warehouse.store._flush", lambda path: None)
        publish(root, {}, replace=False, now=at(0), lineage={})
        there: set[str] = set()
        gone: set[Path] = set()
        cut: set[Path] = set()
        for number, step in enumerate(steps, start=1):
            now = at(number)
            ledger = Ledger(root)
            if step == "write":
                write(root, f"k{number}")
                there.add(f"k{number}")
            elif step in ("lose", "cut"):
                among = ledger.files("knowledge") if gone or step == "lose" else segments(ledger, "knowledge")
                if whole := [path for path in among if path not in gone | cut]:
                    victim = data.draw(st.sampled_from(whole))
                    there -= set(read_table([victim], None)["request_key"].to_pylist())
                    victim.unlink() if step == "lose" else victim.write_bytes(victim.read_bytes()[:100])
                    (gone if step == "lose" else cut).add(victim)
            elif step == "give up":
                assert set(give_up_lost(ledger, now)) == gone | cut
                gone.clear()
                cut.clear()
            elif step == "collect":
                collect_garbage(root, keep=9, grace=timedelta(0), now=datetime.max.replace(tzinfo=now.tzinfo))
            elif step == "record" and not gone:
                record_segments(ledger, now)
            elif step == "merge" and not gone | cut:
                merge_internal(root, target_mb=1, now=now)
            if gone:
                with pytest.raises(LostSegments) as told:
                    segments(Ledger(root), "knowledge")
                assert set(told.value.lost) == gone
            elif cut:
                with pytest.raises(CorruptWarehouse, match="cannot be read as Parquet"):
                    keys(root)
            else:
                assert keys(root) == sorted(there) if there else names(root) == []
