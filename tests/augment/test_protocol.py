"""What the answers of OpenAI-compatible servers mean, in the forms that servers give them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from augment.engine.protocol import (
    Answer,
    MalformedAnswer,
    ServerError,
    Verdict,
    context_length,
    estimate_tokens,
    prompt_tokens,
    read_answer,
    read_error,
    request_body,
    verdict_on,
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "message", "content", "text", "usage", "error", "code", "finish_reason", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        (
            {
                "choices": [{"message": {"content": "A film."}, "finish_reason": "length"}],
                "usage": {"prompt_tokens": 4, "completion_tokens": 2, "total_tokens": 6},
            },
            Answer("A film.", "length", 4, 2),
        ),
        ({"choices": [{"text": " plain", "finish_reason": "stop"}]}, Answer(" plain", "stop", None, None)),
        # A null finish reason is that of a server that has none; a null content, of a model that said nothing.
        ({"choices": [{"message": {"content": None}, "finish_reason": None}]}, Answer("", "stop", None, None)),
        (
            {"choices": [{"message": {"content": None, "refusal": "I cannot."}}]},
            Answer("I cannot.", "stop", None, None),
        ),
        (
            {"choices": [{"text": "t"}], "usage": {"prompt_tokens": -1, "completion_tokens": True}},
            Answer("t", "stop", None, None),
        ),
    ],
)
def test_answers_of_chat_and_of_plain_completions_are_read(body: object, answer: Answer) -> None:
    assert read_answer(body) == answer


@given(body=json_values)
def test_any_other_json_is_malformed_and_nothing_worse(body: object) -> None:
    try:
        text: object = read_answer(body).text
    except MalformedAnswer as error:
        text = str(error)
    assert isinstance(text, str)


@given(body=json_values, status=st.integers(100, 599))
def test_any_error_has_words_and_a_verdict(body: object, status: int) -> None:
    error = read_error(status, body)
    assert (error.status, isinstance(error.message, str), len(error.message) <= 400) == (status, True, True)
    assert verdict_on(error) in Verdict


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"error": {"message": "m", "code": "c", "type": "t"}}, ("c t", "m")),
        ({"error": {"message": "m", "code": 400}}, ("", "m")),
        ({"error": "plain words"}, ("", "plain words")),
        ({"object": "error", "message": "m", "type": "t"}, ("t", "m")),
        ({"detail": "Not Found"}, ("", "Not Found")),
        ("<html>\n  Bad   Gateway</html>", ("", "<html> Bad Gateway</html>")),
    ],
)
def test_errors_are_read_in_the_forms_in_use(body: object, words: tuple[str, str]) -> None:
    error = read_error(500, body)
    assert (error.code, error.message) == words


@pytest.mark.parametrize(
    ("status", "code", "message", "verdict"),
    [
        (400, "", "This model's maximum context length is 512 tokens.", Verdict.TOO_LONG),
        (400, "context_length_exceeded", "", Verdict.TOO_LONG),
        (413, "", "the request exceeds the available context size", Verdict.TOO_LONG),
        (400, "", "prompt is too long: 213423 tokens > 200000 maximum", Verdict.TOO_LONG),
        # The words alone are not enough: a busy server may speak of its context, too.
        (500, "", "no room in the context window", Verdict.RETRY),
        (400, "content_filter", "", Verdict.FILTERED),
        (400, "invalid_request_error", "unknown field", Verdict.REFUSED),
        (429, "rate_limit_exceeded", "", Verdict.RETRY),
        (429, "insufficient_quota", "", Verdict.MISCONFIGURED),
        (529, "overloaded", "", Verdict.RETRY),
    ],
)
def test_an_error_means_what_can_be_done_about_it(status: int, code: str, message: str, verdict: Verdict) -> None:
    assert verdict_on(ServerError(status, code, message)) is verdict


@pytest.mark.parametrize(
    ("message", "tokens", "context"),
    [
        ("maximum context length is 8192 tokens. However, your messages resulted in 10000 tokens.", 10_000, 8192),
        ("maximum context length is 4097 tokens, however you requested 4297 tokens (297 in your prompt; 4000 for the "
         "completion)", 297, 4097),
        ("maximum context length is 512 tokens and your request has 31 input tokens", 31, 512),
        ("prompt is too long: 213423 tokens > 200000 maximum", 213_423, None),
        ("too long", 5, None),
    ],
)  # fmt: skip
def test_the_length_of_a_long_prompt_is_the_servers_count_where_it_says_one(
    message: str, tokens: int, context: int | None
) -> None:
    error = ServerError(400, "", message)
    assert prompt_tokens(error, "x" * 17 + "é") == tokens
    assert context_length(error) == context


def test_estimates_go_by_bytes() -> None:
    assert [estimate_tokens(text) for text in ("", "abc", "abcd", "abcde", "电影")] == [0, 1, 1, 2, 2]


def test_a_body_of_a_local_engines_sampling_names_what_vllm_serve_knows() -> None:
    sampling = {
        "chat": True,
        "max_new_tokens": 5,
        "repetition_penalty": 1.1,
        "temperature": 0.0,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    assert request_body("m", "p", sampling) == {
        "model": "m",
        "max_tokens": 5,
        "repetition_penalty": 1.1,
        "temperature": 0.0,
        "chat_template_kwargs": {"enable_thinking": False},
        "messages": [{"role": "user", "content": "p"}],
    }
