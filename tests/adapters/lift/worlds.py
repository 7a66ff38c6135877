"""The small world of the adapters' tests as data for a lift, with every kind of source."""

import numpy as np

from adapters.config import CtrConfig
from adapters.lift.config import MatrixConfig, TowerConfig
from adapters.lift.data import LiftData, source_of
from tests.adapters.worlds import DAY, START, World

ALWAYS = np.iinfo(np.int64).min // 2
GROUPS = 6

SMALL = MatrixConfig(
    protocols=("time", "cold_items"),
    backbones=("DeepFM",),
    arms=("base", "full"),
    seeds=(0, 1),
    users=60,
    history_length=3,
    long_history_length=4,
    ctr=CtrConfig(embedding_dim=4, hidden=(8,), batch_size=256, max_epochs=1, patience=1),
    tower=TowerConfig(components=8, out_dim=4, hidden=4),
)


def lift_data(world: World) -> LiftData:
    """Facts and summaries say what the world's texts say; titles and histories a little of it; groups are of tastes."""
    samples, rng = world.samples, np.random.default_rng(0)
    # Row k of the world's vectors is about entity "u<k>", "i<k>"; samples have codes of their own.
    item_code = _codes(samples.items.to_pylist(), len(world.item_vectors))
    user_code = _codes(samples.users.to_pylist(), len(world.user_vectors))
    users = len(samples.users)
    group = np.arange(users) % GROUPS
    always = np.full(len(item_code), ALWAYS)
    # A third of the users each is known after 30, 130 and 230 of 300 days.
    known_from = START + (30 + 100 * (np.arange(len(user_code)) % 3)) * DAY
    weak = world.item_vectors + 6 * rng.normal(size=world.item_vectors.shape)
    shown = world.user_vectors + 6 * rng.normal(size=world.user_vectors.shape)
    texts = {name: rng.normal(size=(GROUPS, 12)) for name in ("likes", "dislikes")}
    return LiftData(
        "small",
        samples,
        {
            "facts": source_of("item", world.item_vectors, item_code, always, samples.item),
            "titles": source_of("item", weak, item_code, always, samples.item),
            "summaries": source_of("user", world.user_vectors, user_code, known_from, samples.user),
            "histories": source_of("user", shown, user_code, known_from, samples.user),
            **{
                name: source_of("user", vectors, np.arange(GROUPS), np.full(GROUPS, ALWAYS), group[samples.user])
                for name, vectors in texts.items()
            },
        },
        traits={"age": np.arange(users) % 4},
        leaky=frozenset({"likes", "dislikes"}),
        notes=("a note",),
    )


def _codes(ids: list[str], count: int) -> np.ndarray:
    code = {int(i[1:]): n for n, i in enumerate(ids)}
    return np.array([code.get(k, -1) for k in range(count)])
