"""Adapters with fusion and the published forms, from training to stored vectors."""

import json
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save

from adapters.config import AdapterConfig
from adapters.experts import ExpertNorm
from adapters.materialise import materialise_items, materialise_users
from adapters.measures import auc
from adapters.samples import time_split
from adapters.texts import DAY_US, UserTexts
from adapters.train import train_adapter
from adapters.trained import TrainedAdapter
from tests.adapters.worlds import World
from warehouse.errors import InputError

SMALL = {"out_dim": 8, "expert_hidden": 16, "components": 24, "embedding_dim": 4, "hidden": (16,), "batch_size": 256}
CONFIG = AdapterConfig.model_validate({**SMALL, "fusion": "attention", "attention_dim": 8, "max_epochs": 6})


def histories(world: World, seed: int = 0) -> UserTexts:
    """Of every user an old partition that says nothing, and a recent one whose summary or shift is the user's text."""
    rng = np.random.default_rng(seed)
    n, dim = world.user_vectors.shape
    noise = (world.user_vectors.mean(0) + 6 * rng.normal(size=(n, dim))).astype(np.float32)
    rows = np.arange(n, dtype=np.int64)
    by_shift = rows % 2 == 0
    summary = np.stack([rows, np.where(by_shift, -1, n + rows)], axis=1).reshape(-1)
    shift = np.stack([np.full(n, -1), np.where(by_shift, n + rows, -1)], axis=1).reshape(-1)
    sealed = np.tile([0, 1000 * DAY_US], n)
    return UserTexts(
        np.concatenate([noise, world.user_vectors]),
        summary.astype(np.int64),
        shift.astype(np.int64),
        sealed,
        2 * rows,
        2 * rows + 2,
        np.full(n, 1000 * DAY_US),
    )


def means(texts: UserTexts) -> np.ndarray:
    found = np.empty((len(texts), texts.vectors.shape[1]), np.float32)
    for row, (first, last) in enumerate(zip(texts.first, texts.last, strict=True)):
        places = np.maximum(texts.summary[first:last], texts.shift[first:last])
        found[row] = texts.vectors[places].mean(axis=0)
    return found


@pytest.fixture(scope="module")
def texts(world: World) -> UserTexts:
    return histories(world)


def train(world: World, texts: UserTexts, config: AdapterConfig) -> TrainedAdapter:
    return train_adapter(world.samples, means(texts), world.item_vectors, config, encoder_id="encoder", texts=texts)


@pytest.fixture(scope="module")
def fused(world: World, texts: UserTexts) -> TrainedAdapter:
    return train(world, texts, CONFIG)


def held_out_auc(world: World, users: np.ndarray, items: np.ndarray) -> float:
    samples = world.samples
    holdout = time_split(samples.ts, 0.1, 0.1).masks(samples.ts)[2]
    scores = (users[samples.user_row[holdout]] * items[samples.item_row[holdout]]).sum(1)
    return auc(samples.label[holdout], scores)


def test_attention_learns_which_partition_matters(world: World, texts: UserTexts, fused: TrainedAdapter) -> None:
    mean = train(world, texts, CONFIG.model_copy(update={"fusion": "mean"}))
    by_mean = held_out_auc(world, materialise_users(mean, means(texts)), materialise_items(mean, world.item_vectors))
    by_attention = held_out_auc(
        world, materialise_users(fused, means(texts), texts), materialise_items(fused, world.item_vectors)
    )
    assert by_attention > by_mean + 0.03


def test_a_fused_adapter_is_stored_and_loaded_as_it_was(
    world: World, texts: UserTexts, fused: TrainedAdapter, tmp_path: Path
) -> None:
    fused.save(tmp_path / "a")
    loaded = TrainedAdapter.load(tmp_path / "a")
    assert loaded.meta == fused.meta
    assert loaded.towers.fusion is not None
    np.testing.assert_array_equal(
        materialise_users(loaded, means(texts), texts), materialise_users(fused, means(texts), texts)
    )
    assert train(world, texts, CONFIG).meta.version == fused.meta.version


def test_published_users_are_standardised_over_training_rows(
    world: World, texts: UserTexts, fused: TrainedAdapter
) -> None:
    train_rows = world.samples.ts < time_split(world.samples.ts, 0.1, 0.1).valid_from
    rows = np.unique(world.samples.user_row[train_rows])
    users = materialise_users(fused, means(texts), texts)[rows[rows >= 0]]
    np.testing.assert_allclose(users.mean(0), 0, atol=1e-4)
    assert float((users**2).mean()) == pytest.approx(1, rel=1e-3)


def test_a_later_partition_changes_no_earlier_row(texts: UserTexts, fused: TrainedAdapter) -> None:
    """Every user's row of the first partition, before and after the second one is something else."""
    early = replace(texts, last=texts.first + 1, at=texts.sealed[texts.first])
    other = replace(
        early,
        vectors=np.where(np.arange(len(texts.vectors))[:, None] >= len(texts), 1e3, texts.vectors).astype(np.float32),
        sealed=np.where(np.arange(len(texts.sealed)) % 2 == 1, 5 * DAY_US, texts.sealed),
    )
    vectors = texts.vectors[: len(texts)]
    np.testing.assert_array_equal(materialise_users(fused, vectors, early), materialise_users(fused, vectors, other))
    assert not np.allclose(materialise_users(fused, vectors, early), materialise_users(fused, vectors, texts))


def test_batches_and_padding_change_nothing(
    texts: UserTexts, fused: TrainedAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = materialise_users(fused, means(texts), texts)
    monkeypatch.setattr("adapters.materialise.FUSED_BATCH_ROWS", 7)
    np.testing.assert_allclose(materialise_users(fused, means(texts), texts), whole, rtol=1e-4, atol=1e-5)


def test_vectors_without_texts_count_as_single_texts(texts: UserTexts, fused: TrainedAdapter) -> None:
    vectors = means(texts)
    np.testing.assert_array_equal(
        materialise_users(fused, vectors), materialise_users(fused, vectors, UserTexts.single(vectors))
    )
    with pytest.raises(InputError, match="100 user vectors came with 3 rows of texts"):
        materialise_users(fused, vectors, texts.take(np.arange(3)))
    with pytest.raises(InputError, match="takes user vectors of 48"):
        materialise_users(fused, np.zeros((2, 5), np.float32))


@pytest.mark.parametrize("form", ["kar", "mindspore", "laser"])
@pytest.mark.parametrize("fusion", ["mean", "attention"])
def test_every_published_form_is_a_setting_and_can_be_stored(
    world: World, texts: UserTexts, tmp_path: Path, form: str, fusion: str
) -> None:
    config = AdapterConfig.model_validate(
        {"form": form, "fusion": fusion, "embedding_dim": 4, "hidden": (8,), "max_epochs": 1, "batch_size": 2048}
    )
    adapter = train(world, texts, config)
    adapter.save(tmp_path / "a")
    loaded = TrainedAdapter.load(tmp_path / "a")
    vectors = means(texts)
    np.testing.assert_array_equal(materialise_users(loaded, vectors, texts), materialise_users(adapter, vectors, texts))
    layers = loaded.towers.adapter
    assert layers.user_norm is None
    assert layers.user_linear is None
    assert any(isinstance(m, ExpertNorm) for m in layers.modules()) == (form == "mindspore")
    assert (layers.item_gate is None) == (form == "laser")
    experts = {"laser": (4, 0, 64)}.get(form, (2, 6, 32))
    assert (len(layers.shared), len(layers.user_experts), layers.out_dim) == experts


def test_what_is_given_goes_before_the_form() -> None:
    config = AdapterConfig.model_validate({"form": "kar", "components": 64, "dedicated": 3})
    assert (config.components, config.dedicated, config.linear_path) == (64, 3, False)
    assert AdapterConfig.model_validate(config.model_dump()) == config
    with pytest.raises(ValidationError, match="dedicated = 2, set 0"):
        AdapterConfig(one_gate=True)


def test_gates_are_reported_over_training_entities(world: World, fused: TrainedAdapter) -> None:
    gates = fused.meta.gates
    assert gates["item"].entities == len(np.unique(world.samples.item[world.samples.ts < _valid_from(world)]))
    for use in gates.values():
        assert sum(use.usage) == pytest.approx(1.0, abs=1e-4)
        assert 0 <= use.entropy <= 1
        assert len(use.usage) == CONFIG.shared + CONFIG.dedicated


def _valid_from(world: World) -> int:
    return time_split(world.samples.ts, 0.1, 0.1).valid_from


def test_a_fit_leaves_the_callers_random_state_alone(world: World, texts: UserTexts) -> None:
    config = CONFIG.model_copy(update={"max_epochs": 1, "objective": "align"})
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    train(world, texts, config)
    assert torch.equal(torch.rand(2), expected)


def test_an_adapter_from_before_versions_and_fusion_loads(world: World, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"fusion": "mean", "max_epochs": 1})
    adapter = train_adapter(world.samples, world.user_vectors, world.item_vectors, config, encoder_id="encoder")
    adapter.save(tmp_path / "a")
    content = save({n: t for n, t in adapter.towers.state_dict().items() if not n.endswith("state_version")})
    (tmp_path / "a" / "weights.safetensors").write_bytes(content)
    meta = json.loads((tmp_path / "a" / "meta.json").read_text())
    meta["weights_digest"] = blake2b(content, digest_size=16).hexdigest()
    for name in (
        "form",
        "fusion",
        "attention_dim",
        "objective",
        "align_weight",
        "align_temperature",
        "batch_norm",
        "one_gate",
    ):
        del meta["config"][name]
    del meta["gates"]
    (tmp_path / "a" / "meta.json").write_text(json.dumps(meta))
    loaded = TrainedAdapter.load(tmp_path / "a")
    np.testing.assert_array_equal(
        materialise_users(loaded, world.user_vectors), materialise_users(adapter, world.user_vectors)
    )
