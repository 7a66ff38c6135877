"""A whole run whose texts come from a real server that dies in the middle, against a run in this process."""

from pathlib import Path
from threading import Thread

import pytest

from flows import asking, grouping, pools, stages
from flows.config import load_config
from flows.progress import StageProgress
from flows.run import Run
from flows.setup import prepare_warehouse
from tests.augment.vllm_server import KEY, START_TIMEOUT_S, VllmServer
from tests.flows.shop import SILENT, WEIGHTS, open_shop
from warehouse.ledger import Ledger
from warehouse.schemas import KNOWLEDGE, REQUESTS
from warehouse.store import read_table

pytestmark = [pytest.mark.engine, pytest.mark.slow]

SERVED = """
[engine]
backend = "openai"
base_url = "{url}"
model = "pocket"
max_new_tokens = 48
max_concurrent = 4
give_up_after_s = {patience}
longest_retry_s = 2.0
[quality]
retry = false
[prompts]
show_time = false
"""
LOCAL = '[engine]\nmodel = "{model}"\nmax_new_tokens = 48\nkv_cache_gib = 0.25\ndtype = "bfloat16"\n'


class Misfortune(StageProgress):
    """Kills the server after the fifth text, and starts it again."""

    def __init__(self, server: VllmServer) -> None:
        super().__init__(None)
        self._server, self.struck = server, False
        self._again = Thread(target=server.start)

    def update(self, stage: str, done: int, total: int, rate: float, unit: str) -> None:
        if stage == "generate" and done >= 5 and not self.struck:
            self.struck = True
            self._server.kill()
            self._again.start()


def run(config_file: Path, progress: StageProgress) -> Run:
    config = load_config(config_file)
    prepare_warehouse(config.root)
    run = Run(config, config.root)
    try:
        stages.ingest(run)
        stages.partition(run)
        grouping.form_groups(run)
        asking.ask(run, progress, asking.plan, pools.choose_pool, asking.call_engine)
    finally:
        run.engine.close()
    return run


def texts(root: Path) -> list[tuple[object, ...]]:
    """What was asked about whom and what came back, every answer once."""
    knowledge = read_table(sorted((root / "knowledge").glob("*.parquet")), KNOWLEDGE).to_pylist()
    answers = {row["request_key"]: row for row in knowledge}
    assert len(answers) == len(knowledge)
    rows = read_table(Ledger(root).files("requests"), REQUESTS).to_pylist()
    return sorted(
        (r["kind"], r["entity_id"], r["partition_no"] or 0, answers[r["request_key"]]["text"],
         answers[r["request_key"]]["status"])
        for r in rows
    )  # fmt: skip


def test_a_served_run_survives_its_server_and_equals_a_run_in_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    (tmp_path / "served").mkdir()
    (tmp_path / "local").mkdir()
    server = VllmServer(WEIGHTS, tmp_path / "server.log")
    try:
        server.start()
        shop = open_shop(tmp_path / "served")
        engineless = shop.read_text().split("[engine]")[0] + "[adapter]\nout_dim = 4\n"
        shop.write_text(engineless + SERVED.format(url=server.url, patience=START_TIMEOUT_S))
        misfortune = Misfortune(server)
        served = run(shop, misfortune)
        assert misfortune.struck
        assert (served.report.calls, served.report.calls_by_kind) == (13, {"user_summary": 8, "item_facts": 5})
    finally:
        server.kill()
    local = open_shop(tmp_path / "local")
    local.write_text(engineless + LOCAL.format(model=WEIGHTS) + SERVED.split("longest_retry_s = 2.0\n")[1])
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    run(local, SILENT)
    assert texts(tmp_path / "served" / "warehouse") == texts(tmp_path / "local" / "warehouse")
    # Nothing is left to ask.
    assert run(shop, SILENT).report.calls == 0
