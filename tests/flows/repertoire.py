"""Shops with settings of their own for what is asked: cascades, groups, budgets."""

from collections import Counter
from pathlib import Path

import lorestream
from flows.config import load_config
from flows.setup import prepare_warehouse
from tests.flows.shop import open_shop

GROUPS = "[groups]\nmin_size = 1\nmax_users = 2\nmax_items = 2\nfeatures = 'cooccurrence'\n"


def shop_with(folder: Path, settings: str, users: int = 3, events_each: int = 9) -> Path:
    """Partitions of 2, 3 and 3 events for each user."""
    folder.mkdir(exist_ok=True)
    shop = open_shop(folder, users=users, events_each=events_each, items=9)
    shop.write_text(shop.read_text() + settings)
    prepare_warehouse(load_config(shop).root)
    return shop


def rungs(shop: Path, table: str) -> Counter[str]:
    return Counter(lorestream.open(load_config(shop).root).table(table).to_arrow().column("rung").to_pylist())
