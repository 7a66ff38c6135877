"""The commands of the README on a made-up MovieLens folder, through real Beam, vLLM, encoder, Prefect and DuckDB."""

import json
import subprocess
from pathlib import Path

import duckdb
import pytest

from tests.flows.conftest import BIN
from tests.flows.shop import WEIGHTS

pytestmark = [pytest.mark.flow, pytest.mark.engine]


def lorestream(environment: dict[str, str], folder: Path, *arguments: str) -> dict[str, object]:
    done = subprocess.run(
        [str(BIN / "lorestream"), *arguments, "--json"],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    # One JSON object and nothing else: libraries that print do not reach standard output.
    result: dict[str, object] = json.loads(done.stdout)
    return result


def write_movielens(folder: Path, users: int, movies: int, events_each: int) -> None:
    folder.mkdir()
    titles = [f"{n}::Made-Up Lantern {n}, The ({1950 + n})::Drama|Comedy" for n in range(1, movies + 1)]
    (folder / "movies.dat").write_text("\n".join(titles) + "\n", encoding="latin-1")
    ratings = [
        f"{user}::{1 + (7 * user + n) % movies}::{1 + (user + n) % 5}::{978300000 + 3600 * n + user}"
        for user in range(1, users + 1)
        for n in range(events_each)
    ]
    (folder / "ratings.dat").write_text("\n".join(ratings) + "\n", encoding="latin-1")
    people = [f"{user}::F::25::7::12345" for user in range(1, users + 1)]
    (folder / "users.dat").write_text("\n".join(people) + "\n", encoding="latin-1")


def test_a_movielens_folder_becomes_tables_and_a_second_run_calls_nothing(
    tmp_path: Path, prefect_environment: dict[str, str]
) -> None:
    write_movielens(tmp_path / "ml", users=6, movies=15, events_each=12)
    shop = tmp_path / "shop"
    lorestream(prefect_environment, tmp_path, "init", str(shop))
    lorestream(prefect_environment, shop, "import", "movielens", str(tmp_path / "ml"))
    first = lorestream(prefect_environment, shop, "run", "--model", str(WEIGHTS), "--limit-users", "4")
    # Twelve events seal one partition of ten.
    assert (first["events"], first["partitions"]) == (72, 6)
    assert first["calls_by_kind"]["user_summary"] == 4
    assert first["tokens_out"] > first["calls"]
    assert first["rows_published"] == first["calls"]

    second = lorestream(prefect_environment, shop, "run", "--model", str(WEIGHTS), "--limit-users", "4")
    assert (second["calls"], second["rows_published"]) == (0, 0)
    status = lorestream(prefect_environment, shop, "status")
    assert status["knowledge"] == first["calls"]
    assert status["tokens_out"] == first["tokens_out"]
    assert status["current_snapshot"] == first["snapshot"]
    with duckdb.connect() as con:
        con.execute(f"ATTACH '{shop}/warehouse/features.duckdb' AS features (READ_ONLY)")
        [(rows,)] = con.execute("SELECT count(*) FROM features.lorestream.user_features_latest").fetchall()
    assert rows == 4
