"""Texts made elsewhere become rows of the same tables: once, attached to what they are about, judged by the gate."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from augment.interchange.accept import Accepted, accept_batch, accept_texts, import_engine_id, import_key
from augment.interchange.batch import export_batch, read_batch_results
from augment.interchange.faults import FaultReason, ImportFault
from augment.interchange.members import imported_group_id, read_members
from augment.interchange.subjects import Subject, find_subjects
from augment.interchange.texts import EntityKind, ImportedText, read_texts
from augment.scope import EngineIdentity, Sources
from warehouse import keys
from warehouse.errors import InputError
from warehouse.schemas import GROUP_MEMBERS, GROUPS, ITEM_VERSIONS, KNOWLEDGE, PARTITIONS, REQUESTS

SHARED = Path(__file__).parents[3].parent / "shared" / "data" / "knowledge"

NOW = datetime(2026, 11, 20, tzinfo=UTC)
THEN = datetime(2024, 5, 1, tzinfo=UTC)


class Verdict(NamedTuple):
    status: str
    reason: str | None


def judge(kind: str, prompt: str, text: str, finish_reason: str) -> Verdict:
    """A gate that refuses what says sorry, and tells what it was shown."""
    shown = f"{kind}|{prompt}|{finish_reason}"
    return Verdict("refused", shown) if "sorry" in text else Verdict("ok", None)


def item(item_id: str, digest: str, *, made: int = 0, valid_from: datetime = THEN) -> dict[str, object]:
    created = NOW - timedelta(days=100 - made)
    return {
        "item_id": item_id,
        "title": "T",
        "attributes": "{}",
        "digest": digest,
        "valid_from": valid_from,
        "created_at": created,
    }


def partition(user_id: str, number: int) -> dict[str, object]:
    return {
        "user_id": user_id,
        "partition_no": number,
        "opened_at": THEN,
        "sealed_at": THEN + timedelta(days=number),
        "items": ["a"],
        "values": [1.0],
        "digest": f"{user_id}{number}",
    }


def stored(folder: Path, name: str, rows: Sequence[dict[str, object]], schema: pa.Schema) -> list[Path]:
    pq.write_table(pa.Table.from_pylist(list(rows), schema), folder / f"{name}.parquet")
    return [folder / f"{name}.parquet"]


def warehouse(
    folder: Path,
    items: Sequence[dict[str, object]] = (),
    partitions: Sequence[dict[str, object]] = (),
    groups: Sequence[dict[str, object]] = (),
) -> Sources:
    return Sources(
        partitions=stored(folder, "partitions", partitions, PARTITIONS),
        items=stored(folder, "items", items, ITEM_VERSIONS),
        users=[],
        requests=[],
        groups=stored(folder, "groups", groups, GROUPS),
    )


def text_about(
    entity_id: str, text: str = "A film.", entity: EntityKind = EntityKind.ITEM, row: int = 1
) -> ImportedText:
    return ImportedText(row, entity, entity_id, text, "deepseek-chat")


def accept(texts: Sequence[ImportedText | ImportFault], sources: Sources, before: Sequence[Accepted] = ()) -> Accepted:
    asked = {key for done in before for key in done.requests.column("request_key").to_pylist()}
    answered = {key for done in before for key in done.knowledge.column("request_key").to_pylist()}
    return accept_texts(texts, find_subjects(texts, sources), asked, answered, judge, NOW)


def test_a_text_about_an_item_belongs_to_its_newest_version(tmp_path: Path) -> None:
    sources = warehouse(
        tmp_path, [item("1", "old"), item("1", "new", made=5, valid_from=THEN + timedelta(days=9)), item("2", "other")]
    )
    made = accept([text_about("1")], sources)
    (request,) = made.requests.to_pylist()
    (answer,) = made.knowledge.to_pylist()
    assert made.requests.schema.equals(REQUESTS)
    assert made.knowledge.schema.equals(KNOWLEDGE)
    engine_id = "import:" + keys.engine_id("deepseek-chat", "", {}, "strict")
    assert request == {
        "request_key": answer["request_key"],
        "kind": "item_facts",
        "entity_id": "1",
        "partition_no": None,
        "as_of": THEN + timedelta(days=9),
        "prompt": "",
        "group": None,
        "prompt_version": "import",
        "engine_id": engine_id,
        "source_digest": "new",
        "created_at": NOW,
    }
    expected = {"text": "A film.", "status": "ok", "reason": None, "model": "deepseek-chat", "created_at": NOW}
    assert {name: answer[name] for name in expected} == expected
    assert (answer["prompt_version"], answer["finish_reason"], answer["sampling"]) == ("import", "stop", "{}")
    assert (made.accepted, made.statuses, made.unchanged) == ({"item_facts": 1}, {"ok": 1}, 0)


def test_a_text_about_a_user_belongs_to_the_newest_sealed_partition(tmp_path: Path) -> None:
    sources = warehouse(tmp_path, partitions=[partition("u", 0), partition("u", 2), partition("u", 1)])
    texts = [text_about("u", entity=EntityKind.USER), text_about("nobody", entity=EntityKind.USER, row=2)]
    made = accept(texts, sources)
    (request,) = made.requests.to_pylist()
    assert (request["kind"], request["partition_no"], request["source_digest"]) == ("user_summary", 2, "u2")
    assert request["as_of"] == THEN + timedelta(days=2)
    assert made.faults == (ImportFault(2, FaultReason.UNKNOWN_ID, "user nobody"),)


def test_an_unknown_item_and_the_readers_faults_are_counted_together(tmp_path: Path) -> None:
    fault = ImportFault(1, FaultReason.EMPTY_TEXT, "item 1")
    made = accept([fault, text_about("9", row=2)], warehouse(tmp_path, [item("1", "d")]))
    assert made.faults == (fault, ImportFault(2, FaultReason.UNKNOWN_ID, "item 9"))
    assert (made.requests.num_rows, made.knowledge.num_rows, made.accepted) == (0, 0, {})


def test_the_gate_judges_every_text_and_keeps_what_it_refuses(tmp_path: Path) -> None:
    sources = warehouse(tmp_path, [item("1", "d"), item("2", "d")])
    asked = ImportedText(1, EntityKind.ITEM, "1", "I am sorry.", "m", "Who?", THEN)
    made = accept([asked, text_about("2")], sources)
    refused, fine = made.knowledge.to_pylist()
    assert (refused["status"], refused["reason"], refused["created_at"]) == ("refused", "item_facts|Who?|stop", THEN)
    assert (fine["status"], fine["reason"]) == ("ok", None)
    assert made.requests.column("prompt").to_pylist() == ["Who?", ""]
    assert made.statuses == {"refused": 1, "ok": 1}
    assert made.accepted == {"item_facts": 2}


def test_the_same_import_again_adds_nothing_and_a_new_text_adds_itself(tmp_path: Path) -> None:
    sources = warehouse(tmp_path, [item("1", "d"), item("2", "d")])
    first = accept([text_about("1"), text_about("2")], sources)
    again = accept([text_about("1"), text_about("2", "A better text.")], sources, [first])
    assert first.requests.num_rows == first.knowledge.num_rows == 2
    assert again.requests.column("entity_id").to_pylist() == ["2"]
    assert again.knowledge.column("text").to_pylist() == ["A better text."]
    assert (again.accepted, again.unchanged) == ({"item_facts": 2}, 1)


def test_an_import_that_ended_half_way_is_completed(tmp_path: Path) -> None:
    sources = warehouse(tmp_path, [item("1", "d"), item("2", "d")])
    texts = [text_about("1"), text_about("2")]
    whole = accept(texts, sources)
    keys_made = set(whole.requests.column("request_key").to_pylist())
    subjects = find_subjects(texts, sources)
    requested = accept_texts(texts, subjects, keys_made, set(), judge, NOW)
    assert (requested.requests.num_rows, requested.knowledge) == (0, whole.knowledge)
    answered = accept_texts(texts, subjects, set(), keys_made, judge, NOW)
    assert (answered.requests, answered.knowledge.num_rows) == (whole.requests, 0)
    assert requested.unchanged == answered.unchanged == 0


def test_the_key_of_an_imported_text_is_pinned() -> None:
    subject = Subject("1", THEN, "digest")
    assert import_key(text_about("1"), subject) == "ee78077a4f9532895b3e394c1dd19cc7"
    assert import_engine_id("deepseek-chat") == "import:4480dc9e3518c0bc"


@given(
    one=st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.sampled_from([None, "p"]), st.sampled_from("mn")),
    other=st.tuples(st.sampled_from("ab"), st.sampled_from("xy"), st.sampled_from([None, "p"]), st.sampled_from("mn")),
)
def test_two_texts_share_a_key_only_if_all_about_them_is_equal(
    one: tuple[str, str, str | None, str], other: tuple[str, str, str | None, str]
) -> None:
    def key(entity_id: str, text: str, prompt: str | None, model: str) -> str:
        about = ImportedText(1, EntityKind.ITEM, entity_id, text, model, prompt)
        return import_key(about, Subject(entity_id, THEN, "d"))

    assert (key(*one) == key(*other)) == (one == other)


ENGINE = EngineIdentity("gpt-x", "served", {"chat": True, "max_new_tokens": 64, "temperature": 0.0}, "strict")


def planned(n: int) -> pa.Table:
    prompts = [f"Tell me of film {i}." for i in range(n)]
    return pa.table(
        {
            "request_key": [ENGINE.request_key(prompt) for prompt in prompts],
            "prompt": prompts,
            "kind": ["item_facts"] * n,
            "prompt_version": ["v1"] * n,
        }
    )


def test_a_batch_goes_out_and_comes_back_as_if_the_engine_had_answered(tmp_path: Path) -> None:
    plan = planned(4)
    export_batch(plan, ENGINE.model, ENGINE.sampling, tmp_path / "batch.jsonl")
    lines = []
    for number, line in enumerate((tmp_path / "batch.jsonl").read_bytes().splitlines()):
        asked = json.loads(line)
        choice = {
            "message": {"content": f"I am sorry: {asked['body']['messages'][0]['content']}" if number else "A film."},
            "finish_reason": "length" if number == 2 else "stop",
        }
        body = {"choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": number}}
        lines.append({"custom_id": asked["custom_id"], "response": {"status_code": 200, "body": body}, "error": None})
    lines.append({**lines[0], "custom_id": "somebody else's"})
    (tmp_path / "out.jsonl").write_text("\n".join(map(json.dumps, lines)))
    known = plan.column("request_key")[3].as_py()
    made = accept_batch(read_batch_results(tmp_path / "out.jsonl"), plan, ENGINE, {known}, judge, NOW)
    rows = made.knowledge.to_pylist()
    assert [row["request_key"] for row in rows] == plan.column("request_key").to_pylist()[:3]
    assert [row["status"] for row in rows] == ["ok", "refused", "refused"]
    assert rows[2]["reason"] == "item_facts|Tell me of film 2.|length"
    assert [(row["tokens_in"], row["tokens_out"], row["finish_reason"]) for row in rows] == [
        (9, 0, "stop"),
        (9, 1, "stop"),
        (9, 2, "length"),
    ]
    assert {(row["model"], row["prompt_version"], row["verification"]) for row in rows} == {
        ("gpt-x@served", "v1", "strict")
    }
    assert rows[0]["sampling"] == '{"chat":true,"max_new_tokens":64,"temperature":0.0}'
    assert made.knowledge.schema.equals(KNOWLEDGE)
    assert (made.accepted, made.unchanged, made.requests.num_rows) == ({"item_facts": 4}, 1, 0)
    assert made.faults == (ImportFault(5, FaultReason.NOT_PLANNED, "somebody else's"),)


def members_file(folder: Path, rows: Sequence[tuple[object, object, object]]) -> Path:
    columns = {name: [row[i] for row in rows] for i, name in enumerate(("entity", "id", "group_id"))}
    pq.write_table(pa.table(columns), folder / "members.parquet")
    return folder / "members.parquet"


def test_members_become_groups_of_a_generation(tmp_path: Path) -> None:
    path = members_file(
        tmp_path, [("item", 1, 7), ("user_negative", 1, 7), ("user_positive", 1, 7), ("item", 2, 7), ("item", 3, 8)]
    )
    made = read_members(path, 4, THEN, NOW)
    assert made.faults == ()
    assert made.groups.schema.equals(GROUPS)
    assert made.members.schema.equals(GROUP_MEMBERS)
    sizes = {(row["kind"], row["group_id"]): row["size"] for row in made.groups.to_pylist()}
    assert sizes == {
        ("group_items", "group_items/g4/7"): 2,
        ("group_items", "group_items/g4/8"): 1,
        ("group_likes", "group_likes/g4/7"): 1,
        ("group_dislikes", "group_dislikes/g4/7"): 1,
    }
    members = {(r["kind"], r["entity_id"]): r["group_id"] for r in made.members.to_pylist()}
    assert members["group_items", "3"] == "group_items/g4/8"
    assert members["group_dislikes", "1"] == "group_dislikes/g4/7"
    for table, time in ((made.groups, "as_of"), (made.members, "joined_at")):
        assert {(r["generation"], r[time], r["created_at"]) for r in table.to_pylist()} == {(4, THEN, NOW)}


def test_rows_that_make_no_member_have_their_reasons(tmp_path: Path) -> None:
    path = members_file(
        tmp_path,
        [
            ("item", "a", "g"),
            ("item", "a", "h"),
            ("film", "b", "g"),
            (None, "b", "g"),
            ("item", "", "g"),
            ("item", "b", None),
            ("item_group", "b", "g"),
        ],
    )
    made = read_members(path, 1, THEN, NOW)
    assert [(f.row, f.reason) for f in made.faults] == [
        (2, FaultReason.DUPLICATE_ID),
        (3, FaultReason.UNKNOWN_ENTITY),
        (4, FaultReason.UNKNOWN_ENTITY),
        (5, FaultReason.MISSING_ID),
        (6, FaultReason.MISSING_GROUP),
    ]
    assert made.members.column("entity_id").to_pylist() == ["a", "b"]
    wrong = members_file(tmp_path, [("item", 1.5, 2)])
    assert [f.reason for f in read_members(wrong, 1, THEN, NOW).faults] == [FaultReason.WRONG_TYPE]


def test_a_file_without_members_is_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"entity": ["item"], "id": [1]}), tmp_path / "m.parquet")
    with pytest.raises(InputError, match="no column `group_id`"):
        read_members(tmp_path / "m.parquet", 1, THEN, NOW)


def test_a_text_about_a_group_belongs_to_the_newest_generation(tmp_path: Path) -> None:
    path = members_file(tmp_path, [("item", 1, 7), ("user_positive", 1, 7)])
    groups = [row for g in (1, 2) for row in read_members(path, g, THEN + timedelta(days=g), NOW).groups.to_pylist()]
    sources = warehouse(tmp_path, groups=groups)
    whole = imported_group_id("group_likes", 2, "7")
    texts = [
        text_about("7", entity=EntityKind.ITEM_GROUP),
        text_about(whole, entity=EntityKind.USER_LIKES_GROUP, row=2),
        text_about("7", entity=EntityKind.USER_DISLIKES_GROUP, row=3),
        text_about(imported_group_id("group_likes", 1, "7"), entity=EntityKind.USER_LIKES_GROUP, row=4),
    ]
    made = accept(texts, sources)
    rows = made.requests.to_pylist()
    assert [(row["kind"], row["entity_id"]) for row in rows] == [
        ("group_items", "group_items/g2/7"),
        ("group_likes", whole),
    ]
    assert {row["as_of"] for row in rows} == {THEN + timedelta(days=2)}
    # What the planner calls the source of a group's call: its id and the items that its prompt names.
    assert rows[1]["source_digest"] == keys.digest([whole, []])
    assert [fault.row for fault in made.faults] == [3, 4]


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no evaluation data at {SHARED}")
def test_the_real_item_texts_are_accepted_but_the_empty_one(tmp_path: Path) -> None:
    path = SHARED / "ml-1m-item-colakg.parquet"
    ids = pq.read_table(path, columns=["item_id"]).column("item_id").to_pylist()
    sources = warehouse(tmp_path, [item(str(i), f"digest {i}") for i in ids])
    texts = list(read_texts(path, "item"))
    made = accept(texts, sources)
    assert made.accepted == {"item_facts": 3882}
    assert made.faults == (ImportFault(ids.index(1122) + 1, FaultReason.EMPTY_TEXT, "item 1122"),)
    assert len(set(made.requests.column("request_key").to_pylist())) == 3882
    again = accept(texts, sources, [made])
    assert (again.requests.num_rows, again.knowledge.num_rows, again.unchanged) == (0, 0, 3882)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no evaluation data at {SHARED}")
def test_the_real_groups_and_their_texts_find_each_other(tmp_path: Path) -> None:
    made = read_members(SHARED / "ml-1m-groups.parquet", 1, THEN, NOW)
    assert made.faults == ()
    assert made.members.num_rows == 3706 + 2 * 6040
    assert made.groups.num_rows == 107 + 2 * 135
    # No group is larger than the README of the data has it.
    assert max(made.groups.column("size").to_pylist()) == 99
    sources = warehouse(tmp_path, groups=made.groups.to_pylist())
    accepted = accept(list(read_texts(SHARED / "ml-1m-collective.parquet")), sources)
    assert accepted.accepted == {"group_items": 107, "group_likes": 135, "group_dislikes": 135}
    assert accepted.faults == ()
    # Some of the prompts are equal, as they name nothing; their texts stay apart.
    assert len(set(accepted.requests.column("request_key").to_pylist())) == 377
    assert len(set(accepted.requests.column("prompt").to_pylist())) < 377
