"""The backfill verb: its plan, its chunks, and that interruptions and other writers change nothing."""

import json
import signal
import subprocess
import sys
from collections import Counter
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import ValidationError

import lorestream
from flows import refresh as refreshing
from flows.backfill import BackfillParams, backfill
from flows.cli import call
from flows.config import load_config
from flows.setup import prepare_warehouse
from tests.flows.conftest import ROOT
from tests.flows.erased_shop import stored_rows
from tests.flows.flow_processes import TASKS
from tests.flows.shop import START, QuickEncoder, event, open_shop, scripted_engine, write_events
from warehouse.errors import WriterBusy
from warehouse.lock import writer_lock

# Partitions are sealed at hours 1 and 4 of this day; those of hour 1 hold two items each.
FIRST_HOURS = ["--from", "2025-01-01", "--to", "2025-01-01T04:00:00"]


def dry_backfill(shop: Path, capfd: pytest.CaptureFixture[str], *arguments: str) -> dict[str, int]:
    """Planned calls by kind."""
    before = sorted(shop.parent.rglob("*"))
    assert call(["backfill", "--dry-run", "--json", "--config", str(shop), *FIRST_HOURS, *arguments]) == 0
    assert sorted(shop.parent.rglob("*")) == before
    plan = json.loads(capfd.readouterr().out)
    return {kind: cost["calls"] for kind, cost in plan["planned"].items()}


def test_a_dry_backfill_plans_its_interval_and_its_users_and_writes_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shop = open_shop(tmp_path, users=2)
    prepare_warehouse(load_config(shop).root)
    assert dry_backfill(shop, capfd) == {"user_summary": 2, "item_facts": 3}
    assert dry_backfill(shop, capfd, "--limit-users", "1") == {"user_summary": 1, "item_facts": 2}


def test_an_impossible_backfill_ends_with_two(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shop = open_shop(tmp_path)
    prepare_warehouse(load_config(shop).root)
    assert call(["backfill", "--config", str(shop), *FIRST_HOURS, "--limit-users", "0"]) == 2
    assert "limit_users" in capfd.readouterr().err


def in_processes(folder: Path, steps: list[list[dict[str, object]]]) -> list[list[int]]:
    """How the processes of `flow_processes` ended."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("flow_processes.py")), json.dumps(steps)],
        env={"PATH": "/usr/bin:/bin", "HOME": str(folder), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    ends: list[list[int]] = json.loads(done.stdout.splitlines()[-1])
    return ends


def what_counts(root: Path) -> dict[str, list[dict[str, object]]]:
    """The rows of every table without the moment they were made at; of the public ones what readers see."""
    rows = stored_rows(root)
    for table, entity in (("user_features", "user_id"), ("item_features", "item_id")):
        newest: dict[tuple[object, object], dict[str, object]] = {}
        for row in sorted(rows[table], key=lambda row: str(row["created_at"])):
            newest[row[entity], row["valid_from"]] = row
        rows[table] = list(newest.values())
    dated = {"created_at", "snapshot_id"}
    return {
        table: sorted(({n: v for n, v in row.items() if n not in dated} for row in found), key=repr)
        for table, found in rows.items()
    }


# Of twenty daily events, partitions of 2, 3, 3, ... are sealed on days 1, 4, 7, 10, 13, 16, 19.
MIDDLE = {"verb": "backfill", "start": "2025-01-06T00:00:00", "end": "2025-01-19T00:00:00+00:00"}


@pytest.fixture(scope="module")
def calm_and_rough(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two copies of a shop that has an adapter from its first days, after many users' twenty days were taken in.

    One had a backfill by days and then a refresh; in the other a backfill by calls was killed twice, in the midst of
    its calls and before it published, and then finished beside a refresh.
    """
    folder = tmp_path_factory.mktemp("shops")
    shop = open_shop(folder / "base", users=2, items=8)
    shop.write_text(
        shop.read_text() + "[knowledge]\ncascade = 'shift'\n[segments]\nrows = 1\n[quality]\nenabled = false\n"
    )
    prepare_warehouse(load_config(shop).root)
    write_events(
        folder / "later", "-2", [event(u, (3 * u + n) % 8, 24 * n + u) for u in range(2, 5) for n in range(20)]
    )
    small = MIDDLE | {"chunk_calls": 7, "wait_s": 120}
    steps = [
        [{"verb": "refresh", "shop": "base"}],
        [{"verb": "copy", "shop": "base", "to": name, "later": "later"} for name in ("calm", "rough")],
        [MIDDLE | {"shop": "calm", "chunk_days": 3}],
        [{"verb": "refresh", "shop": "calm"}],
        [small | {"shop": "rough", "dies_after": 9}],
        [small | {"shop": "rough", "dies_at": "manifest.json"}],
        [small | {"shop": "rough"}, {"verb": "refresh", "shop": "rough", "wait_s": 120}],
    ]
    killed = -signal.SIGKILL
    assert in_processes(folder, steps) == [[0], [0, 0], [0], [0], [killed], [killed], [0, 0]]
    return folder / "calm", folder / "rough"


@pytest.mark.slow
def test_a_backfill_interrupted_twice_and_finished_beside_a_refresh_ends_as_an_undisturbed_one(
    calm_and_rough: tuple[Path, Path],
) -> None:
    calm, rough = calm_and_rough
    calm_answers, rough_answers = ((folder / "answers.log").read_text().split() for folder in calm_and_rough)
    assert max(Counter(rough_answers).values()) == 1, "no finished call is made again"
    assert sorted(rough_answers) == sorted(calm_answers)
    calm_rows, rough_rows = what_counts(calm / "warehouse"), what_counts(rough / "warehouse")
    assert rough_rows.keys() == calm_rows.keys()
    for table, rows in calm_rows.items():
        assert rough_rows[table] == rows, table


@pytest.mark.slow
def test_chunks_publish_in_order_of_time(calm_and_rough: tuple[Path, Path]) -> None:
    calm, _ = calm_and_rough
    # The empty snapshot and that of the base; partitions of days 7, 10, 13 and 16 and their items; the last refresh's.
    assert len(lorestream.open(calm / "warehouse").snapshots()) == 2 + 4 + 1
    made = [row for row in stored_rows(calm / "warehouse")["user_features"] if row["user_id"] == "u4"]
    first = {
        number: min(str(row["created_at"]) for row in made if row["partition_no"] == number) for number in range(7)
    }
    # Those of the interval in order of time, then what is before it and after it.
    assert sorted(first, key=lambda number: (first[number], number)) == [2, 3, 4, 5, 0, 1, 6]


def test_chunks_publish_as_they_finish_and_a_second_backfill_asks_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = open_shop(tmp_path, users=2)
    prepare_warehouse(load_config(shop).root)
    for name in TASKS:
        monkeypatch.setattr(refreshing, name, getattr(refreshing, name).fn)
    monkeypatch.setattr(refreshing, "create_markdown_artifact", lambda *_args, **_named: None)
    monkeypatch.setattr("flows.run.TextEncoder", QuickEncoder)
    monkeypatch.setattr("flows.run._make_engine", lambda _config: scripted_engine())
    interval = (START, START + timedelta(days=1), shop)
    done = backfill.fn(*interval, chunk_calls=6)
    # Hour 1: two summaries and three items; hour 4: two summaries and two items.
    assert [(chunk["calls"], chunk["rows_published"]) for chunk in done["chunks"]] == [(5, 5), (4, 4)]
    assert len(lorestream.open(load_config(shop).root).snapshots()) == 1 + 2
    again = backfill.fn(*interval, chunk_calls=6)
    assert (again["calls"], again["rows_published"], again["interval"]["answered_before"]) == (0, 0, 9)


def test_without_waiting_a_backfill_beside_a_writer_ends_with_three(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shop = open_shop(tmp_path)
    root = load_config(shop).root
    prepare_warehouse(root)
    with writer_lock(root, "the refresh"):
        with pytest.raises(WriterBusy, match="the refresh") as caught:
            backfill.fn(START, START + timedelta(days=1), shop)
        assert caught.value.exit_code == 3


def test_a_dry_backfill_says_what_was_narrowed_and_where_the_chunks_are(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shop = open_shop(tmp_path, users=2)
    prepare_warehouse(load_config(shop).root)
    command = ["backfill", "--dry-run", "--json", "--config", str(shop), "--from", "2024-01-01", "--to", "2026-01-01"]
    assert call([*command, "--chunk-calls", "6"]) == 0
    plan = json.loads(capfd.readouterr().out)
    assert any("narrowed to [2025-01-01 01:00:00" in note for note in plan["notes"])
    # Sealed in hour 1: two summaries and items 0, 1, 2; in hour 4 two more, and items 3 and 4.
    assert [chunk["calls"] for chunk in plan["chunks"]] == [5, 4]
    assert plan["interval"]["partitions"] == 4
    assert call([*command[:-4], "--from", "2030-01-01", "--to", "2031-01-01"]) == 0
    assert "nothing to do" in json.loads(capfd.readouterr().out)["notes"][-1]
    assert call([*command, "--chunk-calls", "6", "--chunk-days", "2"]) == 2
    assert "chunks go by one of them" in capfd.readouterr().err


@pytest.mark.parametrize(
    "wrong", [{"start": "yesterday"}, {"end": "2020-01-01"}, {"limit_users": 0}, {"wait_s": -1}, {"chunk_days": 0.0}]
)
def test_parameters_are_checked_before_anything_is_read(tmp_path: Path, wrong: dict[str, object]) -> None:
    given = {"start": "2025-01-01", "end": "2025-01-02", "config": tmp_path / "none.toml"} | wrong
    with pytest.raises(ValidationError):
        BackfillParams.model_validate(given)
