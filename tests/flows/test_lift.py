"""`lorestream lift` on made-up films: what it stores, prints and refuses."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import flows.lift
from adapters.config import AdapterConfig, CtrConfig
from adapters.lift.config import MatrixConfig
from flows.cli import call
from tests.adapters.lift.films import write_films
from tests.adapters.lift.worlds import SMALL


class Letters:
    """An encoder that counts letters, and how often it was asked."""

    encoder_id = "letters"
    asked = 0

    def __init__(self, config: object) -> None:
        pass

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        type(self).asked += 1
        return np.array([[text.count(c) for c in "abcdefghijklmnop0123456789"] for text in texts], np.float32)


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    dataset, _ = write_films(tmp_path)
    monkeypatch.setattr(flows.lift, "TextEncoder", Letters)
    monkeypatch.setattr(Letters, "asked", 0)
    chosen = {"backbones": ("DeepFM",), "seeds": (0,), "arms": ("base", "full"), "protocols": ("kar", "time")}
    small = SMALL.model_copy(update={**chosen, "users": None})
    monkeypatch.setattr(flows.lift, "matrix_config", lambda quick, **given: small)
    return ["lift", "--dataset", str(dataset), "--out", str(tmp_path / "out")]


def test_lift_prints_and_stores_one_report_and_does_nothing_twice(
    command: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call([*command, "--json"]) == 0
    printed = json.loads(capfd.readouterr().out)
    assert printed["report"] == str(tmp_path / "out" / "report.html")
    assert (printed["cells"], printed["missing"]) == (4, 0)
    stored = json.loads((tmp_path / "out" / "report.json").read_text())
    assert stored == {name: value for name, value in printed.items() if name != "report"}
    assert (tmp_path / "out" / "report.html").read_text().startswith("<!doctype html>")
    asked = Letters.asked
    assert asked == 5
    cells = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").rglob("*.json")}
    assert call(command) == 0
    out = capfd.readouterr().out
    assert "full - base" in out
    assert "report.html" in out
    assert Letters.asked == asked
    assert cells == {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").rglob("*.json")}


def test_a_folder_without_ratings_is_named(
    command: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(["lift", "--dataset", str(tmp_path / "nowhere")]) == 2
    assert "ratings.parquet" in capfd.readouterr().err


def test_names_that_are_no_arms_or_protocols_are_refused(capfd: pytest.CaptureFixture[str]) -> None:
    assert call(["lift", "--protocols", "kar,tine"]) == 2
    assert "protocols.1" in capfd.readouterr().err
    assert call(["lift", "--knowledge", "somewhere", "--config", "nowhere.toml"]) == 2
    assert "--knowledge goes with --dataset" in capfd.readouterr().err
    assert call(["lift", "--workers", "0"]) == 2
    assert "Must be >= 1" in capfd.readouterr().err


def test_quick_is_smaller_and_what_is_given_counts() -> None:
    quick = flows.lift.matrix_config(True, seeds=None, users=None)
    assert (quick.users, len(quick.seeds), quick.backbones) == (2000, 3, ("DIN", "DCNMix"))
    assert flows.lift.matrix_config(True, users=50).users == 50
    assert flows.lift.matrix_config(False) == MatrixConfig()


def test_a_warehouses_lift_measures_the_adapter_that_its_configuration_names() -> None:
    adapter = AdapterConfig(components=None, shared=1, dedicated=5, expert_hidden=7, out_dim=9, linear_path=False)
    configured = flows.lift.as_configured(MatrixConfig(seeds=(4,)), adapter)
    tower = configured.tower
    assert (tower.components, tower.shared, tower.dedicated, tower.hidden, tower.out_dim) == (None, 1, 5, 7, 9)
    assert (tower.linear_path, tower.weight_decay) == (False, adapter.adapter_weight_decay)
    assert configured.ctr == CtrConfig.model_validate({n: getattr(adapter, n) for n in CtrConfig.model_fields})
    assert configured.ctr.learning_rate == adapter.learning_rate
    assert (configured.history_length, configured.seeds) == (adapter.history_length, (4,))


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--arms", "base,nonsense", "arms.1 = 'nonsense': Input should be 'base_unmasked'"),
        ("--protocols", "nonsense", "protocols.0 = 'nonsense': Input should be 'kar'"),
        ("--users", "3", "users = 3: Input should be greater"),
        ("--seeds", "0", 'Invalid value "0" for --seeds'),
    ],
)
def test_a_matrix_that_cannot_be_is_refused_with_the_value(
    capfd: pytest.CaptureFixture[str], option: str, value: str, said: str
) -> None:
    assert call(["lift", option, value]) == 2
    message = capfd.readouterr().err
    assert said in message
    assert "Tuple should have" not in message
