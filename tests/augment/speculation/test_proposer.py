"""The proposer on a made-up vLLM: rows that change hands, preemption, chunked prompts, limits, and what is counted.

`Machine` does to rows what vLLM 0.32 does to its InputBatch, with a model whose texts are given; it verifies drafts as
greedy decoding does.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import NDArray

from augment.speculation.proposer import PoolProposer
from augment.speculation.rows import GROUP, Counts, Rows, Verified
from augment.speculation.steptime import StepClock, StepTable

ROWS, LENGTH, VOCABULARY, STOP = 6, 64, 50, 2


@dataclass
class Asked:
    """A request of the made-up vLLM: its prompt, the text the model wants to write, and its own limits."""

    name: str
    prompt: list[int]
    text: list[int]
    max_tokens: int
    group: str | None = None
    output: list[int] = field(default_factory=list)
    read: int = 0
    draft: list[int] = field(default_factory=list)

    @property
    def expected(self) -> list[int]:
        """What vLLM returns: up to the stop token, `max_tokens` or the context."""
        text = self.text[: min(self.max_tokens, LENGTH - len(self.prompt))]
        return text[: text.index(STOP) + 1] if STOP in text else text

    @property
    def done(self) -> bool:
        return len(self.output) >= len(self.expected)


class Drafter:
    """Drafts right tokens with some wrong ones among them, and checks all that it is told."""

    def __init__(self, texts: dict[tuple[int, ...], Asked], rng: np.random.Generator, wrong: float) -> None:
        self._texts, self._rng, self._wrong = texts, rng, wrong
        self.prompts: dict[int, int] = {}
        self.groups: dict[int, str | None] = {}
        self.finished: list[list[int]] = []

    def start(self, row: int, prompt_length: int, group: str | None = None) -> None:
        self.prompts[row], self.groups[row] = prompt_length, group

    def finish(self, row: int, tokens: NDArray[np.int32]) -> None:
        self.finished.append(tokens.tolist())

    def propose(
        self, tokens: NDArray[np.int32], valid: NDArray[np.int32], rows: NDArray[np.int32], limits: NDArray[np.int32]
    ) -> SimpleNamespace:
        width = 4
        drafted, probability = np.zeros((len(rows), width), np.int32), np.zeros((len(rows), width), np.float32)
        for i, (row, limit) in enumerate(zip(rows.tolist(), limits.tolist(), strict=True)):
            known = tokens[row, : valid[row]].tolist()
            asked = self._texts[tuple(known[: self.prompts[row]])]
            assert asked.group == self.groups[row]
            assert known[self.prompts[row] :] == asked.text[: len(known) - self.prompts[row]]
            for j in range(min(limit, width)):
                place = len(known) - self.prompts[row] + j
                right = place < len(asked.text) and self._rng.random() >= self._wrong
                drafted[i, j] = asked.text[place] if right else 7
                probability[i, j] = 0.9 ** (j + 1)
        return SimpleNamespace(tokens=drafted, probability=probability)


class Machine:
    """Rows as vLLM keeps them: freed ones are filled first, then the last rows move into the gaps."""

    def __init__(self, proposer: PoolProposer, rng: np.random.Generator) -> None:
        self.batch = SimpleNamespace(
            req_ids=[], num_prompt_tokens=np.zeros(ROWS, np.int32), num_tokens_no_spec=np.zeros(ROWS, np.int32)
        )
        self.tokens = np.zeros((ROWS, LENGTH), np.int32)
        self.requests: dict[str, SimpleNamespace] = {}
        self.asked: dict[str, Asked] = {}
        self.runner = SimpleNamespace(
            input_batch=self.batch, requests=self.requests, max_num_reqs=ROWS, rejection_sampler=None
        )
        self.proposer, self._rng = proposer, rng
        self.before_sampling: Callable[[], None] = lambda: None
        self.verified_tokens = 0

    def add(self, asked: Asked) -> None:
        params = SimpleNamespace(
            max_tokens=asked.max_tokens, ignore_eos=False, stop_token_ids=[], all_stop_token_ids={STOP},
            extra_args=None if asked.group is None else {GROUP: asked.group},
        )  # fmt: skip
        self.asked[asked.name] = asked
        self.requests[asked.name] = SimpleNamespace(sampling_params=params, output_token_ids=asked.output)

    def step(self, running: list[str]) -> None:
        """One step with these requests in the batch."""
        self._place(running)
        names: list[str] = self.batch.req_ids
        self.before_sampling()
        sampled = []
        for row, name in enumerate(names):
            asked = self.asked[name]
            if asked.read < len(asked.prompt) + len(asked.output) - 1:
                # A chunk of the prompt; what came out before a preemption is read again with it.
                asked.read += int(self._rng.integers(1, 9))
                asked.draft = []
            if asked.read < len(asked.prompt) + len(asked.output) - 1:
                sampled.append([])
                continue
            new = self._verify(asked)
            at = len(asked.prompt) + len(asked.output)
            new = new[: LENGTH - at]
            self.tokens[row, at : at + len(new)] = new
            self.batch.num_tokens_no_spec[row] = at + len(new)
            asked.output += new
            asked.read = at + len(new) - 1
            sampled.append(new)
        drafts = self.proposer.propose(sampled, self.batch.num_tokens_no_spec, self.tokens)
        assert len(drafts) == len(names)
        for name, new, draft in zip(names, sampled, drafts, strict=True):
            asked = self.asked[name]
            assert new or not draft, "a draft for a prompt that is not read yet"
            assert not (draft and asked.done), "a draft for a text that has ended"
            room = min(len(asked.prompt) + asked.max_tokens, LENGTH) - len(asked.prompt) - len(asked.output) - 1
            assert len(draft) <= max(room, 0)
            asked.draft = draft

    def _verify(self, asked: Asked) -> list[int]:
        """The accepted draft and one token of the model's own, which may run past a stop token as in vLLM."""
        wanted = asked.text[len(asked.output) :] + [9] * 8
        self.verified_tokens += len(asked.draft)
        new = []
        for drafted, right in zip(asked.draft, wanted, strict=False):
            if drafted != right:
                break
            new.append(drafted)
        return [*new, wanted[len(new)]]

    def _place(self, running: list[str]) -> None:
        names: list[str | None] = [n if n in running else None for n in self.batch.req_ids]
        for name in self.batch.req_ids:
            if name not in running:
                self.asked[name].draft = []
        for name in [n for n in running if n not in names]:
            row = names.index(None) if None in names else len(names)
            names[row:row] = [] if row < len(names) else [None]
            names[row] = name
            asked = self.asked[name]
            self._write(row, asked)
        while None in names:
            last = names.pop()
            if last is not None:
                row = names.index(None)
                names[row] = last
                self._write(row, self.asked[last])
        self.batch.req_ids = names

    def _write(self, row: int, asked: Asked) -> None:
        known = asked.prompt + asked.output
        self.tokens[row] = 0
        self.tokens[row, : len(known)] = known
        self.batch.num_prompt_tokens[row] = len(asked.prompt)
        self.batch.num_tokens_no_spec[row] = len(known)


def build(
    requests: list[Asked], seed: int, wrong: float, clock: StepClock | None = None
) -> tuple[Machine, Drafter, PoolProposer]:
    rng = np.random.default_rng(seed)
    drafter = Drafter({tuple(asked.prompt): asked for asked in requests}, rng, wrong)
    proposer = PoolProposer(SimpleNamespace(speculative_config=SimpleNamespace(num_speculative_tokens=4)))
    machine = Machine(proposer, rng)
    proposer.install(machine.runner, drafter, Rows(ROWS, LENGTH, VOCABULARY), clock)  # type: ignore[arg-type]
    return machine, drafter, proposer


def some_requests(rng: np.random.Generator, count: int) -> list[Asked]:
    requests = []
    for i in range(count):
        # Different in their first token, so that a text cannot be taken for another's.
        prompt = [10 + i, *rng.integers(10, 50, int(rng.integers(1, 20))).tolist()]
        text = rng.integers(10, 50, 60).tolist()
        if rng.random() < 0.6:
            text[int(rng.integers(0, 30))] = STOP
        group = [None, "a", "b"][int(rng.integers(3))]
        requests.append(Asked(f"{i}-{i:08x}", prompt, text, int(rng.integers(1, 40)), group))
    return requests


@pytest.mark.parametrize("seed", range(12))
def test_texts_and_counts_are_right_whatever_happens_to_the_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    requests = some_requests(rng, 30)
    machine, drafter, proposer = build(requests, seed, wrong=0.3)
    if seed % 2:
        # As relaxed verification does, which needs to know whose drafts it verifies.
        machine.before_sampling = proposer.follow
    waiting, running, answered = requests[::-1], [], {}
    while waiting or running:
        while waiting and len(running) < ROWS and rng.random() < 0.7:
            machine.add(waiting[-1])
            running.append(waiting.pop())
        kept = [asked for asked in running if rng.random() < 0.9]
        for asked in running:
            if asked not in kept:
                asked.read = 0
        machine.step([asked.name for asked in kept])
        for asked in [asked for asked in running if asked.done]:
            assert asked.output[: len(asked.expected)] == asked.expected
            running.remove(asked)
            del machine.requests[asked.name]
            if rng.random() < 0.5:
                answered |= proposer.rows.take([asked.name.partition("-")[0]])
    machine.step([])
    left = proposer.rows.take([asked.name.partition("-")[0] for asked in requests])
    assert not answered.keys() & left.keys(), "counts were given twice"
    answered |= left
    assert len(answered) == 30
    for asked in requests:
        counts = answered[asked.name.partition("-")[0]]
        own = len(asked.expected) - counts.accepted
        # Each step but the first adds one token of the model's own, unless the text ended within the draft.
        assert own - 1 <= counts.steps <= own
        assert counts.accepted <= counts.drafted
    total = proposer.totals
    assert total.drafted == sum(c.drafted for c in answered.values()) == machine.verified_tokens
    assert total.accepted == sum(c.accepted for c in answered.values()) > 0
    assert total.row_steps == sum(c.steps for c in answered.values())
    texts = [[token for token in asked.expected if token != STOP] for asked in requests]
    assert sorted(drafter.finished) == sorted(texts)


def test_a_row_that_moves_keeps_its_draft_and_a_preempted_request_loses_it() -> None:
    requests = [Asked(f"{i}-x", [10 + i], list(range(10, 50)), 30) for i in range(3)]
    machine, _drafter, proposer = build(requests, 0, wrong=0.0)
    for asked in requests:
        machine.add(asked)
    for _ in range(3):
        machine.step([asked.name for asked in requests])
    assert [len(asked.draft) for asked in requests] == [4, 4, 4]
    # 0 is preempted, so 2 moves into its row.
    machine.step(["1-x", "2-x"])
    assert machine.batch.req_ids == ["2-x", "1-x"]
    counts = proposer.rows.take(["0", "2"])
    assert counts["2"].accepted - counts["0"].accepted == 4
    assert counts["0"].drafted == counts["0"].accepted


def test_relaxed_tokens_are_counted_up_to_the_last_that_stands() -> None:
    rows = Rows(ROWS, LENGTH, VOCABULARY)
    state = SimpleNamespace(
        output_token_ids=[],
        sampling_params=SimpleNamespace(
            max_tokens=20, ignore_eos=False, stop_token_ids=[], all_stop_token_ids={STOP}, extra_args=None
        ),
    )
    batch = SimpleNamespace(req_ids=["a-1", "b-1"], num_prompt_tokens=np.array([2, 2]))
    rows.sync(batch, {"a-1": state, "b-1": state})
    tokens = np.full((ROWS, LENGTH), 11, np.int32)
    rows.settle(tokens, np.array([3, 3]), None)
    rows.draft(np.array([3, 3]))
    tokens[1, 4] = STOP
    verified = Verified(np.array([True, False, True, True, False, True]), np.array([3, 3]))
    # `a` has two accepted and one of its own; `b` has all accepted, and ends with the second.
    step = rows.settle(tokens, np.array([6, 7]), verified)
    assert step.accepted.tolist() == [2, 2]
    assert step.goes_on.tolist() == [True, False]
    assert rows.take(["a", "b"]) == {"a": Counts(3, 2, 1, 1), "b": Counts(3, 2, 1, 1)}


def test_quotations_are_followed_through_a_text() -> None:
    marks = np.zeros(VOCABULARY, bool)
    marks[20] = True
    rows = Rows(ROWS, LENGTH, VOCABULARY, marks)
    params = SimpleNamespace(
        max_tokens=20, ignore_eos=True, stop_token_ids=[], all_stop_token_ids={STOP}, extra_args=None
    )
    state = SimpleNamespace(output_token_ids=[], sampling_params=params)
    rows.sync(SimpleNamespace(req_ids=["a-1"], num_prompt_tokens=np.array([2])), {"a-1": state})
    tokens = np.full((ROWS, LENGTH), 11, np.int32)
    tokens[0, :6] = [20, 20, 11, 20, 11, 20]
    for length, inside in ((3, False), (4, True), (5, True), (6, False)):
        rows.settle(tokens, np.array([length]), None)
        assert rows.in_quotes[0] == inside, length


@pytest.mark.parametrize(("greedy_only", "room"), [(True, [17, 0]), (False, [17, 17])])
def test_a_request_that_samples_has_no_room_for_drafts_where_they_cannot_be_verified(
    greedy_only: bool, room: list[int]
) -> None:
    rows = Rows(ROWS, LENGTH, VOCABULARY, greedy_only=greedy_only)
    states = {
        name: SimpleNamespace(
            output_token_ids=[],
            sampling_params=SimpleNamespace(
                max_tokens=20,
                ignore_eos=True,
                stop_token_ids=[],
                all_stop_token_ids=set(),
                extra_args=None,
                temperature=temperature,
            ),
        )
        for name, temperature in (("greedy-1", 0.0), ("again-1", 0.7))
    }
    rows.sync(SimpleNamespace(req_ids=["greedy-1", "again-1"], num_prompt_tokens=np.array([2, 2])), states)
    rows.settle(np.full((ROWS, LENGTH), 11, np.int32), np.array([4, 4]), None)
    assert rows.room(2).tolist() == room


def busy_clock() -> StepClock:
    """A machine on which every token costs the same: drafts cannot pay."""
    return StepClock(StepTable((1, 2), (0.01, 0.02)), most=64)


def idle_clock() -> StepClock:
    """A machine on which tokens cost nothing: all drafts pay."""
    return StepClock(StepTable((1, 64), (0.01, 0.01)), most=64)


@pytest.mark.parametrize(("clock", "drafts"), [(busy_clock(), False), (idle_clock(), True), (None, True)])
def test_drafts_are_made_only_where_they_can_pay(clock: StepClock | None, drafts: bool) -> None:
    requests = [Asked(f"{i}-x", [10 + i], list(range(10, 50)), 30) for i in range(4)]
    machine, _drafter, proposer = build(requests, 0, wrong=0.0, clock=clock)
    # Time stands still, or the steps of this test would be taken for the machine's.
    proposer._timer = lambda: 0.0
    for asked in requests:
        machine.add(asked)
    machine.step([asked.name for asked in requests])
    assert all(bool(asked.draft) is drafts for asked in requests)


def test_the_belief_that_drafts_do_not_pay_is_tested_now_and_then() -> None:
    requests = [Asked(f"{i}-x", [10 + i], list(range(10, 50)) * 3, 60) for i in range(2)]
    machine, _drafter, proposer = build(requests, 0, wrong=0.0, clock=busy_clock())
    proposer._timer = lambda: 0.0
    for asked in requests:
        machine.add(asked)
    proposer.totals.steps = 60
    drafted = []
    for _ in range(8):
        machine.step([asked.name for asked in requests])
        drafted.append(sum(len(asked.draft) for asked in requests))
    assert drafted == [0, 0, 0, 2, 0, 0, 0, 0]


def test_before_it_is_installed_every_draft_is_empty() -> None:
    proposer = PoolProposer(SimpleNamespace(speculative_config=SimpleNamespace(num_speculative_tokens=4)))
    proposer.load_model(None)
    assert proposer.propose([[1], [2]], np.array([3, 3]), np.zeros((2, 8), np.int32)) == [[], []]
