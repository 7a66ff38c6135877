"""Shops with settings of their own for what is asked: cascades, groups, budgets."""

from collections import Counter
from pathlib import Path

import lorestream
from augment.engine.scripted import ScriptedEngine
from flows.config import load_config
from flows.run import Run
from flows.setup import prepare_warehouse
from tests.flows.shop import open_shop
from tests.flows.shop import run_once as run_shop

GROUPS = "[groups]\nmin_size = 1\nmax_users = 2\nmax_items = 2\nfeatures = 'cooccurrence'\n"


def run_once(shop: Path, scripted: ScriptedEngine | None = None) -> Run:
    """A run without Prefect and with a quick encoder: what is asked does not hang on vectors."""
    return run_shop(shop, scripted, quick=True)


def shop_with(folder: Path, settings: str, users: int = 3, events_each: int = 9) -> Path:
    """Partitions of 2, 3 and 3 events for each user."""
    folder.mkdir(exist_ok=True)
    shop = open_shop(folder, users=users, events_each=events_each, items=9)
    shop.write_text(shop.read_text() + settings)
    prepare_warehouse(load_config(shop).root)
    return shop


def rungs(shop: Path, table: str) -> Counter[str]:
    return Counter(lorestream.open(load_config(shop).root).table(table).to_arrow().column("rung").to_pylist())
