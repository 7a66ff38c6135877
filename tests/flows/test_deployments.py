"""The deployments of prefect.yaml, deployed to a local server and run by a local worker with the pocket LLM."""

import subprocess
from pathlib import Path

import pytest

import lorestream
from flows.config import load_config
from flows.setup import prepare_warehouse
from tests.flows.conftest import BIN, ROOT
from tests.flows.shop import open_shop
from warehouse.ledger import Ledger
from warehouse.status import warehouse_status

pytestmark = [pytest.mark.flow, pytest.mark.engine]


def prefect(environment: dict[str, str], *arguments: str) -> str:
    done = subprocess.run(
        [str(BIN / "prefect"), *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout


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
        # By default the worker looks every 10 seconds, and vLLM starts a process of its own, as in the end-to-end test.
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
