"""Users' single texts in whole runs, and training with attention over them."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

import lorestream
from adapters.config import AdapterConfig
from adapters.fusion import InterestFusion
from adapters.knowledge import EntityVectors, user_vectors
from adapters.texts import TextTensors
from adapters.training import find_adapter
from flows import stages
from flows.cli import call
from flows.config import load_config
from flows.run import Run
from tests.flows.shop import event, open_run, open_shop, run_once, write_events

SHIFTS = "[knowledge]\ncascade = 'shift'\n"
MIXED = (
    "[knowledge]\nmode = 'mixed'\ncascade = 'shift'\n"
    "[groups]\nmin_size = 1\nmax_users = 2\nmax_items = 2\nfeatures = 'cooccurrence'\nuntil = 2025-01-01T04:30:00Z\n"
    "[budget]\nmax_calls = 24\n"
)
# Small enough to train on a few dozen ratings.
TRAINABLE = """fusion = "attention"
attention_dim = 4
min_samples = 4
components = 8
expert_hidden = 8
max_epochs = 2
validation_fraction = 0.2
holdout_fraction = 0.2
"""


def labelled_shop(folder: Path, settings: str, adapter: str = TRAINABLE) -> Path:
    """Six users with partitions of 2, 3, 3 and 3 events; every other rating is low."""
    shop = open_shop(folder, users=6, events_each=12, items=5)
    events = [event(u, (u + n) % 5, n, 5.0 if (u + n) % 2 else 1.0) for u in range(6) for n in range(12)]
    write_events(folder, "", events)
    shop.write_text(shop.read_text() + adapter + settings)
    return shop


def averages(users: EntityVectors) -> np.ndarray:
    """What a fusion that only averages makes of the rows' texts."""
    assert users.texts is not None
    tensors = TextTensors(users.texts, torch.as_tensor, "cpu")
    fused, known = InterestFusion(users.vectors.shape[1], attention=None)(
        *tensors.gather(torch.arange(len(users.vectors)))
    )
    np.testing.assert_array_equal(known.numpy() > 0, users.has_vector)
    averaged: np.ndarray = fused.detach().numpy()
    return averaged


@pytest.mark.parametrize("settings", ["", MIXED])
def test_the_single_texts_of_every_row_average_to_its_vector(tmp_path: Path, settings: str) -> None:
    run = run_once(labelled_shop(tmp_path, settings, adapter=""))
    users = user_vectors(run.stored)
    np.testing.assert_allclose(averages(users), users.vectors, atol=1e-5)
    assert users.texts is not None
    assert (users.texts.shift >= 0).any() == bool(settings)
    rungs = set(users.rows.column("rung").to_pylist())
    assert "own" in rungs
    assert ("group" in rungs) == (settings == MIXED)
    # No row reads a partition that was sealed after it.
    moments = users.rows.column("valid_from").cast(pa.int64()).to_numpy()
    for row in range(len(users.vectors)):
        read = slice(users.texts.first[row], users.texts.last[row])
        assert (users.texts.sealed[read] <= users.texts.at[row]).all()
        assert users.texts.at[row] <= moments[row]
    if not settings:
        # Partitions are sealed at hours 1, 4, 7 and 10, and ages are counted to the row's own one.
        hours = TextTensors(users.texts, torch.as_tensor, "cpu").gather(torch.arange(4)).age_days * 24
        np.testing.assert_allclose(hours, [[0, 0, 0, 0], [3, 0, 0, 0], [6, 3, 0, 0], [9, 6, 3, 0]], atol=1e-4)


@pytest.mark.slow
def test_training_with_attention_publishes_every_row_and_later_rows_alike(tmp_path: Path) -> None:
    shop = labelled_shop(tmp_path, SHIFTS)
    first = run_once(shop)
    assert first.report.adapter_kind == "experts"
    assert {side: len(use["usage"]) for side, use in first.report.adapter_gates.items()} == {"user": 4, "item": 4}
    before = rows_of(tmp_path)
    assert len(before) == 6 * 4
    # A later partition adds rows and changes none.
    write_events(tmp_path, "-later", [event(0, n % 5, 20 + n) for n in range(3)])
    assert run_once(shop).report.rows_by_table["user_features"] == 1
    after = rows_of(tmp_path)
    assert {key: after[key] for key in before} == before
    # Another adapter publishes all of them.
    shop.write_text(shop.read_text().replace("max_epochs = 2", "max_epochs = 2\nseed = 7"))
    again = train_again(shop)
    assert again.report.rows_by_table["user_features"] == 6 * 4 + 1
    adapter = find_adapter(again.root, again.encoder.encoder_id, 4)
    assert adapter is not None
    assert adapter.towers.fusion is not None
    assert adapter.meta.version == again.report.adapter


def rows_of(folder: Path) -> dict[tuple[str, int], list[float]]:
    rows = lorestream.open(folder / "warehouse").table("user_features").to_arrow().to_pylist()
    return {(row["user_id"], row["partition_no"]): row["augment"] for row in rows}


def train_again(shop: Path) -> Run:
    run = open_run(shop)
    stages.fit_adapter(run)
    stages.publish(run)
    return run


def test_train_lays_its_options_over_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[AdapterConfig] = []

    def flow(config: Path, overrides: Mapping[str, object], wait_s: float) -> dict[str, object]:
        asked.append(load_config(config, overrides).adapter)
        return {}

    monkeypatch.setattr("flows.train.train", flow)
    command = ["train", "--config", str(open_shop(tmp_path))]
    assert call(command) == 0
    assert call([*command, "--backbone", "DIN", "--objective", "align", "--fusion", "attention"]) == 0
    plain, given = asked
    assert given == plain.model_copy(update={"backbone": "DIN", "objective": "align", "fusion": "attention"})
    assert call([*command, "--backbone", "DeepFN"]) == 2
    assert "`adapter.backbone` = 'DeepFN'" in capsys.readouterr().err
    assert call([*command, "--objective", "luck"]) == 2


def test_a_config_names_a_form_and_overrules_it(tmp_path: Path) -> None:
    shop = open_shop(tmp_path)
    shop.write_text(shop.read_text() + "form = 'kar'\nshared = 3\n")
    adapter = load_config(shop).adapter
    assert (adapter.components, adapter.shared, adapter.dedicated, adapter.out_dim) == (None, 3, 6, 4)
