"""The `export` verb over a published run."""

import json
from pathlib import Path

import numpy as np
import pytest

import lorestream
from flows.cli import call
from tests.flows.shop import open_shop, run_once


def test_the_command_exports_what_readers_see_up_to_a_cut_off(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shop = open_shop(tmp_path, users=2)
    run_once(shop)
    out = tmp_path / "out"
    arguments = ["--config", str(shop), "--json"]
    assert call(["export", str(out), "--to", "npy", *arguments]) == 0
    made = json.loads(capfd.readouterr().out)
    assert made["snapshot_id"] == lorestream.open(tmp_path / "warehouse").current_snapshot
    assert np.load(out / "user_matrix.npy").shape == (3, 4)
    # At two o'clock each user has sealed one partition; nothing was known before the first was sealed at one.
    assert call(["export", str(out), "--to", "npy", "--at", "2025-01-01T02:00:00", *arguments]) == 0
    capfd.readouterr()
    early = np.load(out / "user_matrix-at-20250101T020000Z.npy")
    rows = lorestream.open(tmp_path / "warehouse").table("user_features").to_arrow().to_pylist()
    firsts = {row["user_id"]: row["augment"] for row in rows if row["partition_no"] == 0}
    assert early[1:].tolist() == [firsts["u0"], firsts["u1"]]
    assert call(["export", str(out), "--to", "feast", *arguments]) == 0
    assert call(["export", str(out), "--to", "libsvm", *arguments]) == 2
    assert call(["export", str(shop), "--to", "npy", *arguments]) == 2
    assert "Name a folder" in capfd.readouterr().err
