"""MovieLens-1M with texts of real LLMs, from folders of Parquet files, as data for a lift.

ratings, movies, users      the events; the first genre is the category, as in KAR
ml-1m-item-colakg           a DeepSeek text per movie: `facts`
ml-1m-groups, -collective   REKI's user groups and their GPT-3.5 texts: `likes` and `dislikes`. They may rest on any
                            event, so they are marked leaky
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from adapters.lift.data import LiftData, Source, chosen_users, source_of
from adapters.samples import build_samples
from warehouse.errors import InputError
from warehouse.schemas import ALWAYS, TIMESTAMP

# Titles and attributes, or texts, to vectors [n, d]; the name says which texts they are.
Encode = Callable[[str, Sequence[str]], np.ndarray]

HISTORY_EVENTS = 30
NOTES = (
    "REKI's groups may rest on events of the test set: they count in the protocol `kar` only.",
    "No LLM's texts about single users are at hand for MovieLens-1M; what is measured of users is their groups.",
    "The LLMs have read about these movies, perhaps about this data set too: item texts may tell what came later.",
)


def movielens_data(
    folder: Path, knowledge: Path, encode: Encode, history_length: int, users: int | None = None
) -> LiftData:
    """All events; ratings of at least 4 stars are positive. Raises InputError when a file is missing.

    Where only a sample of `users` will be measured, only their histories are encoded, which takes longest.
    """
    ratings = _read(folder / "ratings.parquet")
    movies = _read(folder / "movies.parquet")
    people = _read(folder / "users.parquet")
    stamp, user = ratings["timestamp"].to_numpy(), ratings["user_id"].to_numpy()
    # Line order settles events of one second, as in the reference's order of events.
    ratings = ratings.take(pa.array(np.lexsort((np.arange(len(stamp)), user, stamp))))
    behaviours = pa.table(
        {
            "user_id": ratings["user_id"].cast(pa.string()),
            "item_id": ratings["item_id"].cast(pa.string()),
            "ts": pa.array(ratings["timestamp"].to_numpy() * 1_000_000).cast(pa.timestamp("us")).cast(TIMESTAMP),
        }
    )
    value = ratings["rating"].to_numpy()
    catalogue = movies.set_column(0, "item_id", movies["item_id"].cast(pa.string()))
    nothing = {"valid_from": pa.array([], TIMESTAMP), "row": pa.array([], pa.int64())}
    samples = build_samples(
        behaviours,
        value > 3,
        pa.table({"user_id": pa.array([], pa.string()), **nothing}),
        pa.table({"item_id": pa.array([], pa.string()), **nothing}),
        items=catalogue,
        category="genres",
        history_length=history_length,
    )
    titles = dict(zip(catalogue["item_id"].to_pylist(), movies["title"].to_pylist(), strict=True))
    genres = dict(zip(catalogue["item_id"].to_pylist(), movies["genres"].to_pylist(), strict=True))
    facts = _read(knowledge / "ml-1m-item-colakg.parquet")
    told = {str(i): t for i, t in zip(facts["item_id"].to_pylist(), facts["text"].to_pylist(), strict=True) if t}
    item_ids, user_ids = samples.items.to_pylist(), samples.users.to_pylist()
    shown = [f"{titles[i]}. Genres: {', '.join(genres[i])}." for i in item_ids]
    always = _micros(ALWAYS)

    def about_items(name: str, texts: dict[int, str]) -> Source:
        return source_of(
            "item", encode(name, list(texts.values())), np.array(list(texts)), np.full(len(texts), always), samples.item
        )

    texts, owners, known_from = user_histories(
        samples.user, samples.item, samples.ts, value, [titles[i] for i in item_ids]
    )
    wanted = chosen_users(len(user_ids), users)[owners]
    texts = [text for text, chosen in zip(texts, wanted, strict=True) if chosen]
    owners, known_from = owners[wanted], known_from[wanted]
    sources = {
        "facts": about_items("facts", {code: told[i] for code, i in enumerate(item_ids) if i in told}),
        "titles": about_items("titles", dict(enumerate(shown))),
        "histories": source_of("user", encode("histories", texts), owners, known_from, samples.user),
        **_groups(knowledge, user_ids, samples.user, encode, always),
    }
    rows = dict(zip(map(str, people["user_id"].to_pylist()), range(people.num_rows), strict=True))
    at = np.array([rows[i] for i in user_ids])
    traits = {
        name: np.unique(people[name].to_numpy(zero_copy_only=False)[at], return_inverse=True)[1]
        for name in ("gender", "age", "occupation")
    }
    return LiftData("ml-1m", samples, sources, traits, leaky=frozenset({"likes", "dislikes"}), notes=NOTES)


def user_histories(
    user: np.ndarray, item: np.ndarray, ts: np.ndarray, stars: np.ndarray, titles: Sequence[str]
) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Per user what an LLM would be shown: the first 30 events, or half of fewer, as in KAR; and the time of the last.

    Texts, users and times, one per user with at least two events. Events are in order of time.
    """
    order = np.argsort(user, kind="stable")
    starts = np.flatnonzero(np.append(True, user[order][1:] != user[order][:-1]))
    texts, owners, known_from = [], [], []
    for start, end in zip(starts, np.append(starts[1:], len(order)), strict=True):
        events = order[start : start + min(-(-(end - start) // 2), HISTORY_EVENTS)]
        texts.append("; ".join(f"{titles[item[e]]}, {stars[e]} stars" for e in events))
        owners.append(user[order[start]])
        known_from.append(ts[events[-1]])
    return texts, np.array(owners), np.array(known_from)


def _groups(
    knowledge: Path, user_ids: Sequence[str], user: np.ndarray, encode: Encode, always: int
) -> dict[str, Source]:
    members, texts = _read(knowledge / "ml-1m-groups.parquet"), _read(knowledge / "ml-1m-collective.parquet")
    sources = {}
    for name, entity in (("likes", "user_positive"), ("dislikes", "user_negative")):
        told = texts.filter(pa.compute.equal(texts["entity"], entity))
        mine = members.filter(pa.compute.equal(members["entity"], entity))
        code = {group: n for n, group in enumerate(sorted(told["group_id"].to_pylist()))}
        of_user = dict(zip(map(str, mine["id"].to_pylist()), mine["group_id"].to_pylist(), strict=True))
        holder = np.array([code.get(of_user.get(i, -1), -1) for i in user_ids])
        groups = np.array([code[g] for g in told["group_id"].to_pylist()])
        vectors = encode(name, told["text"].to_pylist())
        sources[name] = source_of("user", vectors, groups, np.full(len(groups), always), holder[user])
    return sources


def _read(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except FileNotFoundError as error:
        raise InputError(
            f"There is no {path}. --dataset takes a folder with ratings.parquet, movies.parquet and users.parquet, "
            "--knowledge one with ml-1m-item-colakg.parquet, ml-1m-groups.parquet and ml-1m-collective.parquet."
        ) from error


def _micros(moment: object) -> int:
    return int(pa.array([moment], TIMESTAMP).cast(pa.int64())[0].as_py())
