"""The commands of the README and the deployments of prefect.yaml, through real Beam, vLLM, encoder, Prefect and DuckDB.

One file, as one worker then starts one Prefect server for both.
"""

import json
import subprocess
from pathlib import Path

import duckdb
import pytest

import lorestream
from flows.config import load_config
from flows.setup import prepare_warehouse
from tests.flows.conftest import BIN, ROOT
from tests.flows.shop import WEIGHTS, open_shop
from warehouse.ledger import Ledger
from warehouse.status import warehouse_status

pytestmark = [pytest.mark.flow, pytest.mark.engine]


def output_of(environment: dict[str, str], folder: Path, program: str, *arguments: str) -> str:
    """What a program of our environment prints. Raises AssertionError unless it ends with 0."""
    done = subprocess.run(
        [str(BIN / program), *arguments],
        env=environment,
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{arguments}: {done.stdout[-4000:]}{done.stderr[-4000:]}"
    return done.stdout


def run_command(environment: dict[str, str], folder: Path, *arguments: str) -> dict[str, object]:
    # One JSON object and nothing else: libraries that print do not reach standard output.
    result: dict[str, object] = json.loads(output_of(environment, folder, "lorestream", *arguments, "--json"))
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
    run_command(prefect_environment, tmp_path, "init", str(shop))
    run_command(prefect_environment, shop, "import", "movielens", str(tmp_path / "ml"))
    first = run_command(prefect_environment, shop, "run", "--model", str(WEIGHTS), "--limit-users", "4")
    # Twelve events seal one partition of ten.
    assert (first["events"], first["partitions"]) == (72, 6)
    assert first["calls_by_kind"]["user_summary"] == 4
    assert first["tokens_out"] > first["calls"]
    assert first["rows_published"] == first["calls"]

    second = run_command(prefect_environment, shop, "run", "--model", str(WEIGHTS), "--limit-users", "4")
    assert (second["calls"], second["rows_published"]) == (0, 0)
    status = run_command(prefect_environment, shop, "status")
    assert status["knowledge"] == first["calls"]
    assert status["tokens_out"] == first["tokens_out"]
    assert status["current_snapshot"] == first["snapshot"]
    with duckdb.connect() as con:
        con.execute(f"ATTACH '{shop}/warehouse/features.duckdb' AS features (READ_ONLY)")
        [(rows,)] = con.execute("SELECT count(*) FROM features.lorestream.user_features_latest").fetchall()
    assert rows == 4


def prefect(environment: dict[str, str], *arguments: str) -> str:
    return output_of(environment, ROOT, "prefect", *arguments)


def run_deployment(environment: dict[str, str], name: str, *parameters: str) -> None:
    """Raises AssertionError unless the run ends as completed."""
    prefect(environment, "deployment", "run", name, *parameters, "--watch", "--watch-interval", "1")


def test_refresh_backfill_and_compact_deploy_and_run(tmp_path: Path, prefect_environment: dict[str, str]) -> None:
    config = open_shop(tmp_path, users=2)
    root = load_config(config).root
    prepare_warehouse(root)
    environment = {
        **prefect_environment,
        "LORESTREAM_HOME": str(ROOT),
        "LORESTREAM_CONFIG": str(config),
        # By default the worker looks every 10 seconds, and vLLM starts a process of its own, as in the test above.
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    prefect(environment, "work-pool", "create", "lorestream", "--type", "process")
    prefect(environment, "--no-prompt", "deploy", "--all")
    with (tmp_path / "worker.log").open("w") as log:
        worker = subprocess.Popen(
            [str(BIN / "prefect"), "worker", "start", "--pool", "lorestream"],
            env=environment,
            cwd=tmp_path,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        try:
            # The shop opens on 2025-01-01; partitions are sealed in hours 1 (three items) and 4 of it.
            hours = ["start=2025-01-01T00:00:00Z", "end=2025-01-01T03:00:00Z"]
            run_deployment(environment, "backfill/backfill", "-p", hours[0], "-p", hours[1])
            assert warehouse_status(root)["knowledge"] == 2 + 3, (tmp_path / "worker.log").read_text()
            run_deployment(environment, "refresh/refresh")
            run_deployment(environment, "compact/compact")
        finally:
            # Not by SIGTERM, which the worker passes on to itself as a SIGINT: a shell's background jobs ignore those.
            worker.kill()
            worker.wait()
    status = warehouse_status(root)
    assert (status["knowledge"], status["requests_pending"]) == (4 + 5, 0)
    assert [commit.kind for commit in Ledger(root).commits()].count("generate") == 2
    published = lorestream.open(root)
    assert published.table("user_features").to_arrow().num_rows == 4
    # Backfill and refresh each added a file; merged, they are one.
    assert published.snapshot.lineage["compacted_from"] == published.snapshot.parent
    assert len(published.snapshot.tables["user_features"]) == 1
