"""The repertoire in whole runs: cascades, groups, budgets, the ladder and the gate."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import lorestream
from augment.engine.errors import EngineFailed
from augment.engine.scripted import ScriptedEngine
from flows import grouping, stages
from flows.asking import call_engine, forecast, plan
from flows.cli import call
from flows.config import load_config
from flows.factors import propose_factors
from flows.quality import quality_report
from flows.run import Run
from flows.setup import prepare_warehouse
from tests.flows.repertoire import GROUPS, run_once, rungs, shop_with
from tests.flows.shop import SILENT, event, open_run, open_shop, scripted_engine, write_events, write_items
from warehouse.errors import ConfigError, InputError, UsageError
from warehouse.ledger import Ledger
from warehouse.schemas import GROUP_MEMBERS, KNOWLEDGE, REQUESTS, TIMESTAMP
from warehouse.store import read_table


def asked(shop: Path) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = read_table(Ledger(load_config(shop).root).files("requests"), REQUESTS).to_pylist()
    return rows


def answered(shop: Path) -> list[str]:
    files = sorted((load_config(shop).root / "knowledge").glob("*.parquet"))
    keys: list[str] = read_table(files, KNOWLEDGE).column("request_key").to_pylist()
    return keys


@pytest.mark.parametrize("cascade", ["shift", pytest.param("summary", marks=pytest.mark.slow)])
def test_a_cascade_asks_for_every_step_once_and_after_new_events_for_the_new_ones_only(
    tmp_path: Path, cascade: str
) -> None:
    shop = shop_with(tmp_path, f"[knowledge]\ncascade = '{cascade}'\n")
    run_once(shop)
    by_step = Counter((row["kind"], row["partition_no"]) for row in asked(shop))
    assert by_step == {
        **{("user_summary", number): 3 for number in range(3)},
        **{("user_shift", number): 3 for number in (1, 2)},
        ("item_facts", None): 9,
    }
    assert run_once(shop).report.calls == 0
    write_events(tmp_path, "-later", [event(1, n, 50 + n) for n in range(3)])
    assert run_once(shop).report.calls_by_kind == {"user_summary": 1, "user_shift": 1}


def test_a_summary_is_conditioned_on_the_one_before_it_only_where_asked_for(tmp_path: Path) -> None:
    for cascade, shows in (("shift", False), ("summary", True)):
        shop = shop_with(tmp_path / cascade, f"[knowledge]\ncascade = '{cascade}'\n", users=1)
        run_once(shop)
        second = next(r for r in asked(shop) if r["kind"] == "user_summary" and r["partition_no"] == 1)
        assert ("An answer of" in str(second["prompt"])) == shows
        shift = next(r for r in asked(shop) if r["kind"] == "user_shift" and r["partition_no"] == 1)
        assert str(shift["prompt"]).count("An answer of") == 2


@pytest.mark.parametrize("cascade", ["shift", pytest.param("summary", marks=pytest.mark.slow)])
def test_an_interrupted_wave_goes_on_to_the_same_knowledge(tmp_path: Path, cascade: str) -> None:
    settings = f"[knowledge]\ncascade = '{cascade}'\n[segments]\nrows = 1\n"
    whole, broken = shop_with(tmp_path / "a", settings), shop_with(tmp_path / "b", settings)
    run_once(whole)
    for failures in (3, 5):
        with pytest.raises(EngineFailed):
            run_once(broken, ScriptedEngine(lambda p: f"A view of {len(p)} things.", fail_after=failures))
    # Ended between two waves, with nothing left to ask of the first.
    while plan(between := open_run(broken)) or between.pending.num_rows:
        call_engine(between, SILENT)
    run_once(broken, scripted_engine())
    run_once(whole)
    steps = [Counter((r["kind"], r["entity_id"], r["partition_no"]) for r in asked(shop)) for shop in (whole, broken)]
    assert steps[0] == steps[1]
    keys = answered(broken)
    assert len(keys) == len(set(keys))
    assert run_once(broken).report.calls == 0


def test_with_groups_alone_everybody_has_a_row_and_nobody_an_own_call(tmp_path: Path) -> None:
    shop = shop_with(tmp_path, "[knowledge]\nmode = 'collective'\n" + GROUPS)
    report = run_once(shop).report
    assert set(report.calls_by_kind) == {"group_likes", "group_items"}
    assert rungs(shop, "user_features") == {"none": 3, "group": 3}
    assert rungs(shop, "item_features") == {"none": 9, "group": 9}
    # What a group knows holds only after all that its clustering saw.
    newest = max(row["ts"] for row in pq.read_table(tmp_path / "inputs" / "behaviours.parquet").to_pylist())
    rows = lorestream.open(tmp_path / "warehouse").table("user_features").to_arrow().to_pylist()
    assert {row["valid_from"] for row in rows if row["rung"] == "group"} == {newest}
    # Somebody new joins a group without a call.
    write_events(tmp_path, "-later", [event(7, n, 60 + n) for n in range(2)])
    assert run_once(shop).report.calls == 0
    assert rungs(shop, "user_features")["group"] == 4


def test_users_of_one_group_draft_from_each_others_texts(tmp_path: Path) -> None:
    shop = shop_with(tmp_path, "[knowledge]\nmode = 'mixed'\n" + GROUPS)
    run_once(shop)
    members = read_table(Ledger(load_config(shop).root).files("group_members"), GROUP_MEMBERS).to_pylist()
    likes = {row["entity_id"]: row["group_id"] for row in members if row["kind"] == "group_likes"}
    drafted = {row["entity_id"]: row["group"] for row in asked(shop) if row["kind"] == "user_summary"}
    assert drafted == {user: f"user_summary/{likes[user]}" for user in ("u0", "u1", "u2")}


def test_a_budget_holds_over_runs_of_a_period_and_everybody_has_a_rung(tmp_path: Path) -> None:
    shop = shop_with(
        tmp_path,
        "[knowledge]\nmode = 'mixed'\ncascade = 'shift'\n[budget]\nmax_calls = 16\n[segments]\nrows = 1\n" + GROUPS,
    )
    engines = [
        ScriptedEngine(lambda p: f"A view of {len(p)} things.", fail_after=5),
        scripted_engine(),
        scripted_engine(),
    ]
    with pytest.raises(EngineFailed):
        run_once(shop, engines[0])
    report = run_once(shop, engines[1]).report
    assert run_once(shop, engines[2]).report.calls == 0
    assert sum(engine.calls for engine in engines) <= 16
    assert report.calls_waiting > 0
    assert any("wait for the next period" in note for note in report.notes)
    users = lorestream.open(tmp_path / "warehouse").table("user_features").to_arrow()
    items = lorestream.open(tmp_path / "warehouse").table("item_features").to_arrow()
    assert set(users.column("user_id").to_pylist()) == {"u0", "u1", "u2"}
    assert set(items.column("item_id").to_pylist()) == {f"i{n}" for n in range(9)}
    assert "group" in set(items.column("rung").to_pylist())


def test_the_forecast_says_who_is_paid_for_and_who_is_first_to_wait(tmp_path: Path) -> None:
    shop = shop_with(tmp_path, "[budget]\nmax_calls = 4\ntraffic_days = 1000.0\n")
    run = _prepared(shop)
    plan(run)
    budget = forecast(run)["budget"]
    assert isinstance(budget, dict)
    assert (budget["waiting"], budget["spent_calls"]) == (14, 0)
    # Users met nine items each, items three users each: a user's call serves more joins.
    assert budget["kinds"] == {
        "item_facts": {"granted": 0, "waiting": 9},
        "user_summary": {"granted": 4, "waiting": 5},
    }
    assert (budget["last_granted"]["traffic"], budget["first_waiting"]["traffic"]) == (10.0, 10.0)


def test_where_the_model_is_unsure_comes_first(tmp_path: Path) -> None:
    shop = shop_with(tmp_path, "[budget]\nmax_calls = 3\nscores = 'scores.csv'\n")
    scores = ["entity,id,score", *(f"user,u{n},{p}" for n, p in ((0, 0.01), (1, 0.5), (2, 0.99)))]
    (tmp_path / "scores.csv").write_text("\n".join([*scores, *(f"item,i{n},0.0" for n in range(9))]))
    run = _prepared(shop)
    plan(run)
    first = run.pending.slice(0, 3).to_pylist()
    # 3 of 3 events, 3 of the last 6, 2 of all 8; 1 + 9 events of late, and the model knows nothing.
    assert [(row["entity_id"], row["partition_no"]) for row in first] == [("u1", 2), ("u1", 1), ("u1", 0)]
    assert [row["priority"] for row in first] == [10.0, 5.0, 2.5]
    for rows, complaint in (
        ("user,u1,1.5", r"id 'u1', score 1\.5"),
        ("user,u1,", r"id 'u1', score None"),
        ("user,,0.5", r"id None, score 0\.5"),
        (",u1,0.5", r"entity None, id 'u1'"),
        ("user,u1,high", "cannot be read"),
        ("user,1,0.5\nitem,2,0.5", "None of the 2 ids .* is known here"),
    ):
        (tmp_path / "scores.csv").write_text(f"entity,id,score\n{rows}\n")
        with pytest.raises(InputError, match=complaint):
            _ = run.pending


def test_an_id_of_digits_in_a_table_of_scores_is_no_number(tmp_path: Path) -> None:
    shop = shop_with(tmp_path, "[budget]\nmax_calls = 3\nscores = 'scores.csv'\n", users=1, events_each=2)
    (tmp_path / "scores.csv").write_text("entity,id,score\nitem,007,0.5\nitem,i0,0.0\n")
    catalogue = pa.table({"item_id": ["007", "i0", "i1"], "title": ["Bond Lamp", "Quiet Lamp", "Third Lamp"]})
    pq.write_table(catalogue, tmp_path / "inputs" / "items.parquet")
    run = _prepared(shop)
    plan(run)
    uncertainty = {row["entity_id"]: row["uncertainty"] for row in run.pending.to_pylist()}
    assert uncertainty == {"007": 1.0, "i0": 0.0, "i1": 1.0, "u0": 1.0}


def test_a_text_that_is_no_use_is_asked_for_once_more_and_both_attempts_are_kept(tmp_path: Path) -> None:
    class Moody(ScriptedEngine):
        def _complete(self, request):  # type: ignore[no-untyped-def]
            completion = super()._complete(request)
            if request.attempt or "item" not in request.prompt:
                return completion
            return type(completion)(**{**vars(completion), "text": "loop " * 90})

    shop = shop_with(tmp_path, "", users=1, events_each=2)
    run = run_once(shop, Moody(lambda prompt: f"A fine answer of {len(prompt)} things.", max_new_tokens=200))
    report = run.report
    assert (report.calls, report.retries, report.retries_mended, report.texts_by_status) == (10, 9, 9, {"ok": 10})
    found = quality_report(load_config(shop), 1)
    assert (found["texts"], found["mended_by_a_second_attempt"], found["by_status"]) == (10, 9, {"ok": 10})
    stored = read_table(run.knowledge_files, KNOWLEDGE).to_pylist()
    assert Counter((row["attempt"], row["status"]) for row in stored) == {
        (0, "ok"): 1,
        (0, "repetitive"): 9,
        (1, "ok"): 9,
    }
    assert "above quality.max_" in next(row["reason"] for row in stored if row["status"] == "repetitive")


def test_a_scenario_that_knows_none_of_the_columns_is_doubted_as_long_as_it_asks(tmp_path: Path) -> None:
    shop = shop_with(tmp_path, "", users=1)
    items = pq.read_table(tmp_path / "inputs" / "items.parquet").rename_columns({"genres": "brand"})
    pq.write_table(items, tmp_path / "inputs" / "items.parquet")
    doubts = [[note for note in run_once(shop).report.notes if 'scenario = "' in note] for _ in range(2)]
    assert [len(found) for found in doubts] == [1, 0]
    assert doubts[0][0].startswith("The catalogue has `brand`, and none of the fields of the scenario `movies`")


def test_a_text_that_many_share_is_told(tmp_path: Path) -> None:
    shop = open_shop(tmp_path, users=24, items=24)
    prepare_warehouse(load_config(shop).root)

    def answer(prompt: str) -> str:
        return f"{prompt.split(chr(34))[1]} is fine." if "<item>" in prompt else "The same for everybody."

    run = run_once(shop, ScriptedEngine(answer))
    summaries = run.report.calls_by_kind["user_summary"]
    [said] = [note for note in run.report.notes if "word for word" in note]
    assert said.startswith(f"{summaries} of {summaries} user_summary texts are word for word the same ('The same for")
    assert quality_report(load_config(shop), 1)["shared"] == [said]
    # The next run makes no call and says nothing of it again.
    assert not [note for note in run_once(shop).report.notes if "word for word" in note]


def test_negative_feedback_stands_apart_where_asked_for(tmp_path: Path) -> None:
    shop = shop_with(tmp_path, "[prompts]\nfeedback = 'split'\n[labels]\npositive = 'value > 3'\n", users=1)
    write_events(tmp_path, "", [event(0, n, n, value=5.0 if n % 2 else 1.0) for n in range(2)])
    run = _prepared(shop)
    plan(run)
    [prompt] = [str(row["prompt"]) for row in asked(shop) if row["kind"] == "user_summary"]
    liked, turned_down = (prompt.split(f"<{tag}>")[1].split(f"</{tag}>")[0] for tag in ("liked", "turned_down"))
    assert ("Quiet Lamp 1" in liked, "Quiet Lamp 0" in liked) == (True, False)
    assert ("Quiet Lamp 1" in turned_down, "Quiet Lamp 0" in turned_down) == (False, True)
    assert "u0" not in prompt
    shop.write_text(shop.read_text().replace("'value > 3'", "\"action == 'buy'\""))
    with pytest.raises(ConfigError, match="goes by `action`"):
        plan(_prepared(shop))


def test_proposed_factors_become_a_scenario_that_a_run_accepts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = "Noun: lamp\nPlural: lamps\nVerb: bought\n1. brightness\n2. material and finish\n3. room\n"
    shown: list[str] = []

    def engine(_config: object) -> ScriptedEngine:
        return ScriptedEngine(lambda prompt: shown.append(prompt) or answer)

    monkeypatch.setattr("flows.run._make_engine", engine)
    shop = shop_with(tmp_path, "")
    found = propose_factors(load_config(shop), tmp_path / "lamps.toml", None, 9, 40)
    assert found["factors"] == ["brightness", "material and finish", "room"]
    assert all(f"Quiet Lamp {n}" in shown[0] for n in range(9))
    with pytest.raises(UsageError, match="exists already"):
        propose_factors(load_config(shop), tmp_path / "lamps.toml", None, 9, 40)
    shop.write_text(shop.read_text() + "[prompts]\nscenario = 'lamps.toml'\n")
    run_once(shop)
    assert all("material and finish" in str(row["prompt"]) for row in asked(shop))


def test_groups_made_by_another_recipe_take_in_nobody(tmp_path: Path) -> None:
    shop = shop_with(tmp_path, "[knowledge]\nmode = 'collective'\n" + GROUPS)
    run_once(shop)
    shop.write_text(shop.read_text() + "rank = 3\n")
    with pytest.raises(ConfigError, match="lorestream groups build"):
        run_once(shop)
    assert call(["groups", "build", "--json", "--config", str(shop)]) == 0
    # The same users and items are alike as before, and were asked about.
    assert run_once(shop).report.calls == 0
    assert call(["groups", "stats", "--json", "--config", str(shop)]) == 0


def test_a_scenario_of_another_domain_is_refused_before_any_call(tmp_path: Path) -> None:
    shop = shop_with(tmp_path, "[prompts]\nscenario = 'mine.toml'\n")
    words = "name = 'mine'\nnoun = 'book'\nnoun_plural = 'books'\nconsumed = 'read'\n"
    factors = "user_factors = ['genre', 'soundtrack']\nitem_factors = ['genre', 'soundtrack']\n"
    (tmp_path / "mine.toml").write_text(words + factors)
    with pytest.raises(ConfigError, match="soundtrack"):
        run_once(shop)
    (tmp_path / "mine.toml").write_text(
        words + factors.replace("soundtrack", "author") + "[item_fields]\nisbn = 'ISBN'\n"
    )
    with pytest.raises(ConfigError, match="isbn"):
        run_once(shop)


def test_who_came_after_the_clustering_joins_in_the_same_run(tmp_path: Path) -> None:
    until = "until = 2025-01-01T03:00:00Z\n"
    shop = shop_with(tmp_path, "[knowledge]\nmode = 'collective'\n" + GROUPS + until, users=2, events_each=3)
    write_events(tmp_path, "-later", [event(7, n, 60 + n) for n in range(2)])
    first = run_once(shop).report
    assert rungs(shop, "user_features")["group"] == 3
    again = run_once(shop).report
    assert (again.rows_published, again.snapshot) == (0, first.snapshot)


def test_the_group_stands_where_an_own_text_is_no_use(tmp_path: Path) -> None:
    def answer(prompt: str) -> str:
        if "one user" in prompt and "Quiet Lamp 0" in prompt:
            return "I'm sorry, but I cannot determine anything about this."
        return f"A view of {len(prompt)} things."

    until = "until = 2025-01-01T02:00:00Z\n"
    shop = shop_with(
        tmp_path, "[knowledge]\nmode = 'mixed'\n[quality]\nretry = false\n" + GROUPS + until, users=2, events_each=2
    )
    # The clustering saw one event of each; the first partition is sealed by the second one, or much later.
    write_events(tmp_path, "", [event(0, 1, 0), event(0, 0, 5), event(1, 2, 0), event(1, 3, 6)])
    run_once(shop, ScriptedEngine(answer))
    warehouse = lorestream.open(tmp_path / "warehouse")
    rows = warehouse.table("user_features").to_arrow().to_pylist()
    first = {row["user_id"]: row for row in rows if row["partition_no"] == 0}
    assert {user: (row["rung"], row["status"]) for user, row in first.items()} == {
        "u0": ("group", "refused"),
        "u1": ("own", "ok"),
    }
    seen = pa.table({"user_id": ["u0"], "item_id": ["i1"], "ts": pa.array([event(0, 0, 9)["ts"]], TIMESTAMP)})
    assert warehouse.join(seen).to_arrow()["user_rung"].to_pylist() == ["group"]


def test_whoever_waits_for_a_call_keeps_what_the_group_knows(tmp_path: Path) -> None:
    until = "until = 2025-01-01T02:00:00Z\n"
    shop = shop_with(tmp_path, "[knowledge]\nmode = 'mixed'\n[budget]\nmax_calls = 2\n" + GROUPS + until, users=2)
    write_events(tmp_path, "", [event(user, user + n, 5 * n + user) for user in range(2) for n in range(2)])
    assert set(run_once(shop).report.calls_by_kind) == {"group_likes", "group_items"}
    warehouse = lorestream.open(tmp_path / "warehouse")
    # Partitions were sealed after the clustering's end, and nobody was asked about them.
    late = pa.table(
        {"user_id": ["u0", "u1"], "item_id": ["i0", "i1"], "ts": pa.array([event(0, 0, 99)["ts"]] * 2, TIMESTAMP)}
    )
    assert warehouse.join(late).to_arrow()["user_rung"].to_pylist() == ["group", "group"]


def test_the_last_usable_text_stands_for_a_changed_item_whose_new_text_is_no_use(tmp_path: Path) -> None:
    shop = shop_with(tmp_path, "[quality]\nretry = false\n", users=1, events_each=2)
    run_once(shop)
    write_items(tmp_path, ["Quiet Lamp 0, revised", *(f"Quiet Lamp {n}" for n in range(1, 9))])
    report = run_once(shop, ScriptedEngine(lambda _prompt: "I cannot describe it, I'm sorry.")).report
    assert (report.calls_by_kind, report.texts_by_status) == ({"item_facts": 1}, {"refused": 1})
    rows = lorestream.open(tmp_path / "warehouse").table("item_features").to_arrow().to_pylist()
    found = sorted((row["valid_from"], row["rung"], row["status"]) for row in rows if row["item_id"] == "i0")
    assert [entry[1:] for entry in found] == [("own", "ok"), ("own", "refused")]


def test_a_budget_of_tokens_is_spent_as_far_as_answers_leave_it(tmp_path: Path) -> None:
    # At first each answer is expected to have all 48 tokens; these have 7.
    shop = shop_with(tmp_path, "[budget]\nmax_output_tokens = 120\n")
    engine = ScriptedEngine(lambda prompt: f"A view of {len(prompt)} nice things.")
    report = run_once(shop, engine).report
    assert report.tokens_out <= 120 < report.tokens_out + 48
    assert report.calls_waiting == 18 - report.calls
    assert sum("wait for the next period" in note for note in report.notes) == 1


def test_a_budget_in_which_no_answer_fits_is_refused(tmp_path: Path) -> None:
    shop = shop_with(tmp_path, "")
    settings = shop.read_text()
    shop.write_text(settings + "[budget]\nmax_output_tokens = 47\n")
    with pytest.raises(ConfigError, match=r"max_output_tokens = 47 is less than the engine\.max_new_tokens = 48"):
        load_config(shop)
    shop.write_text(settings + "[budget]\nmax_output_tokens = 0\n")
    assert run_once(shop).report.calls == 0


def test_what_is_asked_may_change_between_runs_and_only_what_is_missing_is_paid_for(tmp_path: Path) -> None:
    shop = shop_with(tmp_path, "", users=2, events_each=8)
    plain = shop.read_text()
    calls = {}
    for step, settings in enumerate(
        (
            "",
            "[knowledge]\ncascade = 'shift'\n",
            "[knowledge]\ncascade = 'summary'\n",
            "[knowledge]\nmode = 'collective'\n" + GROUPS,
            "[knowledge]\nmode = 'mixed'\ncascade = 'shift'\n" + GROUPS,
            "",
        )
    ):
        shop.write_text(plain + settings)
        calls[step] = run_once(shop).report.calls_by_kind
    assert calls == {
        0: {"user_summary": 6, "item_facts": 9},
        1: {"user_shift": 4},
        2: {},
        3: {"group_likes": 1, "group_items": 6},
        4: {},
        5: {},
    }
    keys = answered(shop)
    assert len(keys) == len(set(keys))


def _prepared(shop: Path) -> Run:
    """A run whose events are partitioned and whose calls are planned by nobody yet."""
    run = open_run(shop)
    stages.ingest(run)
    stages.partition(run)
    grouping.form_groups(run)
    return run
