"""The examples of joint mode, on a scripted warehouse: they run, and knowledge is trained along."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import nn

from adapters.joint import KnowledgeDataset, stored_knowledge
from demo.joint_deepctr import KnowingBackbone
from demo.joint_torch import HISTORY, KnowingModel, fit, predict, read_samples, train_jointly
from flows.config import load_config
from flows.setup import prepare_warehouse
from tests.flows.shop import event, open_shop, run_once, write_events
from warehouse.errors import UsageError

MODELS = {
    "torch": KnowingModel,
    "DIN": lambda items, norms: KnowingBackbone("DIN", items, norms),
    "DCNMix": lambda items, norms: KnowingBackbone("DCNMix", items, norms),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shop of six users with partitions of 2 and 3 events, summaries and shifts; every other rating is low."""
    folder = tmp_path_factory.mktemp("shop")
    shop = open_shop(folder, users=6, events_each=12, items=5)
    events = [event(u, (u + n) % 5, n, 5.0 if (u + n) % 2 else 1.0) for u in range(6) for n in range(12)]
    write_events(folder, "", events)
    shop.write_text(shop.read_text() + "[knowledge]\ncascade = 'shift'\n")
    run_once(shop)
    return folder


def knowledge_of(folder: Path) -> KnowledgeDataset:
    samples, _ = read_samples(folder / "inputs" / "behaviours.parquet")
    return KnowledgeDataset.open(folder / "warehouse", samples, columns=["label", "item_code", "history"])


@pytest.mark.parametrize("name", MODELS)
def test_an_example_trains_fusion_and_adapter_inside_its_model(folder: Path, name: str) -> None:
    dataset = knowledge_of(folder)
    torch.manual_seed(0)
    model = MODELS[name](5, dataset.fit_norms())
    modules: dict[str, nn.Module] = {"fusion": model.fusion, "adapter": model.adapter}
    before = {n: {k: t.clone() for k, t in m.state_dict().items()} for n, m in modules.items()}
    losses = fit(model, dataset, epochs=8, batch_size=16)
    assert losses[-1] < losses[0]
    for part, module in modules.items():
        assert any(not torch.equal(t, before[part][k]) for k, t in module.state_dict().items()), part
    told = predict(model, dataset)
    assert np.isfinite(told).all()
    assert np.array_equal(predict(model, dataset), told)
    # Every item speaks of another.
    dataset.item_vectors = dataset.item_vectors.roll(1, dims=0)
    assert not np.allclose(predict(model, dataset), told)


def test_an_example_measures_itself_on_the_newest_events(folder: Path) -> None:
    _, reached = train_jointly(folder, KnowingModel, epochs=1)
    assert 0.0 <= reached <= 1.0


def test_norms_of_an_example_know_nothing_of_the_events_that_it_is_measured_on(folder: Path, tmp_path: Path) -> None:
    samples, _ = read_samples(folder / "inputs" / "behaviours.parquet")
    events = samples.drop_columns(["label", "item_code", "history"])
    cut = events.num_rows * 4 // 5
    other = events.slice(cut).to_pylist()
    changed = [{**row, "user_id": "0", "item_id": "0", "value": 6.0 - row["value"]} for row in other]
    (tmp_path / "inputs").mkdir()
    (tmp_path / "warehouse").symlink_to(folder / "warehouse")
    pq.write_table(
        pa.concat_tables([events.slice(0, cut), pa.Table.from_pylist(changed, events.schema)]),
        tmp_path / "inputs" / "behaviours.parquet",
    )
    norms = []
    for place in (folder, tmp_path):
        model, _ = train_jointly(place, KnowingModel, epochs=0)
        assert isinstance(model, KnowingModel)
        norms.append([model.adapter.user_norm.state_dict(), model.adapter.item_norm.state_dict()])
    for before, after in zip(*norms, strict=True):
        assert before["projection"].any()
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_warehouse_is_read_as_of_each_samples_time(folder: Path) -> None:
    """Partitions of 2, 3 and 3 events, one an hour: sealed at hours 1, 4, 7 and 10."""
    samples, _ = read_samples(folder / "inputs" / "behaviours.parquet")
    batch = knowledge_of(folder)[list(range(samples.num_rows))]
    hours = [n for n in range(12) for _ in range(6)]
    sealed = [sum(hour > end for end in (1, 4, 7, 10)) for hour in hours]
    assert batch["has_summary"].sum(dim=1).tolist() == sealed
    assert batch["has_shift"].sum(dim=1).tolist() == [max(0, n - 1) for n in sealed]
    assert batch["has_item"].all()
    first_age = batch["age_days"][:, 0] * 24
    expected = [hour - 1 if n else 0 for hour, n in zip(hours, sealed, strict=True)]
    np.testing.assert_allclose(first_age, expected, atol=1e-4)


def test_histories_hold_liked_items_from_strictly_before(folder: Path) -> None:
    samples, items = read_samples(folder / "inputs" / "behaviours.parquet")
    assert items == 5
    rows = samples.to_pylist()
    for row in rows:
        liked = [r["item_code"] for r in rows if r["user_id"] == row["user_id"] and r["ts"] < row["ts"] and r["label"]]
        newest = liked[::-1][:HISTORY]
        assert row["history"] == newest + [0] * (HISTORY - len(newest))


def test_a_warehouse_without_embeddings_is_refused(tmp_path: Path) -> None:
    root = load_config(open_shop(tmp_path)).root
    prepare_warehouse(root)
    with pytest.raises(UsageError, match="holds no published embedding"):
        stored_knowledge(root)
