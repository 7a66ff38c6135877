"""The engine for OpenAI-compatible servers against a server with a script: what it sends, and how it takes answers.

What it does when calls fail is in `test_engine_openai_failures.py`; `test_engine_served.py` has the real server.
"""

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from augment.engine.base import Completion, Engine, Request
from augment.engine.config import EngineConfig, OpenAIConfig
from augment.engine.openai import OpenAIEngine, ServerRefused
from tests.augment.scripted_server import (
    EXPECTED,
    Reply,
    answer,
    config_of,
    engine_of,
    error,
    eventually,
    requests,
    scripted,
    texts,
    upper,
)
from warehouse.errors import ConfigError

KEY = "sk-secret-of-the-test"


@pytest.fixture(autouse=True)
def _no_proxy_and_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def test_every_request_gets_its_own_answer_once() -> None:
    with scripted() as server:
        engine: Engine = engine_of(server)
        assert texts(engine.generate(requests(12))) == EXPECTED
        assert list(engine.generate([])) == []
        engine.close()
    assert sorted(server.prompts) == sorted(f"prompt {i}" for i in range(12))
    assert server.most_at_once <= 4


def test_a_body_holds_what_the_sampling_says_and_no_more() -> None:
    greedy = {"chat": True, "max_new_tokens": 9, "temperature": 0.0}
    message = {"messages": [{"role": "user", "content": "prompt 0"}]}
    asked = {"model": "pocket", "max_tokens": 9, "temperature": 0.0, **message}
    extra = {"repetition_penalty": 1.1, "chat_template_kwargs": {"enable_thinking": False}}
    warm = {"temperature": 0.8, "top_p": 0.9, "seed": 5}
    cases: list[tuple[dict[str, Any], int, dict[str, Any], dict[str, Any]]] = [
        ({"seed": 7}, 0, greedy, asked),
        (warm, 0, {**greedy, **warm}, {**asked, **warm}),
        (warm, 2, {**greedy, **warm}, {**asked, "temperature": 0.4, "top_p": 0.9, "seed": 7}),
        ({}, 1, greedy, {**asked, "temperature": 0.7, "top_p": 1.0, "seed": 1}),
        ({"extra_body": extra}, 0, {**greedy, "extra_body": extra}, {**asked, **extra}),
        (
            {"max_tokens_field": "max_completion_tokens"},
            0,
            greedy,
            {"model": "pocket", "max_completion_tokens": 9, "temperature": 0.0, **message},
        ),
        (
            {"chat": False},
            0,
            {**greedy, "chat": False},
            {"model": "pocket", "max_tokens": 9, "temperature": 0.0, "prompt": "prompt 0"},
        ),
    ]
    for options, attempt, sampling, body in cases:
        with scripted() as server:
            engine = engine_of(server, **options)
            list(engine.generate([Request("key-0", "prompt 0", attempt=attempt)]))
            assert engine.sampling == sampling
            ((_, path, _, sent),) = server.calls
            assert sent == body
            assert path == ("/v1/completions" if options.get("chat") is False else "/v1/chat/completions")


def test_what_names_the_engine_is_not_how_it_is_reached() -> None:
    config = OpenAIConfig(backend="openai", base_url="http://a/v1", model="org/m")
    other = OpenAIConfig(
        backend="openai", base_url="https://b:81/v1/", model="org/m", seed=3, max_concurrent=2, api_key_env="OTHER_KEY"
    )
    assert other.base_url == "https://b:81/v1"
    identities = {
        (e.model, e.revision, str(e.sampling), e.verification) for e in (OpenAIEngine(config), OpenAIEngine(other))
    }
    assert identities == {("org/m", "served", str(OpenAIEngine(config).sampling), "strict")}
    assert OpenAIEngine(config.model_copy(update={"revision": "2026-11"})).revision == "2026-11"


def test_the_key_goes_into_the_header_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    def echo(prompt: str, asked: int) -> Reply:
        return error(500, f"bad header Bearer {KEY}") if asked == 0 else error(401, f"what is {KEY}?")

    monkeypatch.setenv("TEAM_KEY", f" {KEY}\n")
    with scripted(echo) as server:
        engine = engine_of(server, api_key_env="TEAM_KEY")
        with pytest.raises(ServerRefused, match=r"`TEAM_KEY` is set, but not accepted") as caught:
            list(engine.generate(requests(1)))
        assert [headers["Authorization"] for _, _, headers, _ in server.calls] == [f"Bearer {KEY}"] * 2
    assert "bad header Bearer [key]" in caplog.text
    shown = [caplog.text, str(caught.value), repr(engine.sampling), engine.config.model_dump_json()]
    assert not [words for words in shown if KEY in words]
    with scripted() as server:
        list(engine_of(server).generate(requests(1)))
        assert "Authorization" not in server.calls[0][2]


def test_a_variable_that_holds_no_key_is_named_and_not_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "my key\nX-Other: 1")
    with scripted() as server, pytest.raises(ConfigError, match="`OPENAI_API_KEY` holds no API key") as caught:
        list(engine_of(server).generate(requests(1)))
    assert "my key" not in str(caught.value)


def test_tokens_are_the_servers_count_and_an_estimate_where_it_has_none() -> None:
    def script(prompt: str, _asked: int) -> Reply:
        return answer("twelve bytes", "length", (11, 9) if prompt == "prompt 0" else None)

    progress = []
    with scripted(script) as server:
        engine = OpenAIEngine(config_of(server, max_concurrent=1), progress.append)
        first, second = engine.generate(requests(2))
    assert first == Completion("key-0", "twelve bytes", "length", 11, 9)
    assert second == Completion("key-1", "twelve bytes", "length", 2, 3)
    assert (engine.stats.tokens_in, engine.stats.tokens_out, engine.stats.finished) == (13, 12, 2)
    assert [stats.finished for stats in progress] == [1, 2]
    assert engine.generating_seconds > 0


def test_requests_are_pulled_as_slots_become_free_and_that_many_run_at_once() -> None:
    pulled = 0

    def source() -> Iterator[Request]:
        nonlocal pulled
        for request in requests(40):
            pulled += 1
            yield request

    def script(prompt: str, asked: int) -> Reply:
        return Reply(body=upper(prompt, asked).body, delay_s=0.02)

    with scripted(script) as server:
        completions = engine_of(server, max_concurrent=3).generate(source())
        next(completions)
        assert pulled == 6
        next(completions)
        assert pulled == 7
        assert len(list(completions)) == 38
    assert server.most_at_once == 3


def test_closing_the_iterator_early_gives_up_what_is_running() -> None:
    def script(prompt: str, asked: int) -> Reply:
        return upper(prompt, asked) if prompt == "prompt 0" else Reply(hold=True)

    with scripted(script) as server:
        engine = engine_of(server)
        completions = engine.generate(requests(12))
        assert next(completions).request_key == "key-0"
        assert eventually(lambda: len(server.calls) == 5)
        completions.close()  # type: ignore[attr-defined]
        assert eventually(lambda: server.abandoned == 4)
        assert len(server.calls) == 5
        server.script = upper
        assert texts(engine.generate(requests(12))) == EXPECTED


def test_an_error_in_the_source_of_requests_ends_the_run() -> None:
    def source() -> Iterator[Request]:
        yield from requests(3)
        raise RuntimeError("the table is gone")

    with scripted() as server, pytest.raises(RuntimeError, match="the table is gone"):
        list(engine_of(server).generate(source()))


def test_the_pace_spreads_calls_over_time() -> None:
    with scripted() as server:
        engine = engine_of(server, requests_per_minute=600)
        assert len(texts(engine.generate(requests(5)))) == 5
        at = [when for when, *_ in server.calls]
    # 0.1 s apart when sent; a call may take longer to arrive than the next.
    assert at[-1] - at[0] >= 0.3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"base_url": "127.0.0.1:8000"}, "not the address of a server"),
        ({"base_url": "ftp://host/v1"}, "not the address of a server"),
        ({"base_url": "https://me:pw@host/v1"}, "holds more than an address"),
        ({"base_url": "https://host/v1?key=1"}, "holds more than an address"),
        ({"api_key_env": "sk-123"}, "api_key_env"),
        ({"extra_body": {"n": 3, "stream": True}}, "extra_body sets n, stream"),
        ({"top_p": 0.5}, "no effect at temperature 0"),
        ({"kv_cache_gib": 1}, "kv_cache_gib"),
        ({"backend": "vllm"}, "backend"),
        ({"max_concurrent": 0}, "max_concurrent"),
    ],
)
def test_a_wrong_combination_fails_when_the_config_is_built(options: dict[str, object], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        OpenAIConfig.model_validate({"backend": "openai", "base_url": "http://host/v1", "model": "m", **options})


def test_the_backend_of_a_local_engine_is_said_and_changes_nothing() -> None:
    assert EngineConfig(model="m") == EngineConfig(model="m", backend="vllm")
    with pytest.raises(ValidationError, match="backend"):
        EngineConfig.model_validate({"model": "m", "backend": "openai"})
