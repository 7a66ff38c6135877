"""Made-up films in the shape of the shared MovieLens-1M and knowledge folders."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

USERS, FILMS, GROUPS = 80, 60, 5
FIRST = 956_703_932


def write_films(folder: Path) -> tuple[Path, Path]:
    """The folders of ratings, movies and users, and of the texts. Film 3 has no text; user 1 is in no group."""
    rng = np.random.default_rng(0)
    user = np.repeat(np.arange(1, USERS + 1), 25)
    film = np.concatenate([rng.permutation(FILMS)[:25] + 1 for _ in range(USERS)])
    dataset, knowledge = folder / "films", folder / "knowledge"
    for made in (dataset, knowledge):
        made.mkdir()
    pq.write_table(
        pa.table(
            {
                "user_id": pa.array(user, pa.int32()),
                "item_id": pa.array(film, pa.int32()),
                "rating": pa.array(rng.integers(1, 6, len(user)), pa.int8()),
                "timestamp": pa.array(FIRST + rng.integers(0, 10**8, len(user))),
            }
        ),
        dataset / "ratings.parquet",
    )
    ids = np.arange(1, FILMS + 1)
    genres = [["Drama", "War"] if i % 2 else ["Comedy"] for i in ids]
    movies = {"item_id": pa.array(ids, pa.int32()), "title": [f"Film {i} (1990)" for i in ids], "genres": genres}
    pq.write_table(pa.table(movies), dataset / "movies.parquet")
    people = np.arange(1, USERS + 1)
    pq.write_table(
        pa.table(
            {
                "user_id": pa.array(people, pa.int32()),
                "gender": ["F" if u % 2 else "M" for u in people],
                "age": pa.array(people % 7, pa.int16()),
                "occupation": pa.array(people % 11, pa.int16()),
            }
        ),
        dataset / "users.parquet",
    )
    texts = ["" if i == 3 else f"What an LLM says of film {i}." for i in ids]
    pq.write_table(
        pa.table({"item_id": pa.array(ids, pa.int32()), "text": texts}), knowledge / "ml-1m-item-colakg.parquet"
    )
    entities = ("item", "user_positive", "user_negative")
    told = [(entity, group + 1, f"{entity} group {group + 1}") for entity in entities for group in range(GROUPS)]
    pq.write_table(
        pa.table(
            {"entity": [t[0] for t in told], "group_id": [t[1] for t in told], "text": [t[2] for t in told]},
        ),
        knowledge / "ml-1m-collective.parquet",
    )
    members = [(entity, int(u), int(u) % GROUPS + 1) for entity in entities[1:] for u in people if u != 1]
    pq.write_table(
        pa.table(
            {"entity": [m[0] for m in members], "id": [m[1] for m in members], "group_id": [m[2] for m in members]}
        ),
        knowledge / "ml-1m-groups.parquet",
    )
    return dataset, knowledge
