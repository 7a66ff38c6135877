"""What a sample may know, against a walk over everything that was ever written about its user and item."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from adapters.fusion import InterestFusion
from adapters.joint import KnowledgeDataset, partitions_of
from adapters.knowledge import EntityVectors
from adapters.texts import UserTexts
from adapters.whitening import InputNorm
from warehouse.errors import InputError, UsageError
from warehouse.schemas import ALWAYS, TIMESTAMP

START = datetime(2025, 1, 1, tzinfo=UTC)
START_US = round(START.timestamp() * 1e6)
DAY_US = 86_400_000_000
DIM = 2
USERS, ITEMS = ["u0", "u1", "u2"], ["i0", "i1"]


def known_of(entities: list[str], valid_from: list[object], has: list[bool], texts: UserTexts | None) -> EntityVectors:
    rows = pa.table({"entity_id": pa.array(entities, pa.string()), "valid_from": pa.array(valid_from, TIMESTAMP)})
    vectors = np.arange(len(entities) * DIM, dtype=np.float32).reshape(-1, DIM) + 1000.0
    return EntityVectors(rows, vectors, np.array(has, bool), texts)


# Per user the days on which partitions were sealed, each with or without a summary and a shift.
histories = st.fixed_dictionaries(
    {user: st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.booleans()), max_size=5) for user in USERS}
)
Histories = dict[str, list[tuple[int, bool, bool]]]


def users_of(histories: Histories) -> EntityVectors:
    """Text n of everything has the vector (n, n)."""
    entities: list[str] = []
    times: list[int] = []
    summary: list[int] = []
    shift: list[int] = []
    first: list[int] = []
    texts = 0
    for user in USERS:
        begins = len(entities)
        for day, has_summary, has_shift in sorted(histories[user]):
            entities.append(user)
            times.append(START_US + day * DAY_US)
            first.append(begins)
            summary.append(texts if has_summary else -1)
            texts += has_summary
            shift.append(texts if has_shift else -1)
            texts += has_shift
    n = len(entities)
    made = UserTexts(
        np.repeat(np.arange(texts, dtype=np.float32)[:, None], DIM, axis=1),
        *(np.array(column, np.int64) for column in (summary, shift, times, first, np.arange(n) + 1, times)),
    )
    has = [any(s >= 0 or t >= 0 for s, t in zip(summary[f : r + 1], shift[f : r + 1], strict=True))
           for r, f in enumerate(first)]  # fmt: skip
    return known_of(entities, times, has, made)


def expected_texts(
    histories: Histories, user: str, day: float, most: int
) -> list[tuple[int | None, int | None, float]]:
    """(summary, shift, age in days) of the newest partitions sealed strictly before `day`, oldest first."""
    found: list[tuple[int | None, int | None, float]] = []
    texts = 0
    for name in USERS:
        for sealed, has_summary, has_shift in sorted(histories[name]):
            entry = texts if has_summary else None, texts + has_summary if has_shift else None, day - sealed
            texts += has_summary + has_shift
            if name == user and sealed < day:
                found.append(entry)
    return found[-most:]


samples_of = st.lists(
    st.tuples(st.sampled_from([*USERS, "stranger"]), st.sampled_from([*ITEMS, "unknown"]), st.integers(-2, 44)),
    min_size=1,
    max_size=12,
)


def samples_table(samples: list[tuple[str, str, int]]) -> pa.Table:
    """Samples at quarters of a day, so that many lie exactly on a boundary; labelled by their position."""
    return pa.table(
        {
            "user_id": [user for user, _, _ in samples],
            "item_id": [item for _, item, _ in samples],
            "ts": pa.array([START + timedelta(days=q / 4) for _, _, q in samples], TIMESTAMP),
            "label": [float(n) for n in range(len(samples))],
        }
    )


@settings(max_examples=150, deadline=None)
@given(histories=histories, samples=samples_of, most=st.integers(1, 4))
def test_a_sample_sees_what_was_sealed_strictly_before_it_and_nothing_later(
    histories: Histories, samples: list[tuple[str, str, int]], most: int
) -> None:
    # i0 has facts from the beginning and new ones on day 3; i1 has some from day 5 on.
    item_days = [("i0", -1000), ("i0", 3), ("i1", 5)]
    items = known_of([i for i, _ in item_days], [START + timedelta(days=d) for _, d in item_days], [True] * 3, None)
    dataset = KnowledgeDataset(
        users_of(histories), items, samples_table(samples), columns=["label"], max_partitions=most
    )
    batch = dataset[list(range(len(samples)))]
    assert len(dataset) == len(samples)
    assert batch["summary"].shape == batch["shift"].shape == (len(samples), most, DIM)
    for n, (user, item, quarter) in enumerate(samples):
        day = quarter / 4
        expected = expected_texts(histories, user, day, most)
        told = any(s is not None or t is not None for s, t, _ in expected)
        for k in range(most):
            summary, shift, age = expected[k] if k < len(expected) else (None, None, 0.0)
            # Of a user who has partitions but no text yet, nothing is read.
            assert bool(batch["has_summary"][n, k]) == (summary is not None)
            assert bool(batch["has_shift"][n, k]) == (shift is not None)
            for name, text in (("summary", summary), ("shift", shift)):
                assert text is None or batch[name][n, k].tolist() == [text, text]
            if told and k < len(expected):
                assert float(batch["age_days"][n, k]) == pytest.approx(age, abs=1e-4)
        facts = [row for row, (i, d) in enumerate(item_days) if i == item and d < day]
        assert bool(batch["has_item"][n]) == bool(facts)
        assert not facts or batch["item"][n].tolist() == items.vectors[facts[-1]].tolist()
        one = dataset[n]
        assert all(torch.equal(one[name], batch[name][n]) for name in batch)
        assert float(batch["label"][n]) == n


@settings(max_examples=60, deadline=None)
@given(histories=histories, samples=samples_of, most=st.integers(1, 3), seed=st.integers(0, 99))
def test_norms_are_fitted_on_the_texts_that_the_samples_read_and_on_no_others(
    histories: Histories, samples: list[tuple[str, str, int]], most: int, seed: int
) -> None:
    users = users_of(histories)
    assert users.texts is not None
    rng = np.random.default_rng(seed)
    users.texts.vectors[:] = rng.normal(size=users.texts.vectors.shape)
    items = known_of(["i0", "i0", "i1"], [START + timedelta(days=d) for d in (0, 3, 5)], [True] * 3, None)
    dataset = KnowledgeDataset(users, items, samples_table(samples), max_partitions=most)
    batch = dataset[list(range(len(samples)))]
    read = [batch[f"{kind}"][batch[f"has_{kind}"]] for kind in ("summary", "shift")]
    expected = torch.cat(read).unique(dim=0), batch["item"][batch["has_item"]].unique(dim=0)
    if any(len(side) == 0 for side in expected):
        with pytest.raises(InputError, match="no training sample has knowledge"):
            dataset.fit_norms()
        return
    for norm, side in zip(dataset.fit_norms(), expected, strict=True):
        assert (norm.in_dim, norm.out_dim) == (DIM, DIM)
        whole = InputNorm.whiten(side.numpy(), DIM, 0.25)
        torch.testing.assert_close(norm.mean, whole.mean)
        torch.testing.assert_close(norm.projection, whole.projection, rtol=1e-3, atol=1e-4)


def tiny(**options: object) -> KnowledgeDataset:
    table = pa.table(
        {"who": [0, 1, 0], "what": ["i0", "i0", None], "when": pa.array([START + timedelta(days=8)] * 3, TIMESTAMP)}
    )
    users = users_of({"u0": [(1, True, False), (2, True, True)], "u1": [], "u2": []})
    numbered = pa.table({"entity_id": ["0", "0"], "valid_from": users.rows.column("valid_from")})
    users = EntityVectors(numbered, users.vectors, users.has_vector, users.texts)
    items = known_of(["i0"], [ALWAYS], [True], None)
    return KnowledgeDataset(users, items, table, user="who", item="what", ts="when", **options)


def test_a_loader_gives_batches_that_the_fusion_takes() -> None:
    dataset = tiny()
    assert dataset[[0, 1, 2]]["has_item"].tolist() == [True, True, False]
    loaders = (
        DataLoader(dataset, batch_size=2),
        DataLoader(dataset, sampler=BatchSampler(SequentialSampler(dataset), 2, drop_last=False), batch_size=None),
    )
    fusion = InterestFusion(DIM)
    made = [torch.cat([fusion(*partitions_of(batch))[0] for batch in loader]) for loader in loaders]
    torch.testing.assert_close(*made)
    known = torch.cat([fusion(*partitions_of(batch))[1] for batch in loaders[0]])
    assert known.tolist() == [1.0, 0.0, 1.0]


def test_what_cannot_be_read_is_refused() -> None:
    with pytest.raises(UsageError, match="max_partitions=0"):
        tiny(max_partitions=0)
    with pytest.raises(UsageError, match=r"`what` cannot become a tensor|`what`"):
        tiny(columns=["what"])
