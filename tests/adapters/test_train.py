import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from adapters.config import AdapterConfig
from adapters.fit import EpochReport
from adapters.materialise import materialise_items, materialise_users
from adapters.measures import auc
from adapters.samples import Samples, time_split
from adapters.train import NotTrainable, fit_projection, train_adapter
from adapters.trained import TrainedAdapter
from tests.adapters.worlds import World, make_world
from warehouse.errors import CorruptWarehouse, InputError

CONFIG = AdapterConfig(
    out_dim=8, expert_hidden=16, components=24, embedding_dim=4, hidden=(16,), batch_size=256, max_epochs=10
)


def train(world: World, config: AdapterConfig = CONFIG) -> TrainedAdapter:
    return train_adapter(world.samples, world.user_vectors, world.item_vectors, config, encoder_id="encoder")


@pytest.fixture(scope="module")
def trained(world: World) -> TrainedAdapter:
    return train(world)


def test_vectors_of_users_and_items_meet_on_held_out_time(world: World, trained: TrainedAdapter) -> None:
    samples = world.samples
    split = time_split(samples.ts, CONFIG.validation_fraction, CONFIG.holdout_fraction)
    holdout = split.masks(samples.ts)[2]
    users = materialise_users(trained, world.user_vectors)[samples.user_row[holdout]]
    items = materialise_items(trained, world.item_vectors)[samples.item_row[holdout]]
    assert auc(samples.label[holdout], (users * items).sum(1)) > 0.75


def test_the_epoch_of_the_best_validation_log_loss_is_kept(world: World, trained: TrainedAdapter) -> None:
    meta = trained.meta
    reached = [e.valid_knowledge_logloss for e in meta.epochs]
    assert meta.best_epoch == int(np.argmin(np.array(reached)))
    stopped = CONFIG.model_copy(update={"max_epochs": meta.best_epoch + 1})
    assert train(world, stopped).meta.weights_digest == meta.weights_digest


def test_meta_says_what_each_part_of_time_was_used_for(world: World, trained: TrainedAdapter) -> None:
    meta, ts = trained.meta, world.samples.ts
    split = time_split(ts, CONFIG.validation_fraction, CONFIG.holdout_fraction)
    micros = [round(t.timestamp() * 1e6) for t in (meta.train_from, meta.valid_from, meta.holdout_from)]
    assert micros == [ts.min(), split.valid_from, split.holdout_from]
    assert meta.train_samples == (ts < split.valid_from).sum()
    assert all(0.3 < e.valid_auc < 1 and 0 < e.holdout_logloss < 2 for e in meta.epochs)


def test_training_is_deterministic_by_seed_and_reports_each_epoch(world: World) -> None:
    config = CONFIG.model_copy(update={"max_epochs": 2})
    reports: list[EpochReport] = []
    torch.manual_seed(1)
    first = train_adapter(
        world.samples, world.user_vectors, world.item_vectors, config, encoder_id="encoder", progress=reports.append
    )
    torch.manual_seed(2)
    assert train(world, config).meta.version == first.meta.version
    assert tuple(reports) == first.meta.epochs
    assert train(world, config.model_copy(update={"seed": 9})).meta.weights_digest != first.meta.weights_digest


def test_training_with_several_threads_is_deterministic() -> None:
    # As wide and in batches as large as by default: torch does not divide smaller sums among threads.
    world = make_world(users=400, items=800, events=10_000, dim=64)
    config = AdapterConfig(max_epochs=2)
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(4)
    try:
        versions = {train(world, config).meta.version for _ in range(4)}
    finally:
        torch.set_num_threads(threads)
    assert len(versions) == 1
    assert torch.are_deterministic_algorithms_enabled() == deterministic


def test_holdout_labels_do_not_move_the_adapter(world: World) -> None:
    samples = world.samples
    config = CONFIG.model_copy(update={"max_epochs": 2})
    split = time_split(samples.ts, config.validation_fraction, config.holdout_fraction)
    label = np.where(samples.ts >= split.holdout_from, 1 - samples.label, samples.label)
    changed = World(replace_label(world, label), world.user_vectors, world.item_vectors)
    assert train(changed, config).meta.weights_digest == train(world, config).meta.weights_digest


def replace_label(world: World, label: np.ndarray) -> Samples:
    return replace(world.samples, label=label.astype(np.float32))


def test_published_vectors_are_standardised_over_training_entities(world: World, trained: TrainedAdapter) -> None:
    samples = world.samples
    train_rows = samples.ts < time_split(samples.ts, 0.1, 0.1).valid_from
    rows = np.unique(samples.item_row[train_rows])
    items = materialise_items(trained, world.item_vectors)[rows]
    np.testing.assert_allclose(items.mean(0), 0, atol=1e-4)
    assert float((items**2).mean()) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("kind", ["experts", "projection"])
def test_a_saved_adapter_loads_as_it_was(world: World, tmp_path: Path, kind: str, trained: TrainedAdapter) -> None:
    adapter = trained
    if kind == "projection":
        adapter = fit_projection(world.user_vectors, world.item_vectors, CONFIG, encoder_id="encoder")
    adapter.save(tmp_path / "adapters" / "a")
    loaded = TrainedAdapter.load(tmp_path / "adapters" / "a", encoder_id="encoder", dim=48)
    assert loaded.meta == adapter.meta
    assert loaded.meta.kind == kind
    for side, vectors in ((materialise_users, world.user_vectors), (materialise_items, world.item_vectors)):
        np.testing.assert_array_equal(side(loaded, vectors), side(adapter, vectors))
    assert [p.name for p in (tmp_path / "adapters").iterdir()] == ["a"]
    adapter.save(tmp_path / "adapters" / "a")


def test_kars_exact_form_is_a_setting(world: World, tmp_path: Path) -> None:
    config = CONFIG.model_copy(
        update={"components": None, "linear_path": False, "knowledge_loss_weight": 0.0, "max_epochs": 3}
    )
    adapter = train(world, config)
    assert adapter.meta.epochs[0].valid_knowledge_logloss is None
    assert adapter.meta.best_epoch == int(np.argmin([e.valid_logloss for e in adapter.meta.epochs]))
    adapter.save(tmp_path / "kar")
    loaded = TrainedAdapter.load(tmp_path / "kar")
    # Shared and dedicated experts 48-16-8 and two gates 48-4: nothing else is there.
    expert = 48 * 16 + 16 + 16 * 8 + 8
    assert sum(p.numel() for p in loaded.towers.parameters()) == 6 * expert + 2 * (48 * 4 + 4)


def test_load_refuses_what_does_not_fit(tmp_path: Path, trained: TrainedAdapter) -> None:
    folder = tmp_path / "a"
    with pytest.raises(InputError, match="no adapter in"):
        TrainedAdapter.load(folder)
    trained.save(folder)
    with pytest.raises(InputError, match="takes user vectors of 48 numbers, the encoder gives 768"):
        TrainedAdapter.load(folder, dim=768)
    with pytest.raises(InputError, match="trained on vectors of encoder, these are of another"):
        TrainedAdapter.load(folder, encoder_id="another")
    meta = json.loads((folder / "meta.json").read_text())
    for change, message in (({"format": 99}, "format 99"), ({"config": {"unheard_of": 1}}, "unheard_of")):
        (folder / "meta.json").write_text(json.dumps(meta | change))
        with pytest.raises(InputError, match=message):
            TrainedAdapter.load(folder)
    (folder / "meta.json").write_text("{")
    with pytest.raises(CorruptWarehouse, match="not JSON"):
        TrainedAdapter.load(folder)


def test_an_adapter_of_before_collaborative_directions_still_opens(tmp_path: Path, world: World) -> None:
    older = train(world, CONFIG.model_copy(update={"collaborative": 0, "max_epochs": 1}))
    older.save(tmp_path / "a")
    path = tmp_path / "a" / "meta.json"
    meta = json.loads(path.read_text())
    del meta["config"]["collaborative"], meta["foretold"]
    path.write_text(json.dumps(meta))
    loaded = TrainedAdapter.load(tmp_path / "a")
    np.testing.assert_array_equal(
        materialise_users(loaded, world.user_vectors), materialise_users(older, world.user_vectors)
    )


def test_the_adapter_says_what_its_texts_foretell(trained: TrainedAdapter) -> None:
    """Both sides' texts hold all eight things that choices follow, so its first factors are foretold well."""
    assert {side: len(r2) for side, r2 in trained.meta.foretold.items()} == {"user": 17, "item": 17}
    assert all(max(r2) > 0.3 for r2 in trained.meta.foretold.values())
    assert trained.towers.adapter.user_norm is not None
    assert trained.towers.adapter.user_norm.out_dim == 17 + 24


def test_load_notices_other_weights(tmp_path: Path, trained: TrainedAdapter) -> None:
    trained.save(tmp_path / "a")
    weights = tmp_path / "a" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    with pytest.raises(CorruptWarehouse, match=r"is not what meta\.json names"):
        TrainedAdapter.load(tmp_path / "a")
    weights.unlink()
    with pytest.raises(CorruptWarehouse, match="no readable weights"):
        TrainedAdapter.load(tmp_path / "a")


def test_a_folder_is_never_overwritten_by_another_adapter(
    world: World, tmp_path: Path, trained: TrainedAdapter
) -> None:
    trained.save(tmp_path / "a")
    other = fit_projection(world.user_vectors, world.item_vectors, CONFIG, encoder_id="encoder")
    with pytest.raises(InputError, match="holds another adapter"):
        other.save(tmp_path / "a")
    assert TrainedAdapter.load(tmp_path / "a").meta == trained.meta


def test_labels_of_one_kind_are_not_trainable(world: World) -> None:
    clicks = World(replace_label(world, np.ones(len(world.samples))), world.user_vectors, world.item_vectors)
    with pytest.raises(NotTrainable, match="6400 of 6400 training samples are positive"):
        train(clicks)


def test_too_few_samples_with_knowledge_are_not_trainable(world: World) -> None:
    with pytest.raises(NotTrainable, match=r"6400 training samples have knowledge, and the minimum is 9999"):
        train(world, CONFIG.model_copy(update={"min_samples": 9999}))
    few = World(world.samples.take(np.arange(2)), world.user_vectors, world.item_vectors)
    with pytest.raises(NotTrainable, match="cannot be split"):
        train(few)


def test_one_side_may_have_no_knowledge(world: World) -> None:
    samples = replace(world.samples, user_row=np.full(len(world.samples), -1))
    config = CONFIG.model_copy(update={"max_epochs": 1})
    adapter = train_adapter(samples, np.zeros((0, 48), np.float32), world.item_vectors, config, encoder_id="encoder")
    assert np.isfinite(materialise_items(adapter, world.item_vectors)).all()
    projected = fit_projection(np.zeros((0, 48), np.float32), world.item_vectors, CONFIG, encoder_id="encoder")
    assert materialise_users(projected, world.user_vectors).shape == (100, 8)


def test_projection_needs_no_label_and_pads_what_texts_cannot_fill(world: World) -> None:
    few = world.item_vectors[:3]
    adapter = fit_projection(few, few, CONFIG, encoder_id="encoder")
    augment = materialise_items(adapter, few)
    assert augment.shape == (3, 8)
    assert np.isfinite(augment).all()
    assert (augment.std(0) > 0).sum() == 2


def test_materialise_refuses_wrong_widths_and_what_is_not_finite(world: World, trained: TrainedAdapter) -> None:
    with pytest.raises(InputError, match=r"item vectors of 48 numbers, these have shape \(2, 5\)"):
        materialise_items(trained, np.zeros((2, 5), np.float32))
    broken = world.user_vectors.copy()
    broken[7, 3] = np.nan
    with pytest.raises(CorruptWarehouse, match=r"1 of 100 user augment vectors .* row 7 \(in the text vector"):
        materialise_users(trained, broken)


def test_materialising_in_batches_changes_nothing(
    world: World, trained: TrainedAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = materialise_items(trained, world.item_vectors)
    monkeypatch.setattr("adapters.materialise.BATCH_ROWS", 7)
    np.testing.assert_allclose(materialise_items(trained, world.item_vectors), whole, rtol=1e-4, atol=1e-5)
    assert whole.dtype == np.float32
    half = materialise_items(trained, world.item_vectors.astype(np.float16))
    np.testing.assert_allclose(half, whole, atol=0.05)
    assert materialise_items(trained, np.zeros((0, 48), np.float32)).shape == (0, 8)
