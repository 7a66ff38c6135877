"""Batch files of OpenAI's form: what is written, and what is read back."""

import json
from itertools import chain
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from augment.interchange.batch import BatchText, _split, export_batch, read_batch_results
from augment.interchange.faults import FaultReason, ImportFault
from warehouse.errors import InputError

SAMPLING = {"chat": True, "max_new_tokens": 64, "temperature": 0.0}


def pending(n: int) -> pa.Table:
    return pa.table(
        {
            "request_key": [f"{i:032x}" for i in range(n)],
            "prompt": [f'Tell me of "film {i}"\nand é.' for i in range(n)],
            "kind": ["item_facts"] * n,
        }
    )


def result(key: object, text: str = "A film.", **more: object) -> dict[str, object]:
    """A line of an output file, as OpenAI's guide shows it."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 20, "completion_tokens": 5, "total_tokens": 25}
    body = {"object": "chat.completion", "model": "m-2026", "choices": [choice], "usage": usage}
    response = {"status_code": 200, "request_id": "r", "body": body}
    return {"id": "batch_req_1", "custom_id": key, "response": response, "error": None, **more}


def test_a_line_is_the_call_that_the_engine_would_make(tmp_path: Path) -> None:
    out = tmp_path / "new" / "batch.jsonl"
    made = export_batch(pending(3), "gpt-x", SAMPLING, out)
    assert (made.requests, made.files) == (3, (out,))
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert lines[1] == {
        "custom_id": f"{1:032x}",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": "gpt-x",
            "max_tokens": 64,
            "temperature": 0.0,
            "messages": [{"role": "user", "content": 'Tell me of "film 1"\nand é.'}],
        },
    }
    assert [line["custom_id"] for line in lines] == pending(3).column("request_key").to_pylist()
    plain = {**SAMPLING, "chat": False}
    export_batch(pending(1), "gpt-x", plain, out, max_tokens_field="max_completion_tokens")
    (line,) = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert line["url"] == "/v1/completions"
    assert set(line["body"]) == {"model", "max_completion_tokens", "temperature", "prompt"}
    assert [path.name for path in out.parent.iterdir()] == ["batch.jsonl"]


def test_what_is_too_much_for_one_file_goes_into_several(tmp_path: Path) -> None:
    out = tmp_path / "batch.jsonl"
    made = export_batch(pending(7), "m", SAMPLING, out, max_requests_per_file=3)
    assert [path.name for path in made.files] == [f"batch-{n}-of-3.jsonl" for n in (1, 2, 3)]
    lines = [[json.loads(line)["custom_id"] for line in path.read_bytes().splitlines()] for path in made.files]
    assert [len(part) for part in lines] == [3, 3, 1]
    assert list(chain(*lines)) == pending(7).column("request_key").to_pylist()
    assert not out.exists()
    size = made.files[0].stat().st_size // 3
    assert [p.stat().st_size // size for p in export_batch(
        pending(4), "m", SAMPLING, out, max_bytes_per_file=2 * size + 1
    ).files] == [2, 2]  # fmt: skip


def test_nothing_to_ask_makes_no_file(tmp_path: Path) -> None:
    assert export_batch(pending(0), "m", SAMPLING, tmp_path / "batch.jsonl").files == ()
    assert list(tmp_path.iterdir()) == []


@given(sizes=st.lists(st.integers(1, 60), max_size=40), max_requests=st.integers(1, 10), max_bytes=st.integers(1, 100))
def test_no_part_passes_a_limit_and_none_could_take_the_next_line(
    sizes: list[int], max_requests: int, max_bytes: int
) -> None:
    parts = _split(sizes, max_requests, max_bytes)
    assert sum(parts) == len(sizes)
    start = 0
    for part in parts:
        taken, rest = sizes[start : start + part], sizes[start + part :]
        assert 0 < part <= max_requests
        assert sum(taken) <= max_bytes or part == 1
        assert not rest or part == max_requests or sum(taken) + rest[0] > max_bytes
        start += part


def test_answers_and_failures_of_a_batch_are_told_apart(tmp_path: Path) -> None:
    cut = result("d")
    cut["response"]["body"]["choices"][0]["finish_reason"] = "length"  # type: ignore[index]
    bad = {"status_code": 400, "body": {"error": {"message": "context length exceeded", "code": "c"}}}
    lines: list[object] = [
        result("a"),
        result("b", text=""),
        result("c", response=bad),
        cut,
        result("e", response=None, error={"code": "batch_expired", "message": "not in time"}),
        result("f", response={"status_code": 200, "body": {"choices": []}}),
        result(None),
        result("a", text="Another."),
        [1],
        # The call that failed above, in the output of another batch.
        result("c", response={"status_code": 200, "body": {"choices": [{"text": "plain"}]}}),
    ]
    path = tmp_path / "out.jsonl"
    path.write_text("\n".join([*map(json.dumps, lines), "", '{"custom_id": "z", "resp']), encoding="utf-8")
    assert list(read_batch_results(path)) == [
        BatchText(1, "a", "A film.", "stop", 20, 5),
        BatchText(2, "b", "", "stop", 20, 5),
        ImportFault(3, FaultReason.FAILED_CALL, "c: HTTP 400: context length exceeded"),
        BatchText(4, "d", "A film.", "length", 20, 5),
        ImportFault(5, FaultReason.FAILED_CALL, "e: batch_expired: not in time"),
        ImportFault(6, FaultReason.MALFORMED_LINE, "f: an answer without choices: {'choices': []}"),
        ImportFault(7, FaultReason.MISSING_ID, "custom_id is None"),
        ImportFault(8, FaultReason.DUPLICATE_ID, "a"),
        ImportFault(9, FaultReason.MALFORMED_LINE, "no JSON object: [1]"),
        BatchText(10, "c", "plain", "stop", 0, 0),
        ImportFault(12, FaultReason.MALFORMED_LINE, "not JSON: unexpected end of data: line 1 column 25 (char 24)"),
    ]


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.jsonl cannot be read: No such file"):
        list(read_batch_results(tmp_path / "none.jsonl"))
