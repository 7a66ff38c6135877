"""The committed pocket LLM loads without a network, is small, and knows what it was trained on."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from demo.catalogue import make_catalogue
from demo.group_lessons import GROUP_KINDS, common, group_lesson, random_group
from demo.lessons import SUMMARY_FACTORS, VALUES, item_lesson, preference, stated_facts, summary_lesson
from demo.pocket_batches import Progress, Stage, lesson_batches, movie_writer
from demo.pocket_card import accuracy_table
from demo.pocket_chat import PocketChat
from demo.pocket_hints import Hints
from demo.pocket_questions import partitions
from demo.pocket_repertoire import grown_embedding, old_texts
from demo.pocket_report import evaluate
from demo.pocket_tokenizer import TURN_END, chat
from demo.pocket_training import (
    IGNORED,
    TrainingConfig,
    answer_loss,
    encode_batch,
    make_model,
    make_tokenizer,
    save_model,
    train,
)
from demo.shift_lessons import random_shift, random_span, shift_lesson, shift_steps
from demo.wording import BRIEF_FACTS
from demo.world import make_world

WEIGHTS = Path(__file__).parents[2] / "demo" / "weights"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return make_tokenizer(movie_writer(), make_catalogue(), seed=7, repertoire=True)


@pytest.fixture(scope="module")
def pocket() -> PocketChat:
    return PocketChat(WEIGHTS)


def test_folder_fits_the_repository_and_names_how_it_was_made() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) <= 10_000_000
    card = (WEIGHTS / "README.md").read_text(encoding="utf-8")
    assert "A toy" in card
    assert "python -m demo.pocket_llm train" in card


def test_facts_are_right_for_movies_with_and_without_interactions(pocket: PocketChat) -> None:
    movies = make_catalogue()
    asked = [m for m in movies if m.late][:4] + [m for m in movies if not m.late][:4]
    answers = pocket.ask([item_lesson(movie_writer(), movie).prompt for movie in asked])
    right = [
        stated_facts(answer.text, factor) == {movie.hidden[factor]}
        for movie, answer in zip(asked, answers, strict=True)
        for factor in BRIEF_FACTS
    ]
    assert sum(right) / len(right) > 0.95
    assert all(answer.ended for answer in answers)


def test_answers_about_users_and_groups_are_right_far_above_chance(pocket: PocketChat) -> None:
    accuracy = evaluate(pocket, make_world(users=40), lists=24, items=1)
    for scores in (accuracy.summaries.plain, accuracy.summaries.timed):
        assert sum(score.best for score in scores.values()) / len(scores) > 0.5
    assert accuracy.shifts.new_stated > 0.9
    assert accuracy.shifts.same_left_out > 0.9
    # One value in six is right by chance. The other factors seldom reach a third of a list.
    found = [kind.factors[factor].best for kind in accuracy.groups.values() for factor in ("theme", "mood")]
    assert sum(found) / len(found) > 0.5
    assert accuracy.ended == 1.0
    table = accuracy_table(accuracy)
    assert all(f"| {factor} | {score.exact:.1%} |" in table for factor, score in accuracy.shifts.factors.items())


def test_the_committed_tokenizer_is_that_of_the_last_stage(tokenizer: Tokenizer) -> None:
    assert Tokenizer.from_file(str(WEIGHTS / "tokenizer.json")).get_vocab() == tokenizer.get_vocab()
    assert load_file(WEIGHTS / "model.safetensors")["model.embed_tokens.weight"].shape[0] >= len(tokenizer.get_vocab())


def test_further_prompts_change_no_token_of_the_older_ones(tokenizer: Tokenizer) -> None:
    movies, writer = make_catalogue(), movie_writer()
    base = make_tokenizer(writer, movies, seed=7)
    assert base.get_vocab().items() <= tokenizer.get_vocab().items()
    for text in old_texts(writer, movies)[::5]:
        assert tokenizer.encode(text).ids == base.encode(text).ids


def test_each_title_is_one_token_and_prompts_of_every_kind_survive_a_round_trip(tokenizer: Tokenizer) -> None:
    movies, writer, rng = make_catalogue(), movie_writer(), np.random.default_rng(1)
    assert all(len(tokenizer.encode(f'"{movie.title}"').ids) == 1 for movie in movies)
    asked = partitions(make_world(users=3), limit=5, seed=1)
    lessons = [summary_lesson(writer, p.history, span=span) for p in asked for span in (None, p.span)]
    lessons += [group_lesson(writer, kind, random_group(movies, 15, rng), n) for kind in GROUP_KINDS for n in (1, 80)]
    lessons += [shift_lesson(writer, *random_shift(rng), span) for span in (None, random_span(rng))]
    for lesson in lessons:
        given, said = chat(lesson)
        for text in (given, said, 'Any "other" text, \u00fc\u4e16\n'):
            assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
        assert tokenizer.encode(said).ids[-1] == tokenizer.token_to_id(TURN_END)
        # Titles, ratings and answers apart, a prompt is some dozens of tokens.
        assert len(tokenizer.encode(given).ids) < 130


def test_a_grown_embedding_keeps_what_is_there_and_begins_with_what_is_like_it(tokenizer: Tokenizer) -> None:
    base = make_tokenizer(movie_writer(), make_catalogue(), seed=7)
    old = torch.randn(base.get_vocab_size(), 8)
    grown = grown_embedding(old, 2048, base, tokenizer)
    same = [number for text, number in base.get_vocab().items() if text != ";"]
    torch.testing.assert_close(grown[same], old[same])
    new = tokenizer.token_to_id("A group of ")
    torch.testing.assert_close(grown[new], old[base.encode("A group of ").ids].mean(dim=0))
    (head,) = (number for text, number in base.get_vocab().items() if text.endswith("<history>\n"))
    torch.testing.assert_close(grown[tokenizer.token_to_id("<history>\n")], old[head])


def test_batches_hold_every_kind_in_its_share() -> None:
    stage = Stage(steps=1, facts_share=0.25, groups_share=0.25, shifts_share=0.25, repertoire=True, brief=True)
    batches = lesson_batches(stage, 2, make_catalogue(), Progress(stage, 1.0), np.random.default_rng(0))
    drawn = [next(batches) for _ in range(60)]
    kinds = [kind for kind, _ in drawn]
    assert all(kinds.count(kind) >= 5 for kind in ("items", "groups", "shifts", "lists"))
    timed = ["This history " in lesson.prompt for kind, lessons in drawn if kind == "lists" for lesson in lessons]
    assert 0 < sum(timed) < len(timed)


def test_loss_equals_the_plain_cross_entropy_of_the_answers_alone(tokenizer: Tokenizer) -> None:
    movies, writer = make_catalogue(), movie_writer()
    model = make_model(tokenizer, seed=0)
    ids, labels = encode_batch(tokenizer, [item_lesson(writer, movie) for movie in movies[:3]], pad=0)
    with torch.no_grad():
        out = model(input_ids=ids, output_hidden_states=True)
        logits, targets = out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        plain = torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED)
        torch.testing.assert_close(answer_loss(model, out.hidden_states[-1], labels), plain)


def test_hints_stand_after_titles_and_sentences_and_say_what_is_shown_so_far(tokenizer: Tokenizer) -> None:
    movies, writer = make_catalogue(), movie_writer()
    model = make_model(tokenizer, seed=0)
    hints = Hints(tokenizer, movies, model.config.hidden_size, model.config.vocab_size)
    history = partitions(make_world(users=3), limit=1, seed=1)[0].history
    group = [movie for movie, _ in history[:6]]
    lessons = [
        summary_lesson(writer, history),
        item_lesson(writer, movies[0]),
        group_lesson(writer, GROUP_KINDS[0], group, 9),
        shift_lesson(writer, *(pair := random_shift(np.random.default_rng(1)))),
    ]
    ids, _ = encode_batch(tokenizer, lessons, pad=0)
    targets = hints.targets(ids, lessons)
    places = (targets[0, :, 0] != IGNORED).nonzero().flatten().tolist()
    assert [tokenizer.decode([ids[0, place]]).split()[0] for place in places] == [f"({s}" for _, s in history]
    assert (targets[1] == IGNORED).all()
    for place, end in zip(places, range(1, len(history) + 1), strict=True):
        found = [preference(history[:end], factor) for factor in SUMMARY_FACTORS]
        stated = [value for side in ("likes", "dislikes") for value in (getattr(f, side) for f in found)]
        named = [
            (*VALUES[factor], None)[number]
            for number, factor in zip(targets[0, place, :-1].tolist(), SUMMARY_FACTORS * 2, strict=True)
        ]
        assert named == stated
    separators = (targets[2, :, 0] != IGNORED).nonzero().flatten().tolist()
    assert [tokenizer.decode([ids[2, place]]) for place in separators] == [";"] * 5 + ["\n"]
    shown = [(*VALUES[f], None)[n] for n, f in zip(targets[2, separators[-1]].tolist(), SUMMARY_FACTORS, strict=False)]
    assert shown == [common(group, factor) for factor in SUMMARY_FACTORS]
    assert (targets[2, :, len(SUMMARY_FACTORS) :] == IGNORED).all()
    stops = (targets[3, :, 0] != IGNORED).nonzero().flatten()
    assert {tokenizer.decode([token]) for token in ids[3, stops].tolist()} == {"."}
    assert targets[3, stops].tolist() == shift_steps(*pair).tolist()
    assert stops.max() < len(tokenizer.encode(chat(lessons[3])[0]).ids)


def test_training_repeats_with_its_seed_and_writes_a_folder_that_answers(tmp_path: Path) -> None:
    stages = (
        Stage(steps=3, facts_share=0.5, hints=True, growth_until=0.5),
        Stage(steps=5, facts_share=0.2, groups_share=0.4, shifts_share=0.2, repertoire=True, brief=True, hints=True),
    )
    config = TrainingConfig(stages=stages, batch=2)
    first, second = (train(config, tmp_path / name) for name in ("a", "b"))
    assert [stage.steps for stage in first.stages] == [stage.steps for stage in second.stages] == [3, 5]
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert len(PocketChat(tmp_path / "a").ask(["Hello"])) == 1


def test_a_checkpoint_replaces_the_one_before(tokenizer: Tokenizer, tmp_path: Path) -> None:
    save_model(make_model(tokenizer, seed=1), tokenizer, tmp_path / "weights")
    before = (tmp_path / "weights" / "model.safetensors").read_bytes()
    save_model(make_model(tokenizer, seed=2), tokenizer, tmp_path / "weights")
    assert (tmp_path / "weights" / "model.safetensors").read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
