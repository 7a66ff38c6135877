"""The committed pocket LLM loads without a network, is small, and knows what it was trained on."""

from pathlib import Path

import pytest
import torch

from demo.catalogue import make_catalogue
from demo.lessons import SUMMARY_FACTORS, VALUES, item_lesson, preference, stated_facts, summary_lesson
from demo.pocket_hints import Hints
from demo.pocket_report import PocketChat, evaluate, partition_lists
from demo.pocket_tokenizer import TURN_END, chat
from demo.pocket_training import (
    IGNORED,
    Stage,
    TrainingConfig,
    answer_loss,
    encode_batch,
    make_model,
    make_tokenizer,
    movie_writer,
    save_model,
    train,
)
from demo.wording import BRIEF_FACTS
from demo.world import make_world

WEIGHTS = Path(__file__).parents[2] / "demo" / "weights"


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


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


def test_summaries_of_demo_users_are_right_far_above_chance(pocket: PocketChat) -> None:
    accuracy = evaluate(pocket, make_world(users=12), lists=24, items=1)
    found = [accuracy.likes[factor].best for factor in ("director", "character", "theme", "mood")]
    assert sum(found) / len(found) > 0.5
    assert accuracy.ended == 1.0


def test_each_title_is_one_token_and_prompts_survive_a_round_trip() -> None:
    movies = make_catalogue()
    writer = movie_writer()
    tokenizer = make_tokenizer(writer, movies, seed=7)
    assert all(len(tokenizer.encode(f'"{movie.title}"').ids) == 1 for movie in movies)
    for history in partition_lists(make_world(users=3), limit=5, seed=1):
        given, said = chat(summary_lesson(writer, history))
        for text in (given, said, 'Any "other" text, \u00fc\u4e16\n'):
            assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert tokenizer.encode(said).ids[-1] == tokenizer.token_to_id(TURN_END)


def test_loss_equals_the_plain_cross_entropy_of_the_answers_alone() -> None:
    movies, writer = make_catalogue(), movie_writer()
    tokenizer = make_tokenizer(writer, movies, seed=7)
    model = make_model(tokenizer, seed=0)
    ids, labels = encode_batch(tokenizer, [item_lesson(writer, movie) for movie in movies[:3]], pad=0)
    with torch.no_grad():
        out = model(input_ids=ids, output_hidden_states=True)
        logits, targets = out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        plain = torch.nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED)
        torch.testing.assert_close(answer_loss(model, out.hidden_states[-1], labels), plain)


def test_hints_stand_on_the_ratings_and_say_what_the_list_shows_so_far() -> None:
    movies, writer = make_catalogue(), movie_writer()
    tokenizer = make_tokenizer(writer, movies, seed=7)
    model = make_model(tokenizer, seed=0)
    hints = Hints(tokenizer, movies, model.config.hidden_size, model.config.vocab_size)
    history = partition_lists(make_world(users=3), limit=1, seed=1)[0]
    lessons = [summary_lesson(writer, history), item_lesson(writer, movies[0])]
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
            for number, factor in zip(targets[0, place].tolist(), SUMMARY_FACTORS * 2, strict=True)
        ]
        assert named == stated


def test_training_repeats_with_its_seed_and_writes_a_folder_that_answers(tmp_path: Path) -> None:
    stages = (Stage(steps=3, facts_share=0.5, hints=True, growth_until=0.5), Stage(steps=2, facts_share=0.5))
    config = TrainingConfig(stages=stages, batch=2)
    first, second = (train(config, tmp_path / name) for name in ("a", "b"))
    assert [stage.steps for stage in first.stages] == [stage.steps for stage in second.stages] == [3, 2]
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert len(PocketChat(tmp_path / "a").ask(["Hello"])) == 1


def test_a_checkpoint_replaces_the_one_before(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(movie_writer(), make_catalogue(), seed=7)
    save_model(make_model(tokenizer, seed=1), tokenizer, tmp_path / "weights")
    before = (tmp_path / "weights" / "model.safetensors").read_bytes()
    save_model(make_model(tokenizer, seed=2), tokenizer, tmp_path / "weights")
    assert (tmp_path / "weights" / "model.safetensors").read_bytes() != before
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
