"""Retrieval pools over a tiny shop: when one is built, which one serves, and what is refused."""

import json
from pathlib import Path

import pytest

from augment.engine.scripted import ScriptedEngine
from augment.speculation.pool import CorruptPool, RetrievalPool
from flows.cli import call
from flows.config import load_config
from tests.flows.repertoire import run_once
from tests.flows.shop import event, open_shop, scripted_engine, write_events
from warehouse.ledger import Ledger
from warehouse.schemas import KNOWLEDGE
from warehouse.status import warehouse_status
from warehouse.store import read_table


def open_pool_shop(folder: Path, min_texts: int = 10) -> Path:
    shop = open_shop(folder)
    shop.write_text(
        shop.read_text() + f"[labels]\ncategory = 'genres'\n[pool]\nmin_texts = {min_texts}\ngrowth = 1.2\n"
    )
    return shop


def add_events(folder: Path, name: str, users: int, hour: int) -> None:
    """Two more events each for some users: every other time that seals a partition."""
    write_events(folder, name, [event(user, n, hour + n) for user in range(users) for n in range(2)])


def pools_of(folder: Path) -> list[Path]:
    return Ledger(folder / "warehouse").files("pools")


def test_the_second_run_drafts_from_the_texts_of_the_first(tmp_path: Path) -> None:
    shop = open_pool_shop(tmp_path)
    first = scripted_engine()
    run_once(shop, first)
    # 8 summaries and 5 items are stored, but when the calls were made there was nothing yet.
    assert first.pool is None

    add_events(tmp_path, "-2", users=2, hour=100)
    second = scripted_engine()
    run = run_once(shop, second)
    assert run.report.calls == 2
    assert [second.pool] == pools_of(tmp_path)
    pool = RetrievalPool.load(pools_of(tmp_path)[0])
    assert pool.texts == 13
    assert pool.stats()["groups"] == {"item_facts/drama": 5, "user_summary": 8}
    status = warehouse_status(tmp_path / "warehouse")
    assert status["pool"]["digest"] == pool.digest
    assert status["speculation"] == {"pool": pools_of(tmp_path)[0].name}


def test_a_pool_serves_until_enough_is_new(tmp_path: Path) -> None:
    shop = open_pool_shop(tmp_path)
    run_once(shop)
    add_events(tmp_path, "-2", users=2, hour=100)
    run_once(shop)
    # 15 texts are not 1.2 times the 13 in the pool; the one that this run adds (both users ask the same) makes 16.
    add_events(tmp_path, "-3", users=2, hour=200)
    add_events(tmp_path, "-4", users=2, hour=300)
    third = scripted_engine()
    assert run_once(shop, third).report.calls == 1
    assert [third.pool] == pools_of(tmp_path)
    add_events(tmp_path, "-5", users=4, hour=400)
    add_events(tmp_path, "-6", users=4, hour=500)
    last = scripted_engine()
    assert run_once(shop, last).report.calls > 0
    assert len(pools_of(tmp_path)) == 2
    assert last.pool == pools_of(tmp_path)[1]


def test_few_texts_make_no_pool_and_nothing_new_reads_none(tmp_path: Path) -> None:
    shop = open_pool_shop(tmp_path, min_texts=1000)
    run_once(shop)
    add_events(tmp_path, "-2", users=2, hour=100)
    run_once(shop)
    assert pools_of(tmp_path) == []
    run_once(open_pool_shop(tmp_path))
    assert pools_of(tmp_path) == []


def test_other_prompts_get_a_pool_of_their_own(tmp_path: Path) -> None:
    shop = open_pool_shop(tmp_path)
    run_once(shop)
    add_events(tmp_path, "-2", users=2, hour=100)
    run_once(shop)
    shop.write_text(shop.read_text() + "[prompts]\nscenario = 'books'\n")
    other = scripted_engine()
    assert run_once(shop, other).report.calls > 0
    assert other.pool is None
    assert len(pools_of(tmp_path)) == 1


def test_rows_say_how_they_were_verified(tmp_path: Path) -> None:
    shop = open_pool_shop(tmp_path)
    run_once(shop)
    rows = read_table(sorted((tmp_path / "warehouse" / "knowledge").glob("*.parquet")), KNOWLEDGE)
    assert set(rows["verification"].to_pylist()) == {"strict"}
    assert rows["relaxed"].null_count == rows.num_rows


def test_a_damaged_pool_is_refused_with_its_name_and_the_remedy(tmp_path: Path) -> None:
    shop = open_pool_shop(tmp_path)
    run_once(shop)
    add_events(tmp_path, "-2", users=2, hour=100)
    run_once(shop)
    [file] = pools_of(tmp_path)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    add_events(tmp_path, "-3", users=4, hour=200)
    with pytest.raises(CorruptPool, match="lorestream pool build"):
        run_once(shop, ScriptedEngine(str))


def test_the_pool_verbs_build_and_show(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shop = open_pool_shop(tmp_path, min_texts=1000)
    config = ["--config", str(shop), "--json"]
    # The configured model has written nothing yet; what there is came from the scripted one.
    run_once(shop)
    assert call(["pool", "build", *config]) == 2
    assert "holds no text of weights@" in capfd.readouterr().err
    assert call(["pool", "stats", *config]) == 0
    assert json.loads(capfd.readouterr().out) == {"pools": []}


def test_relaxed_verification_asks_for_other_texts(tmp_path: Path) -> None:
    lossless = load_config(open_pool_shop(tmp_path))
    shop = tmp_path / "lorestream.toml"
    shop.write_text(shop.read_text() + "[speculation]\nmode = 'relaxed'\n")
    assert lossless.speculation.verification == "strict"
    assert load_config(shop).speculation.verification == "relaxed(2,0.1)"
