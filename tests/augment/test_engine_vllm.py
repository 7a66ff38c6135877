"""Real vLLM on the pocket LLM: streaming, counts, prompts, errors, and that closing leaves nothing behind.

What the pocket LLM says does not matter here; that it is called rightly does.
"""

import json
import multiprocessing
import os
import queue
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from augment.engine.base import Engine, Request
from augment.engine.errors import EngineFailed
from augment.engine.launch import _wake_when_killed, cause_of, killed_by
from augment.engine.vllm import PROMPT_TOO_LONG, EngineConfig, EngineStats, VllmEngine
from prompts.hygiene import find_template_token
from prompts.render import EmptyPrompt, PromptOptions, PromptWriter
from prompts.scenario import load_scenario
from tests.augment.asked import film_prompts
from tests.augment.processes import last_line_of
from tests.prompts.injections import INJECTIONS, RAW_TOKENS
from warehouse.errors import ConfigError, InputError

ROOT = Path(__file__).parents[2]

on_vllm = pytest.mark.engine


def requests(n: int) -> list[Request]:
    return [Request(f"key-{i}", prompt) for i, prompt in enumerate(film_prompts(n))]


@on_vllm
def test_texts_leave_before_the_last_request_is_pulled(engine: VllmEngine) -> None:
    pulled, pulled_at_first, finished = 0, 0, []

    def source() -> Iterator[Request]:
        nonlocal pulled
        for request in requests(24):
            pulled += 1
            yield request

    for completion in engine.generate(source()):
        pulled_at_first = pulled_at_first or pulled
        finished.append(completion.request_key)
    assert pulled_at_first < 24
    assert pulled_at_first == 2 * engine.config.max_concurrent
    assert sorted(finished) == sorted(r.request_key for r in requests(24))


@on_vllm
def test_tokens_are_counted_as_the_models_tokenizer_does(engine: VllmEngine) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(engine.info.path, local_files_only=True)
    before = engine.stats
    (request,) = requests(1)
    (completion,) = engine.generate([request])
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": request.prompt}], tokenize=False, add_generation_prompt=True
    )
    assert completion.tokens_in == len(tokenizer.encode(text, add_special_tokens=False))
    # The end-of-turn token is counted and not shown.
    ended = completion.finish_reason == "stop"
    assert completion.tokens_out == len(tokenizer.encode(completion.text, add_special_tokens=False)) + ended
    assert 0 < completion.tokens_out <= engine.config.max_new_tokens
    assert engine.stats.finished == before.finished + 1
    assert engine.stats.tokens_in == before.tokens_in + completion.tokens_in
    assert engine.stats.tokens_out == before.tokens_out + completion.tokens_out
    assert engine.stats.generating_s > before.generating_s


@on_vllm
def test_greedy_text_is_the_same_again_and_in_other_company(engine: VllmEngine) -> None:
    alone = [c.text for r in requests(3) for c in engine.generate([r])]
    together = {c.request_key: c.text for c in engine.generate(requests(12))}
    assert alone == [together[f"key-{i}"] for i in range(3)]


@on_vllm
def test_two_requests_with_one_key_get_a_completion_each(engine: VllmEngine) -> None:
    completions = list(engine.generate([Request("same", "Tell me about a film."), Request("same", "And a book?")]))
    assert [c.request_key for c in completions] == ["same", "same"]


@on_vllm
def test_a_prompt_too_long_is_reported_and_stops_nothing(engine: VllmEngine) -> None:
    before = engine.stats.too_long
    long = Request("long", "zebra quartz " * 600)
    completions = {c.request_key: c for c in engine.generate([*requests(2), long, *requests(4)[2:]])}
    assert len(completions) == 5
    refused = completions["long"]
    assert (refused.finish_reason, refused.text, refused.tokens_out) == (PROMPT_TOO_LONG, "", 0)
    assert engine.config.max_model_len is not None
    assert refused.tokens_in > engine.config.max_model_len - engine.config.max_new_tokens
    assert engine.stats.too_long == before + 1
    assert all(c.finish_reason in ("stop", "length") for key, c in completions.items() if key != "long")


@on_vllm
def test_closing_the_iterator_early_leaves_a_usable_engine(engine: VllmEngine) -> None:
    iterator = iter(engine.generate(requests(12)))
    next(iterator)
    iterator.close()  # type: ignore[attr-defined]
    assert {c.request_key for c in engine.generate(requests(3))} == {"key-0", "key-1", "key-2"}


def test_the_engine_speaks_the_interface_and_is_built_without_loading() -> None:
    engine: Engine = VllmEngine(EngineConfig(model=str(ROOT / "demo" / "weights")))
    assert engine.model == "weights"
    assert len(engine.revision) == 32
    assert list(engine.generate([])) == []
    assert isinstance(engine, VllmEngine)
    assert engine.stats == EngineStats()
    engine.close()


def test_sampling_names_what_changes_a_text_and_nothing_else() -> None:
    model = str(ROOT / "demo" / "weights")

    def sampling(**options: object) -> dict[str, object]:
        return dict(VllmEngine(EngineConfig.model_validate({"model": model, **options})).sampling)

    greedy = {"chat": True, "max_new_tokens": 512, "repetition_penalty": 1.0, "temperature": 0.0}
    assert sampling() == greedy
    assert sampling(chat=True, seed=7, max_concurrent=3, dtype="float32", kv_cache_gib=1, max_model_len=600) == greedy
    assert sampling(chat=False) == {**greedy, "chat": False}
    assert sampling(temperature=0.7) == {**greedy, "temperature": 0.7, "seed": 0, "top_p": 1.0}
    assert sampling(chat_template_kwargs={"enable_thinking": False}) != greedy


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_p": 0.9}, r"top_p = 0\.9 has no effect at temperature 0"),
        ({"max_model_len": 256}, "max_new_tokens = 512 leaves no room for a prompt in max_model_len = 256"),
        ({"chat": False, "chat_template_kwargs": {"a": 1}}, "chat = false uses no template"),
        ({"temprature": 0.5}, "temprature"),
        ({"max_concurrent": 0}, "max_concurrent"),
    ],
)
def test_a_wrong_combination_fails_when_the_config_is_built(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        EngineConfig.model_validate({"model": "m", **options})


def test_a_model_that_does_not_exist_is_a_usage_error() -> None:
    with pytest.raises(InputError, match="/no/such/model") as caught:
        VllmEngine(EngineConfig(model="/no/such/model"))
    assert caught.value.exit_code == 2


def test_a_model_without_template_or_with_a_short_context_is_refused_when_built(tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": 512}))
    (folder / "tokenizer.json").write_text('{"model": {}, "added_tokens": []}')
    (folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ConfigError, match="`plain` has no chat template"):
        VllmEngine(EngineConfig(model=str(folder), chat=True))
    with pytest.raises(ConfigError, match="the context of `plain` is 512 tokens"):
        VllmEngine(EngineConfig(model=str(folder)))
    assert VllmEngine(EngineConfig(model=str(folder), max_new_tokens=64)).sampling["chat"] is False


@on_vllm
def test_an_engine_that_cannot_start_says_why_and_what_to_do(engine: VllmEngine, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(ROOT / "demo" / "weights", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["NobodyKnowsForCausalLM"]}))
    odd = VllmEngine(EngineConfig(model=str(folder)))
    with pytest.raises(EngineFailed, match=r"`odd` could not start: .*NobodyKnowsForCausalLM.*log: /") as caught:
        list(odd.generate(requests(1)))
    odd.close()
    log = Path(str(caught.value).rsplit("log: ", 1)[1])
    assert log.is_file()
    shutil.rmtree(log.parent)


def test_the_cause_of_a_failure_is_found_in_the_engines_log(tmp_path: Path) -> None:
    log = tmp_path / "vllm.log"
    log.write_text(
        "2026 ERROR EngineCore failed to start.\nTraceback (most recent call last):\n"
        "ValueError: Available memory is less than requested\nRuntimeError: WorkerProc initialization failed\n"
    )
    wrapped = RuntimeError("Engine core initialization failed. See root cause above.")
    assert cause_of(wrapped, log) == "ValueError: Available memory is less than requested"
    assert cause_of(wrapped, None) == "RuntimeError: Engine core initialization failed. See root cause above."


def test_the_death_of_the_engines_process_wakes_who_waits_for_it() -> None:
    """After a kill vLLM's own client would wait for ever."""
    process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(600,))
    process.start()
    manager = SimpleNamespace(processes=[process], sentinels=lambda: [process.sentinel])
    client = SimpleNamespace(resources=SimpleNamespace(engine_manager=manager), outputs_queue=queue.Queue())
    engine = SimpleNamespace(engine_core=client)
    _wake_when_killed(client)
    assert killed_by(engine) is None
    process.kill()
    assert isinstance(client.outputs_queue.get(timeout=60), RuntimeError)
    assert killed_by(engine) == "its process was ended by SIGKILL, most often for want of memory"


SCRIPT = """
import json, os, sys

import psutil

from augment.engine.base import Request
from augment.engine.errors import EngineFailed
from augment.engine.vllm import EngineConfig, VllmEngine


def children():
    return sorted(p.name() for p in psutil.Process().children(recursive=True) if p.name().startswith("VLLM"))


def main():
    config = EngineConfig(model=sys.argv[1], max_new_tokens=24, max_concurrent=2, kv_cache_gib=0.25, chat=False)
    engine = VllmEngine(config)
    completions = list(engine.generate(Request(f"key-{i}", f"Film number {i}.") for i in range(6)))
    running = children()
    log_folder = engine._log_folder
    engine.close()
    print(json.dumps({
        "keys": sorted(c.request_key for c in completions),
        "tokens": [[c.tokens_in, c.tokens_out] for c in completions],
        "running": running,
        "left": children(),
        "log_left": log_folder.exists(),
        "torch_threads_patched": "skip" in sys.modules["torch"].set_num_threads.__qualname__,
    }))


if __name__ == "__main__":
    main()
"""


@on_vllm
@pytest.mark.slow
def test_by_default_vllm_runs_in_a_process_of_its_own_and_closing_ends_it(tmp_path: Path) -> None:
    seen, errors = last_line_of(SCRIPT, tmp_path, str(ROOT / "demo" / "weights"))
    assert seen["keys"] == [f"key-{i}" for i in range(6)]
    assert all(0 < tokens_out <= 24 for _, tokens_out in seen["tokens"])
    # chat = false: the prompt as it stands, without the template around it.
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "demo" / "weights", local_files_only=True)
    plain = {len(tokenizer.encode(f"Film number {i}.")) for i in range(6)}
    assert {tokens_in for tokens_in, _ in seen["tokens"]} == plain
    assert seen["running"], "vLLM should have had a process of its own"
    assert seen["left"] == []
    assert not seen["log_left"]
    assert not seen["torch_threads_patched"]
    # vLLM's log goes to a file; a traceback or a warning of it on the terminal is noise.
    assert "WARNING" not in errors
    assert "Traceback" not in errors


@on_vllm
def test_no_hostile_title_opens_a_turn_or_gives_orders(engine: VllmEngine) -> None:
    """At least 40 strings as titles: no prompt holds a special token, no answer a template's or the order's word."""
    writer = PromptWriter(load_scenario("movies"), engine.info.special_tokens, PromptOptions(show_time=False))
    asked: dict[str, str] = {}
    for name, text in INJECTIONS.items():
        try:
            asked[name] = writer.item_facts(text)
        except EmptyPrompt:
            continue
    assert len(asked) >= 40
    marks = (*RAW_TOKENS, *engine.info.special_tokens)
    assert [name for name, prompt in asked.items() if any(mark in prompt for mark in marks)] == []
    answers = {c.request_key: c for c in engine.generate([Request(name, prompt) for name, prompt in asked.items()])}
    assert answers.keys() == asked.keys()
    too_long = [name for name, c in answers.items() if c.finish_reason not in ("stop", "length")]
    assert len(asked) - len(too_long) >= 40
    leaked = [name for name, c in answers.items() if find_template_token(c.text, engine.info.special_tokens)]
    assert leaked == []
    assert [name for name, c in answers.items() if "hacked" in c.text.lower()] == []


def test_the_engine_does_not_outlive_a_killed_run() -> None:
    script = (
        "import os, signal, subprocess, sys\n"
        "from augment.engine.launch import dismiss, end_with_us\n"
        "spared, doomed = (subprocess.Popen(['sleep', '600'], stdout=subprocess.DEVNULL) for _ in range(2))\n"
        "dismiss(end_with_us([spared.pid]))\n"
        "guard = end_with_us([doomed.pid])\n"
        "print(spared.pid, doomed.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=60)
    spared, doomed = map(int, done.stdout.split())
    try:
        deadline = time.monotonic() + 30
        while _is_running(doomed):
            assert time.monotonic() < deadline, "the guard did not kill what it guarded"
            time.sleep(0.05)
        assert _is_running(spared)
    finally:
        os.kill(spared, signal.SIGKILL)


def _is_running(process: int) -> bool:
    """Whether it runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
