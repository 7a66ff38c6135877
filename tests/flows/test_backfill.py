"""The backfill verb: its dry run and its sample of users."""

import json
from pathlib import Path

import pytest

from flows.cli import call
from flows.config import load_config
from flows.setup import prepare_warehouse
from tests.flows.shop import open_shop

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
