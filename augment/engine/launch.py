"""Starting vLLM quietly, and finding out why it did not start.

vLLM's processes write their log to a file of ours instead of the terminal: what a person needs of it is the cause of a
failure, and that stands in the engine's process, not in the exception that reaches this one.
"""

import json
import logging
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import connection
from pathlib import Path
from threading import Thread
from typing import Any

from augment.engine.config import EngineConfig
from augment.speculation.config import SpeculationConfig, check_vllm

# Read by vLLM, torch and OpenMP when they are loaded, here and in the engine's processes. What the user has set wins.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    # vLLM's own choice keeps a core for its scheduler and pins the rest: half of a two-core machine would idle, and
    # on a shared one a pinned thread waits for whoever else is on its core.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    # OpenMP threads that spin at barriers are a little faster on an idle machine and 10-25 times slower on a busy one.
    "OMP_WAIT_POLICY": "PASSIVE",
    # vLLM's processes import torch again; its deprecations are not the reader's business.
    "PYTHONWARNINGS": "ignore::FutureWarning",
}

log = logging.getLogger("lorestream.engine")

_MULTIPROCESSING = "VLLM_ENABLE_V1_MULTIPROCESSING"
_STOP_TIMEOUT_S = 30.0
_LAST_MOMENT_S = 1.0

_CAUSE = re.compile(r"\b(\w*(?:Error|Exception)): (.+)")


def start_vllm(
    config: EngineConfig,
    speculation: SpeculationConfig,
    path: Path,
    log_file: Path,
    further: Mapping[str, object] | None = None,
) -> Any:
    """A running vLLM LLMEngine for the model folder `path`; its processes log to `log_file`.

    With speculation it has our proposer and our worker's methods, which draft nothing before they are installed. It has
    none, and a warning says so, where vLLM's own verification is wrong: when sampling on a CPU.
    `further` arguments of vLLM's EngineArgs are for benchmarks, which start vLLM's own speculation the same way.
    Sets the variables of `_ENVIRONMENT`, unless they are set already. Raises whatever vLLM raises.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("VLLM_ENGINE_READY_TIMEOUT_S", str(config.ready_timeout_s))
    own_process = os.environ.get(_MULTIPROCESSING, "1") == "1"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        from vllm import EngineArgs, LLMEngine, __version__
        from vllm.platforms import current_platform

        on_cpu = current_platform.is_cpu()
        given = _engine_args(config, path, log_file, on_cpu)
        if speculation.mode != "off":
            check_vllm(__version__)
            # vLLM 0.32 expands the requests' temperatures to their draft tokens by a CPU kernel for integers, and
            # divides the scores by what happens to stand in memory.
            if on_cpu and config.temperature > 0:
                log.warning(
                    "temperature = %s: vLLM cannot verify drafts on a CPU then; drafting is off", config.temperature
                )
            else:
                given |= _speculation_args(speculation)
        args = EngineArgs(**given | dict(further or {}))
        # On CPU vLLM puts scheduler and model into two processes, so that it can pin the threads of the second. They
        # are not pinned here, so one process does: it starts a third sooner and saves a hop in every step.
        shield_llvmlite()
        with _environment({_MULTIPROCESSING: "0"} if on_cpu else {}):
            engine = LLMEngine.from_engine_args(args, enable_multiprocessing=own_process)
    if own_process:
        _wake_when_killed(engine.engine_core)
        engine.lorestream_guard = end_with_us([p.pid for p in engine.engine_core.resources.engine_manager.processes])
    return engine


def stop_vllm(engine: Any) -> None:
    """Ends the engine's process, or frees it where it runs inside this one."""
    from vllm.distributed import cleanup_dist_env_and_memory
    from vllm.v1.engine.core_client import InprocClient

    # vLLM kills after 5 seconds by default, and what is killed leaves shared memory behind.
    engine.engine_core.shutdown(timeout=_STOP_TIMEOUT_S)
    if isinstance(engine.engine_core, InprocClient):
        cleanup_dist_env_and_memory()
    else:
        dismiss(engine.lorestream_guard)
    # Reaps what has ended, so that no zombie keeps the engine's name in the process table.
    multiprocessing.active_children()


def killed_by(engine: Any) -> str | None:
    """In words, the signal that ended the engine's own process; None for any other end, or none."""
    manager = getattr(getattr(engine.engine_core, "resources", None), "engine_manager", None)
    for process in manager.processes if manager is not None else ():
        # Its pipes close a moment before the system can say how it ended.
        process.join(_LAST_MOMENT_S)
        code = process.exitcode
        if code is not None and code < 0:
            ended = f"its process was ended by {signal.Signals(-code).name}"
            return f"{ended}, most often for want of memory" if code == -signal.SIGKILL else ended
    return None


def _wake_when_killed(client: Any) -> None:
    """Let a waiting `step` fail once the engine's process is gone.

    vLLM 0.32 learns of a death only from the dying process; after a kill, as by the system when memory runs out, its
    blocking client would wait for ever.
    """
    sentinels, outputs = client.resources.engine_manager.sentinels(), client.outputs_queue

    def wait() -> None:
        connection.wait(sentinels)
        outputs.put(RuntimeError("the engine's process has ended"))

    Thread(target=wait, name="lorestream-engine-watch", daemon=True).start()


def end_with_us(processes: Sequence[int]) -> subprocess.Popen[bytes]:
    """A guard that kills `processes` once this one is gone, however it went; `dismiss` it when they have ended.

    vLLM's engine outlives a killed parent with all its memory. The guard waits for the end of its input, which the
    system closes; a session of its own keeps it from the terminal's Ctrl-C.
    """
    return subprocess.Popen(
        ["/bin/sh", "-c", 'read -r _ || kill -9 "$@"', "lorestream-guard", *map(str, processes)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def dismiss(guard: subprocess.Popen[bytes]) -> None:
    """End a guard that has nothing to guard any more."""
    guard.communicate(b"\n")


def shield_llvmlite() -> None:
    """Let vLLM start in a process that has loaded numba, as a pool or an earlier engine does.

    A worker of vLLM 0.32 looks for Triton kernels in the `__dict__` of every object of every loaded module. llvmlite's
    library object has none and answers any name with a function of that name; here it gets an empty one.
    """
    ffi = sys.modules.get("llvmlite.binding.ffi")
    if ffi is not None:
        ffi.lib._fntab.setdefault("__dict__", {})


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Environment variables that hold inside the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def cause_of(error: Exception, log_file: Path | None) -> str:
    """The first error in the log of vLLM's processes, in one line; the exception's own words where there is none."""
    words = f"{type(error).__name__}: {error}".strip()
    if log_file is not None and log_file.is_file():
        for line in log_file.read_text(encoding="utf-8", errors="replace").splitlines():
            match = _CAUSE.search(line)
            if match:
                words = match.group()
                break
    return " ".join(words.split())[:600]


def _engine_args(config: EngineConfig, path: Path, log_file: Path, on_cpu: bool) -> dict[str, Any]:
    """Arguments of vLLM's EngineArgs for a config."""
    from vllm.config.logging import LoggingConfig

    args: dict[str, Any] = {
        "model": str(path),
        "dtype": config.dtype,
        # -1: the model's context, or as much of it as the cache holds; a fixed 128k context would not even start.
        "max_model_len": config.max_model_len or -1,
        "max_num_seqs": config.max_concurrent,
        "tensor_parallel_size": config.tensor_parallel_size,
        "enforce_eager": on_cpu if config.enforce_eager is None else config.enforce_eager,
        "seed": config.seed,
        "disable_log_stats": True,
        "use_tqdm_on_load": False,
        "logging_config": LoggingConfig(pylogging_config_file=str(_write_log_config(log_file))),
    }
    if on_cpu:
        args["kv_cache_memory_bytes"] = int(config.kv_cache_gib * (1 << 30))
    else:
        args["gpu_memory_utilization"] = config.gpu_memory_utilization
    return args


def _speculation_args(speculation: SpeculationConfig) -> dict[str, Any]:
    return {
        "speculative_config": {
            "method": "custom_class",
            "model": "augment.speculation.proposer.PoolProposer",
            "num_speculative_tokens": speculation.max_draft_tokens,
        },
        "worker_extension_cls": "augment.speculation.worker.SpeculationWorker",
    }


def _write_log_config(log_file: Path) -> Path:
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"plain": {"format": "%(asctime)s %(levelname)s %(process)d %(name)s %(message)s"}},
        "handlers": {"file": {"class": "logging.FileHandler", "formatter": "plain", "filename": str(log_file)}},
        "loggers": {"vllm": {"handlers": ["file"], "level": "INFO", "propagate": False}},
    }
    path = log_file.with_suffix(".json")
    path.write_text(json.dumps(config), encoding="utf-8")
    return path
