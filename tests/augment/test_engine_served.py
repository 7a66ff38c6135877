"""The engine for OpenAI-compatible servers against the real one: vLLM with the pocket LLM on loopback.

Minutes rather than seconds, as each start of the server takes half of one.
"""

from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from augment.engine.base import Completion, Request
from augment.engine.config import OpenAIConfig
from augment.engine.openai import OpenAIEngine, ServerRefused
from augment.engine.vllm import PROMPT_TOO_LONG, VllmEngine
from tests.augment.asked import film_prompts
from tests.augment.vllm_server import KEY, START_TIMEOUT_S, VllmServer

pytestmark = [pytest.mark.engine, pytest.mark.slow]


@pytest.fixture(scope="module")
def server(pocket_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    server = VllmServer(pocket_llm, tmp_path_factory.mktemp("served") / "vllm.log")
    try:
        server.start()
        yield server
    finally:
        server.kill()


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def served(server: VllmServer, **options: object) -> OpenAIEngine:
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


REQUESTS = [Request(f"key-{i}", prompt) for i, prompt in enumerate(film_prompts(20))]


def by_key(completions: list[Completion]) -> dict[str, tuple[str, str, int, int]]:
    """What a completion says, by its key; every key once."""
    assert len({c.request_key for c in completions}) == len(completions)
    return {c.request_key: (c.text, c.finish_reason, c.tokens_in, c.tokens_out) for c in completions}


@pytest.fixture(scope="module")
def expected(engine: VllmEngine) -> dict[str, tuple[str, str, int, int]]:
    return by_key(list(engine.generate(REQUESTS)))


def test_a_served_model_says_what_it_says_in_this_process(
    server: VllmServer, expected: dict[str, tuple[str, str, int, int]]
) -> None:
    assert by_key(list(served(server).generate(REQUESTS))) == expected


def test_a_served_model_takes_plain_prompts_and_a_second_attempt(server: VllmServer) -> None:
    plain = served(server, chat=False, max_new_tokens=8)
    (first,) = plain.generate([Request("a", "A film")])
    (second,) = plain.generate([Request("a", "A film", attempt=1)])
    (again,) = plain.generate([Request("a", "A film", attempt=1)])
    assert 0 < first.tokens_out <= 8
    # It samples now, by a seed.
    assert second.text == again.text


def test_a_server_that_is_killed_and_started_again_answers_every_call_once(
    server: VllmServer, expected: dict[str, tuple[str, str, int, int]]
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


def test_what_the_server_refuses_is_understood(server: VllmServer, monkeypatch: pytest.MonkeyPatch) -> None:
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
