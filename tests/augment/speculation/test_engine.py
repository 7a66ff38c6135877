"""Speculation inside real vLLM on the pocket LLM: texts, counts, and that `off` is never changed by it."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from augment.engine.base import Completion, Request, sampling_of_attempt
from augment.engine.launch import start_vllm
from augment.engine.vllm import EngineConfig, VllmEngine
from augment.speculation.config import SpeculationConfig, UnsupportedVllm, check_vllm
from tests.augment.asked import film_prompts
from tests.augment.processes import last_line_of
from warehouse.errors import ConfigError

ROOT = Path(__file__).parents[3]
POCKET_LLM = ROOT / "demo" / "weights"

on_vllm = pytest.mark.engine


def config(concurrent: int, **options: object) -> EngineConfig:
    given = {"model": str(POCKET_LLM), "max_new_tokens": 48, "max_model_len": 512, "kv_cache_gib": 0.25}
    return EngineConfig.model_validate({**given, "dtype": "float32", "max_concurrent": concurrent, **options})


def prompts(n: int) -> list[Request]:
    """Distinct prompts whose texts share much and differ in places."""
    return [Request(f"key-{i}", prompt, ("a", "b", None)[i % 3]) for i, prompt in enumerate(film_prompts(n))]


def in_process(engine: VllmEngine) -> VllmEngine:
    """The engine, loaded inside this process: it starts in a third of the time."""
    # vLLM stumbles over it, unless it is started with care.
    import numba  # noqa: F401

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        list(engine.generate([Request("warm-up", "Hello")]))
    return engine


def texts(engine: VllmEngine, requests: list[Request]) -> dict[str, Completion]:
    return {c.request_key: c for c in engine.generate(requests)}


@pytest.fixture(scope="module")
def lossless() -> Iterator[VllmEngine]:
    """Float32, four at once, drafts verified whole: the budget of a busy machine should not decide what is tested."""
    speculation = SpeculationConfig(mode="lossless", budget="fixed")
    engine = in_process(VllmEngine(config(4), speculation=speculation))
    yield engine
    engine.close()


@on_vllm
def test_drafts_change_the_steps_and_not_the_text(lossless: VllmEngine) -> None:
    """The first time there is little to draft from; the second time everything was written before."""
    first = texts(lossless, prompts(12))
    before = lossless.stats
    again = texts(lossless, prompts(12)[::-1])
    assert {key: c.text for key, c in first.items()} == {key: c.text for key, c in again.items()}
    for c in again.values():
        assert c.drafted is not None
        assert c.accepted is not None
        assert c.steps is not None
        assert 0 < c.accepted <= c.drafted
        assert c.tokens_out - c.accepted - 1 <= c.steps <= c.tokens_out - c.accepted
        assert c.relaxed == 0
        assert c.pool_id is None
    after = lossless.stats
    assert after.accepted - before.accepted == sum(c.accepted or 0 for c in again.values())
    assert after.steps - before.steps < 0.5 * sum(c.tokens_out for c in again.values())
    assert lossless.verification == "strict"


@on_vllm
def test_totals_tell_what_speculation_cost(lossless: VllmEngine) -> None:
    totals = lossless.speculation_totals()
    assert totals["accepted"] >= lossless.stats.accepted > 0
    assert totals["row_steps"] >= lossless.stats.steps
    assert 0 < totals["retrieval_s"] < totals["proposing_s"] < lossless.stats.generating_s


@on_vllm
def test_a_pool_given_later_is_drafted_from_and_named_in_every_text(lossless: VllmEngine, tmp_path: Path) -> None:
    from augment.speculation.pool import PoolIdentity, PoolMismatch, RetrievalPool

    asked = [Request(f"key-{i}", prompt) for i, prompt in enumerate(film_prompts(4, seed=1))]
    before = texts(lossless, asked)
    ids = [lossless._tokenizer.encode(c.text, add_special_tokens=False) for c in before.values()]
    pool = RetrievalPool.build(ids, identity=PoolIdentity(model="pocket"))
    pool.save(tmp_path / "pool")
    with pytest.raises(PoolMismatch, match="expected 'another', found 'pocket'"):
        lossless.draft_from(tmp_path / "pool", PoolIdentity(model="another"))
    assert lossless.pool_id is None
    lossless.draft_from(tmp_path / "pool", PoolIdentity(model="pocket"))
    after = texts(lossless, asked)
    assert {c.pool_id for c in after.values()} == {pool.digest}
    assert {key: c.text for key, c in before.items()} == {key: c.text for key, c in after.items()}
    assert sum(c.steps or 0 for c in after.values()) < sum(c.steps or 0 for c in before.values())
    summary = lossless.speculation_summary()
    assert summary["pool"] == pool.digest
    assert 1 < summary["tokens_per_step"] < 17  # type: ignore[operator]


@on_vllm
def test_drafts_stop_at_the_limits_of_a_request(lossless: VllmEngine) -> None:
    """Prompts that leave exactly the room they need in the context: vLLM would fail on a token past it."""
    room = 512 - 48
    asked = [Request(f"long-{i}", ("a film, " * 200)[:i] + "Tell me about the film.") for i in range(400, 1500)]
    fitting = [r for r in asked if room - 1 <= len(lossless._tokenise(r.prompt)) <= room][:4]
    assert fitting
    first, again = texts(lossless, fitting), texts(lossless, fitting)
    assert [c.text for c in first.values()] == [again[key].text for key in first]
    assert max(c.tokens_in + c.tokens_out for c in again.values()) == 512


def first_difference(a: list[int], b: list[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def gap_at(engine: VllmEngine, prompt: str, text: str, other: str) -> float:
    """The distance of the two first logits where two texts part, in float32 and one forward pass."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(POCKET_LLM, dtype=torch.float32, local_files_only=True)
    a, b = (engine._tokenizer.encode(t, add_special_tokens=False) for t in (text, other))
    known = engine._tokenise(prompt) + a[: first_difference(a, b)]
    with torch.inference_mode():
        two = model(torch.tensor([known])).logits[0, -1].topk(2).values
    return float(two[0] - two[1])


@on_vllm
@pytest.mark.slow
def test_lossless_text_is_that_of_no_speculation_on_64_prompts_at_1_and_16(lossless: VllmEngine) -> None:
    """In float32. A text may differ where the two first choices are closer than float32 arithmetic is exact."""
    requests = prompts(64)
    off = in_process(VllmEngine(config(16)))
    try:
        alone = {key: c for r in requests for key, c in texts(off, [r]).items()}
        together = texts(off, requests)
    finally:
        off.close()
    assert all(c.drafted is None for c in together.values())
    measured = in_process(VllmEngine(config(16), speculation=SpeculationConfig(mode="lossless")))
    try:
        runs = [
            (alone, {key: c for r in requests for key, c in texts(lossless, [r]).items()}),
            (together, texts(measured, requests)),
            (together, texts(measured, requests[::-1])),
        ]
        assert measured.stats.accepted > 0
        for without, speculated in runs:
            for request in requests:
                a, b = without[request.request_key].text, speculated[request.request_key].text
                if a != b:
                    assert gap_at(measured, request.prompt, a, b) < 1e-3, (request.prompt, a, b)
    finally:
        measured.close()


@on_vllm
@pytest.mark.slow
def test_relaxed_texts_are_repeatable_counted_and_within_their_cap(tmp_path: Path) -> None:
    """Its text depends on model, prompt and pool alone where budget is fixed and the pool frozen."""
    from augment.speculation.pool import PoolIdentity, RetrievalPool

    strict = in_process(VllmEngine(config(8)))
    written = texts(strict, prompts(40))
    ids = [strict._tokenizer.encode(c.text, add_special_tokens=False) for c in written.values()]
    strict.close()
    identity = PoolIdentity(model="pocket")
    pool = RetrievalPool.build(ids[8:], identity=identity)
    pool.save(tmp_path / "pool")
    found = []
    for concurrent, most in ((8, None), (2, None), (8, 1)):
        speculation = SpeculationConfig(
            mode="relaxed", k=3, p=0.02, budget="fixed", frozen_pool=True, max_relaxed_per_text=most, exact=("digits",)
        )
        engine = VllmEngine(config(concurrent), speculation=speculation)
        engine.draft_from(tmp_path / "pool", identity)
        found.append(texts(in_process(engine), prompts(8)))
        assert engine.verification.startswith("relaxed(3,0.02,exact=digits")
        assert all(c.pool_id == pool.digest for c in found[-1].values())
        engine.close()
    first, again, capped = found
    assert {k: (c.text, c.relaxed) for k, c in first.items()} == {k: (c.text, c.relaxed) for k, c in again.items()}
    assert sum(c.relaxed or 0 for c in first.values()) > 0
    for key, c in first.items():
        assert (c.relaxed == 0) <= (c.text == written[key].text)
        assert (c.relaxed or 0) <= (c.accepted or 0)
    assert max(c.relaxed or 0 for c in capped.values()) == 1


SCRIPT = """
import json, sys
from pathlib import Path

from augment.engine.base import Request
from augment.engine.vllm import EngineConfig, SpeculationConfig, VllmEngine


def main():
    config = EngineConfig(
        model=sys.argv[1], max_new_tokens=32, max_model_len=512, max_concurrent=3, kv_cache_gib=0.25, dtype="float32"
    )
    guards = {"exact": ["quotes"]} if sys.argv[2] == "relaxed" else {}
    engine = VllmEngine(config, speculation=SpeculationConfig(mode=sys.argv[2], **guards))
    asked = [Request(f"key-{i}", f"Film number {i}.", "a") for i in range(8)] * 2
    done = list(engine.generate(asked))
    totals = engine.speculation_totals()
    engine.close()
    print(json.dumps({"counts": [[c.tokens_out, c.drafted, c.accepted, c.relaxed, c.steps] for c in done],
                      "totals": totals}))


if __name__ == "__main__":
    main()
"""


@on_vllm
@pytest.mark.slow
def test_sampling_on_a_cpu_drafts_nothing_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """vLLM 0.32 verifies wrongly there: its texts would come from another distribution."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        pytest.skip("on this device vLLM verifies rightly when sampling")
    asked = [Request(f"key-{i}", prompt) for i, prompt in enumerate(film_prompts(4))]
    found = []
    for mode in ("off", "lossless"):
        speculation = SpeculationConfig.model_validate({"mode": mode})
        engine = in_process(VllmEngine(config(4, temperature=0.8), speculation=speculation))
        found.append({key: c.text for key, c in texts(engine, asked).items()})
        assert engine.stats.steps == 0
        assert engine.speculation_summary() == {}
        engine.close()
    assert found[0] == found[1]
    assert ["drafting is off" in record.message for record in caplog.records if "temperature" in record.message] == [
        True
    ]


@on_vllm
@pytest.mark.slow
def test_a_second_attempt_is_sampled_as_without_drafts() -> None:
    """Among greedy requests that draft, one that samples gives what an engine gives that only samples."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        pytest.skip("on this device vLLM verifies rightly when sampling")
    temperature, seed = sampling_of_attempt(0.0, 0, 1)
    prompts = film_prompts(4)
    plain = in_process(VllmEngine(config(1, temperature=temperature, seed=seed), speculation=None))
    expected = {key: c.text for key, c in texts(plain, [Request(p, p) for p in prompts]).items()}
    plain.close()
    engine = in_process(VllmEngine(config(1), speculation=SpeculationConfig()))
    greedy = texts(engine, [Request(p, p) for p in prompts])
    again = texts(engine, [Request(p, p, attempt=1) for p in prompts])
    engine.close()
    assert {key: c.text for key, c in again.items()} == expected
    assert [c.drafted for c in again.values()] == [0] * 4
    assert {key: c.text for key, c in greedy.items()} != expected


@on_vllm
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["lossless", "relaxed"])
def test_it_works_in_a_process_of_its_own(mode: str, tmp_path: Path) -> None:
    """The default: proposer and sampler are installed, and counts come back, over vLLM's own messages."""
    seen, _ = last_line_of(SCRIPT, tmp_path, str(POCKET_LLM), mode)
    assert len(seen["counts"]) == 16
    assert all(0 <= accepted <= drafted and steps for _, drafted, accepted, _, steps in seen["counts"])
    assert 0 < sum(accepted for _, _, accepted, _, _ in seen["counts"]) <= seen["totals"]["accepted"]


def test_relaxed_is_refused_when_sampling() -> None:
    with pytest.raises(ConfigError, match=r"engine.temperature is 0\.7\. Set it to 0") as caught:
        VllmEngine(config(1, temperature=0.7), speculation=SpeculationConfig(mode="relaxed"))
    assert caught.value.exit_code == 2
    VllmEngine(config(1, temperature=0.7), speculation=SpeculationConfig()).close()


def test_a_vllm_that_was_never_tested_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    check_vllm("0.32.0")
    check_vllm("0.32.0+cpu")
    with pytest.raises(UnsupportedVllm, match=r"tested with vLLM 0\.32\.0, and this is vLLM 0\.33\.0"):
        check_vllm("0.33.0")
    if importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    import vllm

    monkeypatch.setattr(vllm, "__version__", "0.31.2")
    with pytest.raises(UnsupportedVllm, match=r'set \[speculation\] mode = "off"'):
        start_vllm(config(1), SpeculationConfig(), POCKET_LLM, tmp_path / "vllm.log")


@pytest.mark.parametrize(
    ("given", "verification"),
    [
        ({}, "strict"),
        ({"mode": "off"}, "strict"),
        ({"mode": "relaxed"}, "relaxed(2,0.1)"),
        ({"mode": "relaxed", "k": 3, "p": 0.25, "keep_end": False}, "relaxed(3,0.25,override_end)"),
        ({"mode": "relaxed", "exact": ["quotes", "digits"], "budget": "fixed"}, "relaxed(2,0.1,exact=digits+quotes)"),
        ({"mode": "relaxed", "max_relaxed_per_text": 5}, "relaxed(2,0.1,most=5)"),
    ],
)
def test_a_request_key_names_all_that_changes_a_text(given: dict[str, Any], verification: str) -> None:
    assert SpeculationConfig.model_validate(given).verification == verification


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"mode": "lossless", "k": 3}, "k have no effect in mode = 'lossless'"),
        ({"mode": "relaxed", "exact": ["digits", "digits"]}, "names a class twice"),
        ({"mode": "relaxed", "exact": ["letters"]}, "exact"),
        ({"mode": "relaxed", "p": 1.0}, "p"),
        ({"max_draft_tokens": 200}, "max_draft_tokens"),
        ({"mood": "lossless"}, "mood"),
    ],
)
def test_a_wrong_combination_fails_when_it_is_built(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        SpeculationConfig.model_validate(given)
