"""The relaxed rule against the authors' loop, on scores of every shape, and inside vLLM's own rejection sampler."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from augment.speculation.verification import (
    DIGITS,
    JSON,
    QUOTES,
    Relaxation,
    exact_bits,
    inside_quotes,
    passes_relaxed,
    token_classes,
    within_cap,
)

STOP = 2
POCKET_LLM = Path(__file__).parents[3] / "demo" / "weights"


def dare(scores: Tensor, draft: list[int], bonus: int, k: int, p: float) -> list[int]:
    """The tokens that one draft yields: the loop of LASER's lookahead update for a single branch (reference, 2)."""
    out = []
    for s, d in zip(scores.numpy().astype(np.float64), draft, strict=True):
        probability = np.exp(s - s.max()) / np.exp(s - s.max()).sum()
        first = int(s.argmax())
        likely = set(np.flatnonzero(probability > p).tolist())
        allowed = set(np.argsort(-s)[:k].tolist()) & likely if likely else {first}
        if d != first and d not in allowed:
            return [*out, first]
        out.append(d)
    return [*out, bonus]


def rule(k: int, p: float, vocabulary: int, **guards: object) -> Relaxation:
    stop = torch.zeros(vocabulary, dtype=torch.bool)
    return Relaxation(**{"k": k, "p": p, "keep_end": False, "stop": stop, **guards})  # type: ignore[arg-type]


def accepted(scores: Tensor, draft: list[int], bonus: int, relaxation: Relaxation) -> list[int]:
    """The same by our rule."""
    first, relaxed = passes_relaxed(scores, torch.tensor(draft), relaxation)
    passes = relaxed | (torch.tensor(draft) == first)
    until = passes.tolist().index(False) if not passes.all() else len(draft)
    return [*draft[:until], bonus if until == len(draft) else int(first[until])]


def a_case(rng: np.random.Generator) -> tuple[Tensor, list[int]]:
    """Scores from flat to sharp, and a draft of likely and unlikely tokens."""
    length, vocabulary = int(rng.integers(1, 9)), int(rng.integers(4, 40))
    scores = torch.tensor(rng.normal(0, rng.choice([0.3, 1.0, 3.0, 8.0]), (length, vocabulary)), dtype=torch.float32)
    order = scores.argsort(dim=-1, descending=True)
    ranks = np.minimum(rng.geometric(rng.choice([0.9, 0.6, 0.3]), length) - 1, vocabulary - 1)
    return scores, [int(order[i, r]) for i, r in enumerate(ranks)]


def test_the_rule_is_the_authors_on_12000_random_cases() -> None:
    rng = np.random.default_rng(11)
    strict = relaxed = 0
    for _ in range(12_000):
        scores, draft = a_case(rng)
        k, p = int(rng.integers(1, 5)), float(rng.choice([0.0, 0.05, 0.1, 0.3]))
        got = accepted(scores, draft, 99, rule(k, p, scores.shape[1]))
        assert got == dare(scores, draft, 99, k, p), (scores, draft, k, p)
        as_strict = got == dare(scores, draft, 99, 1, 0.0)
        strict, relaxed = strict + as_strict, relaxed + (not as_strict)
    # Neither side of the rule may be missing from the cases.
    assert min(strict, relaxed) > 2000


def test_an_end_that_the_model_wants_stands_unless_the_authors_rule_is_asked_for() -> None:
    scores = torch.full((1, 6), -9.0)
    scores[0, STOP], scores[0, 4] = 1.0, 0.9
    stop = torch.zeros(6, dtype=torch.bool)
    stop[STOP] = True
    draft = torch.tensor([4])
    assert not passes_relaxed(scores, draft, rule(2, 0.1, 6, stop=stop, keep_end=True))[1].any()
    assert passes_relaxed(scores, draft, rule(2, 0.1, 6, stop=stop, keep_end=False))[1].all()


def test_a_drafted_end_passes_as_first_choice_only() -> None:
    """The authors' drafts hold no end of sequence, so theirs never ends a text early either."""
    scores = torch.full((2, 6), -9.0)
    scores[0, 4], scores[0, STOP] = 1.0, 0.9
    scores[1, STOP] = 1.0
    stop = torch.zeros(6, dtype=torch.bool)
    stop[STOP] = True
    first, relaxed = passes_relaxed(scores, torch.tensor([STOP, STOP]), rule(2, 0.1, 6, stop=stop))
    assert first.tolist() == [4, STOP]
    assert relaxed.tolist() == [False, False]


def test_padding_of_vllm_never_passes() -> None:
    scores = torch.zeros(3, 5)
    assert not passes_relaxed(scores, torch.tensor([-1, -1, -1]), rule(5, 0.0, 5))[1].any()


def test_tokens_of_an_exact_class_pass_as_first_choice_only() -> None:
    scores = torch.full((1, 6), -9.0)
    scores[0, 4], scores[0, 5] = 1.0, 0.9
    for holder in (4, 5):
        classes = torch.zeros(6, dtype=torch.uint8)
        classes[holder] = DIGITS
        for exact, passes in ((0, True), (DIGITS, False), (JSON, True), (DIGITS | JSON, False)):
            relaxation = rule(2, 0.1, 6, classes=classes, exact=exact)
            assert passes_relaxed(scores, torch.tensor([5]), relaxation)[1].item() is passes, (holder, exact)


def test_nothing_between_quotation_marks_is_relaxed() -> None:
    scores = torch.full((2, 6), -9.0)
    scores[:, 4], scores[:, 5] = 1.0, 0.9
    relaxation = rule(2, 0.1, 6, classes=torch.zeros(6, dtype=torch.uint8), exact=QUOTES)
    inside = torch.tensor([True, False])
    assert passes_relaxed(scores, torch.tensor([5, 5]), relaxation, inside)[1].tolist() == [False, True]


@given(
    st.lists(st.tuples(st.lists(st.booleans(), max_size=6), st.integers(0, 4), st.booleans()), min_size=1, max_size=6)
)
def test_caps_and_quotations_are_counted_row_by_row(rows: list[tuple[list[bool], int, bool]]) -> None:
    flags = torch.tensor([f for flags, _, _ in rows for f in flags], dtype=torch.bool)
    row = torch.tensor([i for i, (flags, _, _) in enumerate(rows) for _ in flags], dtype=torch.long)
    capped, inside = [], []
    for in_row, left, is_open in rows:
        for flag in in_row:
            capped.append(flag and left > 0)
            left -= flag
            inside.append(is_open)
            is_open ^= flag
    assert within_cap(flags, row, torch.tensor([left for _, left, _ in rows])).tolist() == capped
    assert inside_quotes(flags, row, torch.tensor([is_open for _, _, is_open in rows])).tolist() == inside


def test_classes_are_read_off_the_tokenizer() -> None:
    texts = ["a", " 1", '"', "“x”", '{"', ", ", "ab"]

    class Tokenizer:
        def __len__(self) -> int:
            return len(texts)

        def batch_decode(self, ids: list[list[int]]) -> list[str]:
            return [texts[i] for (i,) in ids]

    classes, odd = token_classes(Tokenizer(), 9)
    assert classes.tolist() == [0, DIGITS, QUOTES | JSON, QUOTES, QUOTES | JSON, JSON, 0, 0, 0]
    assert odd.tolist() == [False, False, True, False, True, False, False, False, False]
    assert exact_bits(["digits", "json"]) == DIGITS | JSON


@pytest.fixture(scope="module")
def recorded() -> Tensor:
    """Scores [n, V] of the pocket LLM where it writes greedily, in float32: many sharp places, and some torn ones."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(POCKET_LLM, dtype=torch.float32, local_files_only=True)
    start = torch.randint(3, 1984, (24, 8), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        model.generation_config.eos_token_id = None
        written = model.generate(start, max_new_tokens=40, do_sample=False, pad_token_id=0)
        scores: Tensor = model(written).logits.flatten(0, 1)
    return scores


def a_batch(rng: np.random.Generator, recorded: Tensor | None) -> tuple[list[list[int]], list[Tensor]]:
    """Drafts of up to six tokens, empty ones among them, and the scores of their places and of the one after."""
    drafts, scores = [], []
    for length in rng.integers(0, 7, int(rng.integers(1, 17))).tolist():
        if recorded is None:
            s = torch.tensor(rng.normal(0, rng.choice([1.0, 3.0]), (length + 1, 24)), dtype=torch.float32)
        else:
            at = int(rng.integers(0, len(recorded) - length))
            s = recorded[at : at + length + 1]
        order = s.argsort(dim=-1, descending=True)
        ranks = np.minimum(rng.geometric(0.6, length) - 1, 3)
        drafts.append([int(order[i, r]) for i, r in enumerate(ranks)])
        scores.append(s)
    return drafts, scores


@pytest.mark.engine
@pytest.mark.parametrize("source", ["random", "recorded"])
def test_inside_vllms_sampler_the_rule_is_the_authors(source: str, recorded: Tensor) -> None:
    """RelaxedSampler on vLLM's own metadata, for scores drawn at random and scores recorded from a model."""
    from augment.engine.launch import shield_llvmlite

    shield_llvmlite()
    from vllm.platforms import current_platform
    from vllm.v1.sample.logits_processor import LogitsProcessors
    from vllm.v1.sample.metadata import SamplingMetadata
    from vllm.v1.sample.sampler import Sampler
    from vllm.v1.spec_decode.metadata import SpecDecodeMetadata

    from augment.speculation.rows import Rows
    from augment.speculation.sampler import RelaxedSampler

    # As vLLM's workers begin: CPU kernels in place of Triton's.
    current_platform.register_triton_kernel_overrides()
    rng = np.random.default_rng(5)
    given, enough = (None, 3_000) if source == "random" else (recorded, 2_000)
    vocabulary = 24 if given is None else given.shape[1]
    runner = SimpleNamespace(sampler=Sampler(), speculative_config=None, device=torch.device("cpu"))
    rows = Rows(max_rows=16, max_length=8, vocabulary=vocabulary)
    sampler = RelaxedSampler(runner, rule(2, 0.1, vocabulary), rows, lambda: None, None, None)
    nothing = torch.empty(0)
    sampling = SamplingMetadata(
        temperature=None, all_greedy=True, all_random=False, top_p=None, top_k=None, generators={},
        max_num_logprobs=None, no_penalties=True, prompt_token_ids=None, frequency_penalties=nothing,
        presence_penalties=nothing, repetition_penalties=nothing, output_token_ids=[], allowed_token_ids_mask=None,
        bad_words_token_ids={}, logitsprocs=LogitsProcessors(), spec_token_ids=[],
    )  # fmt: skip
    cases = relaxed = 0
    while cases < enough:
        drafts, scores = a_batch(rng, given)
        if not any(drafts):
            continue
        metadata = SpecDecodeMetadata.make_dummy(drafts, device=torch.device("cpu"))
        ends = np.cumsum([len(s) for s in scores])
        places = [np.arange(e - len(s), e - 1) for s, e in zip(scores, ends, strict=True)]
        metadata.target_logits_indices = torch.tensor(np.concatenate(places))
        metadata.bonus_logits_indices = torch.tensor(ends - 1)
        output = sampler(metadata, None, torch.cat(scores), sampling)
        found, _ = sampler.parse_output(output.sampled_token_ids, vocabulary)
        verified = sampler.take_verified()
        assert verified is not None
        start = 0
        for draft, s, got in zip(drafts, scores, found, strict=True):
            assert got == dare(s[:-1], draft, int(s[-1].argmax()), 2, 0.1)
            first = s[:-1].argmax(dim=-1).tolist()
            flagged = verified.relaxed[start : start + len(got) - 1].tolist()
            assert flagged == [t != f for t, f in zip(got[:-1], first, strict=False)]
            relaxed += sum(flagged)
            start += len(draft)
            cases += 1
    assert relaxed > 50
