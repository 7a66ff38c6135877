"""Texts and groups from elsewhere in whole runs: batches that other engines answered, tables, and what is refused."""

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import lorestream
from flows.asking import plan
from flows.config import load_config
from flows.interchange import export_requests, import_knowledge
from flows.run import Run
from tests.flows.repertoire import GROUPS, run_once, rungs, shop_with
from tests.flows.shop import event, write_events
from warehouse.errors import InputError, UsageError
from warehouse.ledger import Ledger


def test_imported_texts_take_the_place_of_calls(tmp_path: Path) -> None:
    shop = shop_with(tmp_path, "")
    ids = [f"i{n}" for n in range(9)]
    texts = [f"What critics say of lamp {i} is kind." for i in ids[:-1]] + [""]
    pq.write_table(pa.table({"item_id": ids, "text": texts, "model": ["elsewhere"] * 9}), tmp_path / "texts.parquet")
    found = import_knowledge(load_config(shop), tmp_path / "texts.parquet", "item", None, None)
    assert (found["accepted"], found["rejected_by_reason"]) == (8, {"empty_text": 1})
    again = import_knowledge(load_config(shop), tmp_path / "texts.parquet", "item", None, None)
    assert (again["accepted"], again["unchanged"], again["notes"]) == (8, 8, [])
    pq.write_table(
        pa.table({"item_id": ids[:2], "text": ["A lamp.", "A bulb."], "model": ["m"] * 2}), tmp_path / "b.parquet"
    )
    other = import_knowledge(load_config(shop), tmp_path / "b.parquet", "item", None, None)
    assert any(note.startswith("2 of these are about something") for note in other["notes"])  # type: ignore[attr-defined]
    assert run_once(shop).report.calls_by_kind == {"user_summary": 9, "item_facts": 1}
    rows = lorestream.open(tmp_path / "warehouse").table("item_features").to_arrow().to_pylist()
    assert Counter(row["model"].split("@")[0] for row in rows) == {"elsewhere": 6, "m": 2, "scripted": 1}


def test_a_batch_that_was_answered_elsewhere_comes_back_as_the_engines_own(tmp_path: Path) -> None:
    shop = shop_with(tmp_path, "", users=1, events_each=2)
    made = export_requests(load_config(shop), tmp_path / "batch.jsonl")
    assert made["requests"] == 10
    with (tmp_path / "results.jsonl").open("w") as out:
        for line in (tmp_path / "batch.jsonl").read_text().splitlines():
            message = {"role": "assistant", "content": "A calm and curious taste in lamps."}
            body = {"choices": [{"message": message, "finish_reason": "stop"}], "usage": {"completion_tokens": 9}}
            response = {"status_code": 200, "body": body}
            out.write(json.dumps({"custom_id": json.loads(line)["custom_id"], "response": response}) + "\n")
    found = import_knowledge(load_config(shop), tmp_path / "results.jsonl", None, None, None)
    assert (found["accepted"], found["rejected"]) == (10, 0)
    config = load_config(shop)
    # As the command line makes it: the identity of the real engine.
    run = Run(config, config.root)
    plan(run)
    assert not run.pending.num_rows


def test_a_text_from_elsewhere_that_is_no_use_takes_nobodys_place(tmp_path: Path) -> None:
    shop = shop_with(tmp_path, "", users=1, events_each=2)
    texts = ["What critics say of this lamp is kind.", "I'm sorry, but I cannot provide anything about it."]
    pq.write_table(pa.table({"id": ["i0", "i1"], "text": texts, "model": ["m"] * 2}), tmp_path / "texts.parquet")
    found = import_knowledge(load_config(shop), tmp_path / "texts.parquet", "item", None, None)
    assert found["by_status"] == {"ok": 1, "refused": 1}
    assert run_once(shop).report.calls_by_kind == {"user_summary": 1, "item_facts": 8}
    rows = lorestream.open(tmp_path / "warehouse").table("item_features").to_arrow().to_pylist()
    assert {row["rung"] for row in rows} == {"own"}


def _group_files(folder: Path) -> tuple[Path, Path]:
    """Members of two groups of items, and a text about each."""
    members = {"entity": ["item"] * 4, "id": ["i0", "i1", "i2", "i3"], "group_id": ["7", "7", "8", "8"]}
    texts = {"entity": ["item"] * 2, "group_id": ["7", "8"], "text": ["Bright desk lamps.", "Dim hall lamps."]}
    pq.write_table(pa.table(members), folder / "members.parquet")
    pq.write_table(pa.table({**texts, "model": ["m"] * 2}), folder / "texts.parquet")
    return folder / "members.parquet", folder / "texts.parquet"


def test_groups_that_are_imported_again_are_the_same_groups(tmp_path: Path) -> None:
    shop = shop_with(tmp_path, "[knowledge]\nmode = 'collective'\n")
    members, texts = _group_files(tmp_path)
    first = import_knowledge(load_config(shop), texts, None, members, None)
    assert (first["groups"], first["members"], first["accepted"], first["unchanged"]) == (2, 4, 2, 0)
    again = import_knowledge(load_config(shop), texts, None, members, None)
    assert (again["groups_unchanged"], again["accepted"], again["unchanged"]) == (True, 2, 2)
    assert len(Ledger(tmp_path / "warehouse").files("groups")) == 1
    other = import_knowledge(load_config(shop), texts, None, members, event(0, 0, 99)["ts"])  # type: ignore[arg-type]
    assert (other["unchanged"], "groups_unchanged" in other) == (0, False)


def test_groups_of_one_kind_that_are_imported_leave_the_other_kinds_as_they_are(tmp_path: Path) -> None:
    shop = shop_with(tmp_path, "[knowledge]\nmode = 'collective'\n[budget]\nmax_calls = 1\n" + GROUPS)
    assert run_once(shop).report.calls_by_kind == {"group_likes": 1}
    members, texts = _group_files(tmp_path)
    import_knowledge(load_config(shop), texts, None, members, None)
    shop.write_text(shop.read_text().replace("max_calls = 1\n", "max_calls = 99\n"))
    write_events(tmp_path, "-later", [event(7, n, 60 + n) for n in range(2)])
    # Nobody asks about the items' own groups any more; that of the other users is asked about, and somebody new joins.
    assert run_once(shop).report.calls_by_kind == {"group_likes": 1}
    assert rungs(shop, "user_features")["group"] == 4
    items = lorestream.open(tmp_path / "warehouse").table("item_features").to_arrow().to_pylist()
    assert {row["item_id"] for row in items if row["rung"] == "group"} == {"i0", "i1", "i2", "i3"}


def test_an_import_that_cannot_be_read_leaves_nothing_behind(tmp_path: Path) -> None:
    shop = shop_with(tmp_path, "[knowledge]\nmode = 'collective'\n")
    members, texts = _group_files(tmp_path)
    pq.write_table(pa.table({"group_id": ["7"], "words": ["none"]}), tmp_path / "wrong.parquet")
    pq.write_table(pa.table({"entity": ["film"], "id": ["i0"], "group_id": ["7"]}), tmp_path / "nobody.parquet")
    config = load_config(shop)
    for file, who, error in (
        (tmp_path / "wrong.parquet", members, "no column"),
        (tmp_path / "absent.parquet", members, "no file"),
        (texts, tmp_path / "nobody.parquet", "No row of .* can be a member"),
    ):
        with pytest.raises(InputError, match=error):
            import_knowledge(config, file, None, who, None)
    pq.write_table(pa.table({"id": ["nobody"], "text": ["Fine."], "model": ["m"]}), tmp_path / "strange.parquet")
    with pytest.raises(
        InputError, match=r"No text of .*strange\.parquet can be taken in: .*row 1: .*Nothing was stored"
    ):
        import_knowledge(config, tmp_path / "strange.parquet", "item", None, None)
    for options, error in (
        ((None, None, event(0, 0, 1)["ts"]), "--members"),
        (("item", None, None), "column `entity`"),
    ):
        with pytest.raises(UsageError, match=error):
            import_knowledge(config, texts, *options)  # type: ignore[arg-type]
    ledger = Ledger(tmp_path / "warehouse")
    assert not ledger.files("groups")
    assert "groups" not in {commit.kind for commit in ledger.commits()}
