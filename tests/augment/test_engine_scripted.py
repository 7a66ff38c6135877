"""The scripted engine speaks the interface of a real one: lazy, out of order, able to fail."""

from collections.abc import Iterator

import pytest

from augment.engine.base import Completion, Engine, Request
from augment.engine.errors import EngineFailed
from augment.engine.scripted import ScriptedEngine


def requests(n: int) -> list[Request]:
    return [Request(f"key-{i}", f"prompt number {i}") for i in range(n)]


def test_every_request_gets_its_own_answer() -> None:
    engine: Engine = ScriptedEngine(lambda prompt: prompt.upper())
    answers = {c.request_key: c.text for c in engine.generate(requests(20))}
    assert answers == {f"key-{i}": f"PROMPT NUMBER {i}" for i in range(20)}


def test_completions_come_out_of_order_but_the_same_each_time() -> None:
    orders = [[c.request_key for c in ScriptedEngine(str.upper).generate(requests(20))] for _ in range(2)]
    assert orders[0] == orders[1]
    assert orders[0] != sorted(orders[0], key=lambda key: int(key.removeprefix("key-")))


def test_requests_are_pulled_only_as_slots_become_free() -> None:
    pulled = 0

    def source() -> Iterator[Request]:
        nonlocal pulled
        for request in requests(10):
            pulled += 1
            yield request

    completions = ScriptedEngine(str.upper, max_concurrent=3).generate(source())
    next(completions)
    assert pulled == 3
    next(completions)
    assert pulled == 4


def test_tokens_are_words_and_long_answers_are_cut() -> None:
    engine = ScriptedEngine({"two words": "one two three four"}, max_new_tokens=3)
    (completion,) = engine.generate([Request("k", "two words")])
    assert completion == Completion("k", "one two three", "length", tokens_in=2, tokens_out=3)


def test_it_fails_after_the_given_number_of_completions() -> None:
    engine = ScriptedEngine(str.upper, fail_after=5)
    assert len(list(engine.generate(requests(1)))) == 1
    completions = engine.generate(requests(20))
    assert len([next(completions) for _ in range(4)]) == 4
    with pytest.raises(EngineFailed, match="told to fail after 5"):
        next(completions)
    assert engine.calls == 5
    assert len(engine.prompts) == 5


def test_a_prompt_without_a_scripted_answer_is_an_error() -> None:
    with pytest.raises(KeyError, match="unknown"):
        list(ScriptedEngine({"known": "yes"}).generate([Request("k", "unknown")]))


def test_a_closed_engine_refuses_work() -> None:
    engine = ScriptedEngine(str.upper)
    engine.close()
    with pytest.raises(AssertionError, match="closed"):
        list(engine.generate(requests(1)))
