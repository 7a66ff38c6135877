"""A tiny shop for flow tests: made-up titles, ratings all positive, so that the label-free adapter is used."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from augment.encode import EncoderConfig, TextEncoder
from augment.engine.scripted import ScriptedEngine
from augment.scope import Scope
from flows import asking, grouping, pools, stages
from flows.config import load_config
from flows.progress import StageProgress
from flows.run import Run
from flows.setup import prepare_warehouse
from warehouse.schemas import BEHAVIOURS

SILENT = StageProgress(None)
START = datetime(2025, 1, 1, tzinfo=UTC)
WEIGHTS = Path(__file__).parents[2] / "demo" / "weights"

CONFIG = """
warehouse = "warehouse"
[inputs.behaviours]
path = "inputs/behaviours*.parquet"
[inputs.items]
path = "inputs/items.parquet"
[partitions]
sizes = [2, 3]
buckets = 4
[engine]
model = "{model}"
max_new_tokens = 48
[adapter]
out_dim = 4
"""


def event(user: int, item: int, hour: int, value: float = 5.0) -> dict[str, object]:
    return {
        "user_id": f"u{user}",
        "item_id": f"i{item}",
        "ts": START + timedelta(hours=hour),
        "value": value,
        "action": "interact",
    }


def write_events(folder: Path, name: str, events: Sequence[dict[str, object]]) -> None:
    (folder / "inputs").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(events), BEHAVIOURS), folder / "inputs" / f"behaviours{name}.parquet")


def write_items(folder: Path, titles: Sequence[str]) -> None:
    (folder / "inputs").mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {"item_id": [f"i{n}" for n in range(len(titles))], "title": list(titles), "genres": [["drama"]] * len(titles)}
    )
    pq.write_table(table, folder / "inputs" / "items.parquet")


def open_shop(folder: Path, users: int = 4, events_each: int = 6, items: int = 5) -> Path:
    """Path of a config file beside fresh inputs: every user rates items in turn, one an hour."""
    write_items(folder, [f"Quiet Lamp {n}" for n in range(items)])
    write_events(folder, "", [event(u, (u + n) % items, n) for u in range(users) for n in range(events_each)])
    config = folder / "lorestream.toml"
    config.write_text(CONFIG.format(model=WEIGHTS))
    return config


def scripted_engine() -> ScriptedEngine:
    def answer(prompt: str) -> str:
        title = prompt.split('"')[1] if '"' in prompt else "what is new"
        return f"An answer of {len(prompt)} characters about {title}."

    return ScriptedEngine(answer)


class QuickEncoder:
    """Vectors from digests of texts: what an encoder does, without the seconds that it takes to load one."""

    dim = 8
    encoder_id = "quick"

    def __init__(self, _config: EncoderConfig) -> None:
        pass

    def load(self) -> None:
        pass

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        seeds = [int.from_bytes(sha256(text.encode()).digest()[:4], "big") for text in texts]
        return np.array([np.random.default_rng(seed).normal(size=self.dim) for seed in seeds], np.float32)


# Loading it takes longer than all else that a run of this shop does.
_ENCODERS: dict[EncoderConfig, TextEncoder] = {}


def open_run(
    config_file: Path, engine: ScriptedEngine | None = None, scope: Scope | None = None, *, quick: bool = False
) -> Run:
    """A run on the configuration as it stands, with an encoder that all runs share, or a `quick` one."""
    config = load_config(config_file)
    prepare_warehouse(config.root)
    run = Run(config, config.root, scope, engine or scripted_engine())
    if quick:
        run.encoder = QuickEncoder(config.encoder)  # type: ignore[assignment]
    else:
        run.encoder = _ENCODERS.setdefault(config.encoder, TextEncoder(config.encoder))
    return run


def run_once(
    config_file: Path, scripted: ScriptedEngine | None = None, scope: Scope | None = None, *, quick: bool = False
) -> Run:
    """A run without Prefect, its stages in order."""
    run = open_run(config_file, scripted, scope, quick=quick)
    run_stages(run)
    return run


def run_stages(run: Run) -> None:
    """All stages of a run, in order."""
    stages.ingest(run)
    stages.partition(run)
    grouping.form_groups(run)
    asking.ask(run, SILENT, asking.plan, pools.choose_pool, asking.call_engine)
    stages.encode(run, SILENT)
    stages.adapt(run)
    stages.publish(run)
