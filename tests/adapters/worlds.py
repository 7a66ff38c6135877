"""A small world with known truth: texts say what items are and what users like, ratings follow from both."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from adapters.samples import Samples, build_samples
from warehouse.schemas import ALWAYS, TIMESTAMP

DAY = 86_400_000_000
START = 1_600_000_000_000_000


@dataclass(frozen=True)
class World:
    """Samples of a world and the text vectors that their rows index."""

    samples: Samples
    user_vectors: np.ndarray
    item_vectors: np.ndarray


def make_world(users: int = 100, items: int = 200, events: int = 8000, dim: int = 48, seed: int = 0) -> World:
    """Ratings by taste . attributes; every fifth item appears only in the last fifth of the time, then rated most."""
    rng = np.random.default_rng(seed)
    attributes, taste = rng.normal(size=(items, 8)), rng.normal(size=(users, 8))
    late = np.arange(items) % 5 == 0
    time = np.sort(rng.random(events))
    user = rng.integers(0, users, events)
    item = rng.choice(np.flatnonzero(~late), events)
    recent = (time > 0.8) & (rng.random(events) < 0.5)
    item[recent] = rng.choice(np.flatnonzero(late), recent.sum())
    positive = rng.random(events) < 1 / (1 + np.exp(-1.5 * (taste[user] * attributes[item]).sum(1)))
    # Users' and items' texts speak of the same eight things, each in its own words.
    user_vectors = taste @ rng.normal(size=(8, dim)) + 0.5 * rng.normal(size=(users, dim)) + 3.0
    item_vectors = attributes @ rng.normal(size=(8, dim)) + 0.5 * rng.normal(size=(items, dim)) - 1.0
    samples = build_samples(
        pa.table(
            {
                "user_id": [f"u{u}" for u in user],
                "item_id": [f"i{i}" for i in item],
                "ts": pa.array(START + (time * 300 * DAY).astype(np.int64), pa.int64()).cast(TIMESTAMP),
            }
        ),
        positive,
        # Users are known after the first tenth of the time, items always.
        pa.table(
            {
                "user_id": [f"u{u}" for u in range(users)],
                "valid_from": pa.array([START + 30 * DAY] * users, pa.int64()).cast(TIMESTAMP),
                "row": np.arange(users),
            }
        ),
        pa.table(
            {
                "item_id": [f"i{i}" for i in range(items)],
                "valid_from": pa.array([ALWAYS] * items, TIMESTAMP),
                "row": np.arange(items),
            }
        ),
        items=pa.table({"item_id": [f"i{i}" for i in range(items)], "genre": [f"g{i % 4}" for i in range(items)]}),
        category="genre",
        history_length=5,
    )
    return World(samples, user_vectors.astype(np.float32), item_vectors.astype(np.float32))
