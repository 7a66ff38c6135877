"""The synthetic world keeps the tables' contract, repeats itself, and hides what it should hide."""

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from demo.catalogue import END, HIDDEN, N_MOVIES, START, make_catalogue
from demo.world import World, make_world, write_inputs
from warehouse.schemas import BEHAVIOURS, ITEMS, TIMESTAMP, USERS


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(small=True)


@pytest.fixture(scope="module")
def folder(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(world, folder)
    return folder


def test_equal_seeds_write_equal_bytes(folder: Path, tmp_path: Path) -> None:
    for name, path in write_inputs(make_world(small=True), tmp_path).items():
        assert path.read_bytes() == (folder / f"{name}.parquet").read_bytes()


def test_other_seeds_change_the_users_but_not_the_catalogue(world: World) -> None:
    other = make_world(seed=8, users=5)
    assert other.movies == world.movies
    users = set(other.user_ids)
    assert [e for e in world.events if e.user_id in users] != list(other.events)


def test_a_small_world_is_the_first_users_of_a_larger_one(world: World) -> None:
    few = make_world(users=3)
    assert list(few.events) == [e for e in world.events if e.user_id in few.user_ids]


def test_tables_satisfy_the_contract(folder: Path) -> None:
    behaviours, items, users = (pq.read_table(folder / f"{n}.parquet") for n in ("behaviours", "items", "users"))
    assert behaviours.schema.equals(BEHAVIOURS)
    assert [items.schema.field(f.name) for f in ITEMS] == list(ITEMS)
    assert items.schema.field("available_at").type == TIMESTAMP
    assert items.schema.field("genres").type == pa.list_(pa.string())
    assert [users.schema.field(f.name) for f in USERS] == list(USERS)
    for table in (behaviours, items, users):
        assert all(column.null_count == 0 for column in table.columns)
    assert set(behaviours["item_id"].to_pylist()) <= set(items["item_id"].to_pylist())
    assert set(behaviours["user_id"].to_pylist()) == set(users["user_id"].to_pylist())
    assert set(behaviours["value"].to_pylist()) == {1.0, 2.0, 3.0, 4.0, 5.0}
    assert pc.min(behaviours["ts"]).as_py() >= START
    assert pc.max(behaviours["ts"]).as_py() < END


def test_nobody_rates_a_movie_before_it_is_available_or_twice(folder: Path) -> None:
    items = pq.read_table(folder / "items.parquet")
    behaviours = pq.read_table(folder / "behaviours.parquet").join(items.drop(["genres"]), "item_id")
    assert pc.all(pc.less_equal(behaviours["available_at"], behaviours["ts"])).as_py()
    pairs = zip(behaviours["user_id"].to_pylist(), behaviours["item_id"].to_pylist(), strict=True)
    assert max(Counter(pairs).values()) == 1


def test_some_movies_come_out_too_late_for_training(world: World) -> None:
    late = {movie.item_id for movie in world.movies if movie.late}
    assert 0.2 <= len(late) / len(world.movies) <= 0.25
    times = np.array([e.ts_us for e in world.events])
    cut = np.quantile(times, 0.8)
    trained = {e.item_id for e in world.events if e.ts_us < cut}
    held_out = [e for e in world.events if e.ts_us >= cut]
    unseen = [e for e in held_out if e.item_id not in trained]
    assert {e.item_id for e in unseen} <= late
    assert len(unseen) / len(held_out) > 0.1


def test_no_input_table_holds_a_hidden_attribute(folder: Path) -> None:
    words = {word.casefold() for values in HIDDEN.values() for value in values for word in (value, *value.split())}
    words -= {"in", "of"}
    for name in ("behaviours", "items", "users"):
        table = pq.read_table(folder / f"{name}.parquet")
        assert not set(table.column_names) & {*HIDDEN, "quality"}
        text = " ".join(str(column.unique().to_pylist()) for column in table.columns if pa.types.is_string(column.type))
        assert not words & set(text.casefold().replace("'", " ").replace(",", " ").split())


def test_titles_are_unique_and_clean() -> None:
    titles = [movie.title for movie in make_catalogue()]
    assert len(titles) == len(set(titles)) == N_MOVIES
    assert all(2 <= len(title.split()) <= 3 and title.replace(" ", "").isalpha() for title in titles)


def test_hidden_attributes_explain_ratings_and_genres_hardly_do() -> None:
    world = make_world(users=200)
    liked = np.array([e.stars > 3 for e in world.events])
    assert 0.45 <= liked.mean() <= 0.55
    oracle = roc_auc_score(liked, [e.score for e in world.events])
    assert 0.85 <= oracle <= 0.9
    by_genre = _taste_auc(world, "genre")
    assert 0.5 < by_genre < 0.58
    assert _taste_auc(world, "mood") > by_genre + 0.05
    assert _taste_auc(world, "theme") > by_genre + 0.05


def _taste_auc(world: World, factor: str) -> float:
    """AUC on the last fifth of the events of each user's smoothed share of likes per value, from the events before."""
    movies = {movie.item_id: movie for movie in world.movies}
    cut = int(0.8 * len(world.events))
    prior = np.mean([e.stars > 3 for e in world.events[:cut]])
    seen: Counter[tuple[str, str]] = Counter()
    liked: Counter[tuple[str, str]] = Counter()
    guesses, truths = [], []
    for number, event in enumerate(world.events):
        movie = movies[event.item_id]
        keys = [(event.user_id, v) for v in (movie.genres if factor == "genre" else (movie.hidden[factor],))]
        if number < cut:
            seen.update(keys)
            liked.update(keys if event.stars > 3 else [])
        else:
            guesses.append(np.mean([(liked[k] + 2 * prior) / (seen[k] + 2) for k in keys]))
            truths.append(event.stars > 3)
    return float(roc_auc_score(truths, guesses))
