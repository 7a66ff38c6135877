"""A shop with a user and an item to erase, whose ids and words stand in every corner of the warehouse."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from augment.engine.scripted import ScriptedEngine
from flows.report import RunReport
from tests.flows.shop import START, WEIGHTS, event, run_once
from warehouse.ledger import Ledger
from warehouse.schemas import BEHAVIOURS, SEGMENTED
from warehouse.segments import segments
from warehouse.snapshot import read_manifest
from warehouse.store import read_table

USER, ITEM = "zoe-7f3a91", "item-9c04be"
# What only this user's prompts and texts say, and what only this item's say.
USER_WORD, ITEM_WORD = "qzamber", "qzbasil"
USER_WORDS, ITEM_WORDS = [USER, USER_WORD], [ITEM, ITEM_WORD]
USERS, ITEMS = 6, 8

SETTINGS = """
warehouse = "warehouse"
[inputs]
max_rejected_fraction = 0.5
[inputs.behaviours]
path = "inputs/behaviours*"
[inputs.items]
path = "inputs/items.parquet"
[inputs.users]
path = "inputs/users.parquet"
[partitions]
sizes = [2, 3]
buckets = 4
[prompts]
scenario = "lamps.toml"
[knowledge]
mode = "mixed"
cascade = "{cascade}"
[groups]
min_size = 1
max_users = 3
max_items = 3
features = "cooccurrence"
[pool]
min_texts = 10
growth = 1.01
[engine]
model = "{model}"
max_new_tokens = 48
[adapter]
out_dim = 4
"""
SCENARIO = """
name = "lamps"
noun = "lamp"
noun_plural = "lamps"
consumed = "bought"
user_factors = ["taste"]
item_factors = ["taste"]
optional_fields = true
[user_fields]
about = "about"
"""


def talkative_engine() -> ScriptedEngine:
    """Answers with what is peculiar in the prompt, as a real model would."""

    def answer(prompt: str) -> str:
        peculiar = [word.strip('".,()') for word in prompt.split() if word.lower().lstrip('"').startswith("qz")]
        return (
            f"An answer of {len(prompt)} characters that knows of {' and '.join(dict.fromkeys(peculiar)) or 'lamps'}."
        )

    return ScriptedEngine(answer)


def run_talking(config: Path) -> tuple[RunReport, int]:
    """The report of a run with that engine, and how many answers it gave."""
    engine = talkative_engine()
    return run_once(config, engine, quick=True).report, engine.calls


def user_id(number: int) -> str:
    return USER if number == 0 else f"u{number}"


def item_id(number: int) -> str:
    return ITEM if number == 0 else f"i{number}"


def happened(user: int, item: int, hour: int, value: float = 5.0) -> dict[str, object]:
    return event(user, item, hour, value) | {"user_id": user_id(user), "item_id": item_id(item)}


def write(folder: Path, name: str, events: list[dict[str, object]]) -> None:
    pq.write_table(pa.Table.from_pylist(events, BEHAVIOURS), folder / "inputs" / name)


def open_erased_shop(folder: Path, cascade: str = "shift") -> Path:
    """The config file of a shop after two runs, with rejected rows, groups, a pool and two snapshots.

    Every second user met the item, the first user early on.
    """
    inputs = folder / "inputs"
    inputs.mkdir(parents=True)
    config = folder / "lorestream.toml"
    config.write_text(SETTINGS.format(model=WEIGHTS, cascade=cascade))
    (folder / "lamps.toml").write_text(SCENARIO)
    titles = [f"Quiet {ITEM_WORD if n == 0 else 'Lamp'} {n}" for n in range(ITEMS)]
    pq.write_table(pa.table({"item_id": [item_id(n) for n in range(ITEMS)], "title": titles}), inputs / "items.parquet")
    about = [f"{USER_WORD if n == 0 else 'calm'} {n}" for n in range(USERS)]
    pq.write_table(pa.table({"user_id": [user_id(n) for n in range(USERS)], "about": about}), inputs / "users.parquet")
    first = [happened(u, (u + n) % ITEMS, n) for u in range(USERS) for n in range(7)]
    # What breaks the contract is kept aside: values that are none, and a line of CSV that does not parse.
    first += [happened(u, 1, 50, float("nan")) for u in (0, 1)] + [happened(2, 0, 51, float("nan"))]
    write(folder, "behaviours-1.parquet", first)
    lines = ["user_id,item_id,ts", "u4,i1", f"{USER},i1", f"u5,{ITEM}", f"u5,i2,{(START).isoformat()}"]
    (inputs / "behaviours-2.csv").write_text("\n".join(lines) + "\n")
    run_talking(config)
    # The item comes back late for users who had sealed without it, and the pool is made of the first run's texts.
    second = [happened(u, (2 * u + n) % ITEMS, 100 + n) for u in range(USERS) for n in range(3)]
    write(folder, "behaviours-3.parquet", second)
    run_talking(config)
    return config


def stored_rows(root: Path) -> dict[str, list[dict[str, object]]]:
    """The rows of every table as they count now, in an order that does not hang on files."""
    ledger = Ledger(root)
    tables = {
        name: read_table(ledger.files(name), None)
        for name in sorted({table for commit in ledger.commits() for table in commit.add} - {"pools"})
    }
    tables |= {name: read_table(segments(ledger, name), None) for name in SEGMENTED}
    snapshot = read_manifest(root).current_snapshot()
    assert snapshot is not None
    for name in snapshot.tables:
        tables[name] = read_table(snapshot.files(root, name), None)
    return {name: sorted(table.to_pylist(), key=repr) for name, table in tables.items()}
