"""What the engine for OpenAI-compatible servers does about every way in which a call may fail: against a server with a
script."""

import pickle
import random
import time
from collections import Counter
from threading import Thread

import anyio
import pytest

from augment.engine.base import Completion, Request
from augment.engine.errors import EngineFailed
from augment.engine.openai import CONTENT_FILTERED, OpenAIEngine, ServerRefused
from augment.engine.server import Connection, Unanswered
from augment.engine.vllm import PROMPT_TOO_LONG
from tests.augment.scripted_server import (
    EXPECTED,
    Reply,
    answer,
    config_of,
    engine_of,
    error,
    eventually,
    first_fails,
    requests,
    scripted,
    texts,
    upper,
)


@pytest.fixture(autouse=True)
def _no_proxy_and_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.mark.parametrize(
    "reply",
    [
        error(429, "slow down", headers={"Retry-After": "0"}),
        error(429, "slow down", headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
        error(429, "slow down", headers={"Retry-After": "soon"}),
        error(408, "timeout"),
        error(409, "conflict"),
        error(500, "oops"),
        Reply(502, "<html>Bad Gateway</html>"),
        Reply(503, ""),
        Reply(drop=True),
        Reply(hold=True),
        Reply(body='{"choices": [{"mess'),
        Reply(body={"choices": []}),
        Reply(body=[1, 2]),
        Reply(204, ""),
        answer("prompt half of it", finish_reason="abort"),
    ],
    ids=lambda reply: "drop" if reply.drop else "hold" if reply.hold else f"{reply.status}",
)
def test_what_fails_for_the_moment_is_tried_again(reply: Reply) -> None:
    with scripted(first_fails(reply)) as server:
        engine = engine_of(server, request_timeout_s=0.3 if reply.hold else 20)
        assert texts(engine.generate(requests(5))) == {f"key-{i}": f"PROMPT {i}" for i in range(5)}
    assert set(server.asked.values()) == {2}
    assert eventually(lambda: server.abandoned == (5 if reply.hold else 0))


def test_a_server_that_asks_to_wait_is_left_alone_by_every_call() -> None:
    """A call is refused with a wait of a second; the one after it, which was never refused, waits as well."""

    def script(prompt: str, asked: int) -> Reply:
        if prompt == "prompt 0" and asked == 0:
            return error(429, "slow down", headers={"Retry-After": "1"})
        # The third call starts when this one is answered, when the first was refused.
        return Reply(body=answer(prompt.upper()).body, delay_s=0.3 if prompt == "prompt 1" else 0.0)

    with scripted(script) as server:
        engine = engine_of(server, max_concurrent=2)
        assert set(texts(engine.generate(requests(3)))) == {"key-0", "key-1", "key-2"}
    at = {(prompt, server.prompts[:n].count(prompt)): server.calls[n][0] for n, prompt in enumerate(server.prompts)}
    assert at["prompt 0", 1] - at["prompt 0", 0] >= 1.0
    assert at["prompt 2", 0] - at["prompt 0", 0] >= 1.0


def test_a_wait_beyond_all_patience_is_not_waited_for() -> None:
    with scripted(lambda *_: error(429, "quota of the day", headers={"Retry-After": "86400"})) as server:
        with pytest.raises(EngineFailed, match=r"quota of the day, which asks to wait 86400 s") as caught:
            list(engine_of(server, max_concurrent=1).generate(requests(3)))
        assert caught.value.stage == "generate"
        assert server.asked["prompt 0"] == 1


def test_a_server_that_stays_away_ends_the_run_and_what_was_finished_is_kept() -> None:
    def script(prompt: str, _asked: int) -> Reply:
        return answer(prompt.upper()) if int(prompt.split()[1]) < 6 else error(503, "out of memory")

    with scripted(script) as server:
        engine = engine_of(server, give_up_after_s=0.2, max_concurrent=2)
        finished = []
        with pytest.raises(EngineFailed, match=r"gave no answer: HTTP 503: out of memory .*run again") as caught:
            finished.extend(engine.generate(requests(40)))
        assert sorted(c.request_key for c in finished) == [f"key-{i}" for i in range(6)]
        assert caught.value.exit_code == 1
        # Two calls find out; one more is sent where the first of them began to fail before the last answer.
        assert set(server.asked) <= {f"prompt {i}" for i in range(9)}
        # The same engine goes on once the server does.
        server.script = upper
        assert texts(engine.generate(requests(12))) == EXPECTED


def test_nobody_listening_is_named() -> None:
    with scripted() as server:
        pass
    with pytest.raises(EngineFailed, match=rf"`pocket` ended while generating: {server.url} gave no answer: Connect"):
        list(engine_of(server, give_up_after_s=0.1).generate(requests(3)))


def test_a_server_that_ends_and_is_started_again_loses_and_repeats_nothing() -> None:
    def script(prompt: str, _asked: int) -> Reply:
        # It ends with calls under way.
        return Reply(drop=True) if down else Reply(body=answer(prompt.upper()).body, delay_s=0.02)

    down = False
    with scripted(script) as server:
        engine = engine_of(server)
        completions = engine.generate(requests(12))
        found = [next(completions)]
        down = True
        server.stop()

        def restart() -> None:
            nonlocal down
            time.sleep(0.2)
            down = False
            server.start()

        thread = Thread(target=restart)
        thread.start()
        found += completions
        thread.join()
    assert texts(iter(found)) == EXPECTED


def test_a_prompt_that_the_server_always_fails_on_costs_only_itself() -> None:
    def script(prompt: str, _asked: int) -> Reply:
        if prompt == "prompt 1":
            return error(500, "cannot do this one")
        return Reply(body=answer(prompt.upper()).body, delay_s=0.1)

    with scripted(script) as server:
        engine = engine_of(server, give_up_after_s=0.3, max_concurrent=2)
        finished = []
        with pytest.raises(EngineFailed, match=r"1 requests got no answer; .*\(key-1\): HTTP 500: cannot do this one"):
            finished.extend(engine.generate(requests(12)))
    assert sorted(c.request_key for c in finished) == sorted(EXPECTED.keys() - {"key-1"})
    assert server.asked["prompt 1"] > 1


def test_a_refused_prompt_is_not_tried_again_and_stops_no_other() -> None:
    def script(prompt: str, asked: int) -> Reply:
        return error(400, "I do not like it") if prompt in ("prompt 0", "prompt 7") else upper(prompt, asked)

    with scripted(script) as server:
        finished = []
        with pytest.raises(EngineFailed, match=r"2 requests got no answer; .*HTTP 400: I do not like it") as caught:
            finished.extend(engine_of(server).generate(requests(12)))
    assert sorted(c.request_key for c in finished) == sorted(EXPECTED.keys() - {"key-0", "key-7"})
    assert set(server.asked.values()) == {1}
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_server_that_refuses_everything_is_not_asked_to_the_end() -> None:
    def script(prompt: str, _asked: int) -> Reply:
        return Reply(hold=True) if prompt == "prompt 0" else error(422, "unknown field `top_p`")

    with scripted(script) as server:
        with pytest.raises(EngineFailed, match=r"16 requests got no answer.*unknown field"):
            list(engine_of(server).generate(requests(200)))
        assert len(server.calls) < 50
        # What was under way is given up.
        assert server.asked["prompt 0"] == 1
        assert eventually(lambda: server.abandoned == 1)


def test_many_refusals_among_answers_do_not_end_the_run() -> None:
    def script(prompt: str, asked: int) -> Reply:
        return error(400, "odd") if int(prompt.split()[1]) % 2 else upper(prompt, asked)

    with scripted(script) as server:
        finished = []
        with pytest.raises(EngineFailed, match="30 requests got no answer"):
            finished.extend(engine_of(server, max_concurrent=1).generate(requests(60)))
    assert len(finished) == 30


def test_what_was_answered_while_the_caller_was_busy_comes_before_the_error() -> None:
    def script(prompt: str, asked: int) -> Reply:
        if prompt == "prompt 1":
            return Reply(401, {"detail": "expired"}, delay_s=0.1)
        return Reply(body=upper(prompt, asked).body, delay_s=0.0 if prompt == "prompt 0" else 0.3)

    with scripted(script) as server:
        completions = engine_of(server).generate(requests(4))
        found = [next(completions).request_key]
        assert eventually(lambda: len(server.calls) == 4 and server.open == 0)
        time.sleep(0.3)
        with pytest.raises(ServerRefused, match="expired"):
            found.extend(c.request_key for c in completions)
    assert found[0] == "key-0"
    assert sorted(found[1:]) == ["key-2", "key-3"]


@pytest.mark.parametrize("reply", [error(401, "no"), error(503, "no", headers={"Retry-After": "86400"})])
def test_nothing_is_sent_once_the_end_is_certain(reply: Reply) -> None:
    """Not even by calls that hold a slot before the caller has heard of it."""
    with scripted(lambda *_: reply) as server:

        async def two_calls() -> list[type[Exception]]:
            raised = []
            async with Connection(config_of(server), random.Random(0)) as connection:
                for request in requests(2):
                    try:
                        await connection.answer(request, engine_of(server).sampling)
                    except Exception as error:
                        raised.append(type(error))
            return raised

        assert anyio.run(two_calls) == [ServerRefused if reply.status == 401 else Unanswered, Unanswered]
        assert len(server.calls) == 1


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (error(401, "no key"), r"answered 401: no key\. The environment variable `OPENAI_API_KEY` is not set"),
        (error(402, "pay first"), "has no credit left"),
        (error(429, "exceeded your quota", "insufficient_quota"), "has no credit left"),
        (error(403, "not yours"), "may not use `pocket`"),
        (
            error(404, "The model `pocket` does not exist"),
            r"answered 404: .*Check engine\.model = 'pocket'.*/v1/models",
        ),
        (Reply(405, {"detail": "Method Not Allowed"}), "answered 405: Method Not Allowed.*usually ends in /v1"),
        (Reply(301, "", {"Location": "https://elsewhere/v1"}), r"answered 301.*redirects to https://elsewhere/v1"),
    ],
    ids=lambda value: str(value.status) if isinstance(value, Reply) else "",
)
def test_what_only_the_configuration_can_mend_stops_at_once_and_says_how(reply: Reply, words: str) -> None:
    def script(prompt: str, asked: int) -> Reply:
        return reply if prompt == "prompt 3" else upper(prompt, asked)

    with scripted(script) as server:
        finished: list[Completion] = []
        with pytest.raises(ServerRefused, match=words) as caught:
            finished.extend(engine_of(server, max_concurrent=1).generate(requests(12)))
        assert caught.value.exit_code == 2
        assert (caught.value.url, caught.value.status) == (f"{server.url}/chat/completions", reply.status)
        assert server.asked["prompt 3"] == 1
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    assert [c.request_key for c in finished] == ["key-0", "key-1", "key-2"]
    assert len(server.calls) == 4


VLLM_TOO_LONG = (
    "This model's maximum context length is 512 tokens. However, your prompt contains {} input tokens, which exceeds "
    "this limit even without any output tokens. Please reduce the length of the input prompt."
)


@pytest.mark.parametrize(
    ("reply", "tokens"),
    [
        (error(400, VLLM_TOO_LONG.format("731"), 400), 731),
        # It stopped counting just past the limit, so the estimate (90,000 bytes / 4) is nearer.
        (error(400, VLLM_TOO_LONG.format("at least 504"), 400), 22_500),
        (error(400, "your messages resulted in 8911 tokens", "context_length_exceeded"), 8911),
        (error(400, "the request exceeds the available context size"), 22_500),
    ],
)
def test_a_prompt_too_long_is_reported_and_stops_nothing(reply: Reply, tokens: int) -> None:
    def script(prompt: str, asked: int) -> Reply:
        return reply if len(prompt) > 1000 else upper(prompt, asked)

    with scripted(script) as server:
        engine = engine_of(server)
        found = {c.request_key: c for c in engine.generate([*requests(3), Request("long", "film " * 18_000)])}
    assert found["long"] == Completion("long", "", PROMPT_TOO_LONG, tokens_in=tokens, tokens_out=0)
    assert {key: c.text for key, c in found.items() if key != "long"} == {f"key-{i}": f"PROMPT {i}" for i in range(3)}
    assert server.asked["film " * 18_000] == 1
    assert engine.stats.too_long == 1
    assert engine.stats.finished == 4


def test_a_context_that_no_prompt_can_fit_is_the_configurations_fault() -> None:
    message = "max_tokens is too large: 512. This model's maximum context length is 256 tokens"
    with (
        scripted(lambda *_: error(400, message)) as server,
        pytest.raises(ServerRefused, match=r"max_new_tokens = 512 leaves no room for a prompt in a context of 256"),
    ):
        list(engine_of(server, max_new_tokens=512).generate(requests(3)))


def test_a_prompt_that_a_filter_holds_back_gets_an_empty_text() -> None:
    def script(prompt: str, asked: int) -> Reply:
        return error(400, "filtered", "content_filter") if prompt == "prompt 1" else upper(prompt, asked)

    with scripted(script) as server:
        found = {c.request_key: c for c in engine_of(server).generate(requests(3))}
    assert found["key-1"] == Completion("key-1", "", CONTENT_FILTERED, 0, 0)
    assert found["key-2"].text == "PROMPT 2"


def test_the_waits_between_attempts_are_drawn_from_the_given_generator() -> None:
    """Two engines with one seed, one call at a time: the same draws, whatever the clock does."""

    class Recording(random.Random):
        def __init__(self) -> None:
            super().__init__(0)
            self.spans: Counter[float] = Counter()

        def uniform(self, a: float, b: float) -> float:
            self.spans[b] += 1
            return 0.0

    def script(prompt: str, asked: int) -> Reply:
        return error(500, "oops") if asked < 4 else upper(prompt, asked)

    drawn = Recording()
    with scripted(script) as server:
        engine = OpenAIEngine(
            config_of(server, max_concurrent=1, first_retry_s=0.01, longest_retry_s=0.03), jitter=drawn
        )
        assert len(texts(engine.generate(requests(2)))) == 2
    assert drawn.spans == {0.01: 2, 0.02: 2, 0.03: 4}
