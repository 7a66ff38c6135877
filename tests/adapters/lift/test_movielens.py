from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from adapters.lift.arms import arm_specs
from adapters.lift.data import LiftData
from adapters.lift.movielens import movielens_data, user_histories
from tests.adapters.lift.films import write_films
from warehouse.errors import InputError


@pytest.fixture(scope="module")
def texts() -> dict[str, list[str]]:
    return {}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_films(tmp_path_factory.mktemp("films"))


@pytest.fixture(scope="module")
def films(folders: tuple[Path, Path], texts: dict[str, list[str]]) -> LiftData:
    def encode(name: str, given: Sequence[str]) -> np.ndarray:
        """Row k is [k, 0]: a sample's row says which text it reads."""
        texts[name] = list(given)
        return np.stack([np.arange(len(given)), np.zeros(len(given))], axis=1)

    return movielens_data(*folders, encode, 5)


def text_of(films: LiftData, texts: dict[str, list[str]], name: str, sample: int) -> str | None:
    source = films.sources[name]
    row = source.rows(films.samples.ts)[sample]
    return None if row < 0 else texts[name][int(source.vectors[row, 0])]


def test_events_are_all_ratings_in_order_of_time(films: LiftData, folders: tuple[Path, Path]) -> None:
    ratings = pq.read_table(folders[0] / "ratings.parquet")
    samples = films.samples
    assert len(samples) == ratings.num_rows
    assert (np.diff(samples.ts) >= 0).all()
    true = dict(
        zip(
            zip(map(str, ratings["user_id"].to_pylist()), map(str, ratings["item_id"].to_pylist()), strict=True),
            zip(ratings["rating"].to_pylist(), ratings["timestamp"].to_pylist(), strict=True),
            strict=True,
        )
    )
    for n in range(0, len(samples), 31):
        stars, stamp = true[samples.users[int(samples.user[n])].as_py(), samples.items[int(samples.item[n])].as_py()]
        assert (samples.label[n] > 0, samples.ts[n]) == (stars > 3, stamp * 1_000_000)
    assert samples.categories == ("Comedy", "Drama")


def test_each_sample_reads_its_own_films_and_groups_texts(films: LiftData, texts: dict[str, list[str]]) -> None:
    samples = films.samples
    for n in range(0, len(samples), 17):
        film = int(samples.items[int(samples.item[n])].as_py())
        user = int(samples.users[int(samples.user[n])].as_py())
        assert text_of(films, texts, "facts", n) == (None if film == 3 else f"What an LLM says of film {film}.")
        genres = "Drama, War" if film % 2 else "Comedy"
        assert text_of(films, texts, "titles", n) == f"Film {film} (1990). Genres: {genres}."
        for name, entity in (("likes", "user_positive"), ("dislikes", "user_negative")):
            expected = None if user == 1 else f"{entity} group {user % 5 + 1}"
            assert text_of(films, texts, name, n) == expected
        assert films.traits["age"][samples.user[n]] == user % 7


def test_a_history_is_known_only_after_its_last_event(films: LiftData, texts: dict[str, list[str]]) -> None:
    samples = films.samples
    for user in range(0, 80, 9):
        events = np.flatnonzero(samples.user == user)
        # 25 events: the LLM is shown 13.
        for place, event in enumerate(events):
            text = text_of(films, texts, "histories", int(event))
            assert (text is None) == (samples.ts[event] <= samples.ts[events[12]])
            if text is not None:
                assert place >= 13
                assert text.count("; ") == 12


def test_a_long_history_shows_thirty_events() -> None:
    user = np.zeros(100, int)
    told, owners, since = user_histories(
        user, np.arange(100), np.arange(100) * 10, np.full(100, 4), list(map(str, range(100)))
    )
    assert told == ["; ".join(f"{n}, 4 stars" for n in range(30))]
    assert (owners.tolist(), since.tolist()) == ([0], [290])


def test_groups_count_in_kars_protocol_only_and_the_notes_say_so(films: LiftData) -> None:
    assert arm_specs(films, "kar")["full"].user == ("likes", "dislikes")
    for protocol in ("time", "cold_items", "cold_users"):
        assert arm_specs(films, protocol)["full"].user == ()
    assert any("kar" in note for note in films.notes)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no .*ratings\.parquet\. --dataset takes a folder with"):
        movielens_data(tmp_path, tmp_path, lambda name, texts: np.zeros((len(texts), 2)), 5)
