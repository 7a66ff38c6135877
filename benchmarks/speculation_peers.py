"""The rivals of `speculation_replay.py`, each drafting for recorded texts: SuffixDecoding, vLLM's n-gram, LASER's tree.

A step emits what of its draft equals the recorded text, and one token more.
"""

import json
import os
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

TREE_NODES, TREE_DEPTH = 63, 12
Node = tuple[int, ...]


@dataclass(frozen=True)
class Text:
    """A recorded answer: tokens of prompt and text, and its group."""

    prompt: NDArray[np.int32]
    text: NDArray[np.int32]
    group: str


@dataclass
class Count:
    """Steps, drafted and emitted tokens, and steps with an accepted token."""

    steps: int = 0
    drafted: int = 0
    emitted: int = 0
    hits: int = 0

    def step(self, draft: Sequence[int], rest: Sequence[int]) -> int:
        """Tokens that the step emits, after counting them."""
        accepted = 0
        while accepted < min(len(draft), len(rest)) and draft[accepted] == rest[accepted]:
            accepted += 1
        emitted = min(accepted + 1, len(rest))
        self.steps += 1
        self.drafted += len(draft)
        self.emitted += emitted
        self.hits += accepted > 0
        return emitted

    def figures(self) -> dict[str, float]:
        return {
            "drafted_per_step": round(self.drafted / self.steps, 3),
            "tokens_per_step": round(self.emitted / self.steps, 4),
            "hit_rate": round(self.hits / self.steps, 3),
        }


def replay_suffix(
    cache: Any, texts: Sequence[Text], setting: tuple[int, float, float], keep: bool, depth: int
) -> tuple[Count, list[float]]:
    """What SuffixDecoding does with `texts`; `keep` lets them stay in its cache. `cache` None: own text only."""
    from arctic_inference.suffix_decoding import SuffixDecodingCache

    most, factor, least = setting
    local = cache is None
    if local:
        cache = SuffixDecodingCache(max_tree_depth=depth, max_cached_requests=0)
    count, seconds = Count(), []
    for number, text in enumerate(texts):
        whole = np.concatenate([text.prompt, text.text])
        listed = whole.tolist()
        at = len(text.prompt)
        cache.start_request(number, whole[:at])
        while at < len(whole):
            began = time.perf_counter()
            draft = cache.speculate(number, whole[max(0, at - depth) : at], most, factor, 0.0, least).token_ids
            seconds.append(time.perf_counter() - began)
            emitted = count.step(draft, listed[at : at + len(draft) + 1])
            cache.add_active_response(number, whole[at : at + emitted])
            at += emitted
        cache.stop_request(number)
        if not local and not keep:
            cache.evict_cached_response(number)
    return count, seconds


def warm_suffix(texts: Sequence[Text], depth: int) -> Any:
    """SuffixDecoding's cache with the outputs of `texts`; None where the package is missing."""
    try:
        from arctic_inference.suffix_decoding import SuffixDecodingCache
    except ImportError:
        return None
    cache = SuffixDecodingCache(max_tree_depth=depth, max_cached_requests=-1)
    for number, text in enumerate(texts):
        cache.start_request(("pool", number), text.prompt)
        cache.add_active_response(("pool", number), text.text)
        cache.stop_request(("pool", number))
    return cache


def forked(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `work` gives in a copy of this process.

    Removing a text from SuffixDecoding's tree does not undo adding it (seen in 0.3.0: a second pass over the same texts
    accepts more), so each setting gets an untouched tree.
    """
    reader, writer = os.pipe()
    if not (child := os.fork()):
        os.close(reader)
        with os.fdopen(writer, "w") as out:
            out.write(json.dumps(work()))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as sent:
        answer = sent.read()
    if os.waitpid(child, 0)[1] or not answer:
        raise RuntimeError("A forked replay ended early; run it with --quick or more memory.")
    found: dict[str, Any] = json.loads(answer)
    return found


def replay_ngram(texts: Sequence[Text], n: int, k: int) -> Count:
    """vLLM's `ngram`: the earliest place in the own text that has the last `n` tokens, and the `k` after it."""
    count = Count()
    for text in texts:
        whole = [*text.prompt.tolist(), *text.text.tolist()]
        first: dict[tuple[int, ...], int] = {}
        indexed, at = n, len(text.prompt)
        while at < len(whole):
            # Only places with a follower: the last one is the context itself.
            while indexed < at:
                first.setdefault(tuple(whole[indexed - n : indexed]), indexed)
                indexed += 1
            place = first.get(tuple(whole[at - n : at]))
            draft = whole[place : min(place + k, at)] if place is not None else []
            at += count.step(draft, whole[at : at + len(draft) + 1])
    return count


class AuthorsTree:
    """LASER's retrieval by plain counting: the last two tokens, else the last one; a tree of at most 63 drafts.

    Continuations of the pool's texts up to 13 tokens are counted under each root; prompt counts sort before all others
    (`score`). The slow oracle of `../shared/reference/retrieval-speculative-decoding.md`, sections 1 and 2.
    """

    def __init__(self, texts: Sequence[Text], stop: set[int]) -> None:
        self.stop = stop
        self.streams = [text.text.tolist() for text in texts]
        self.counted: dict[tuple[int, int | None], Counter[Node]] = {}
        self.places: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for number, stream in enumerate(self.streams):
            for at, token in enumerate(stream):
                self.places[token].append((number, at + 1))

    def paths(self, own: list[int], start: int) -> list[list[int]]:
        """Root-to-node paths of the draft tree for a text whose prompt ends at `start`, in depth-first order."""
        last, before = own[-1], own[-2]
        found = self._tree(own, start, before, last)
        if len(found) + 1 < TREE_DEPTH and last not in self.stop:
            found = self._tree(own, start, last, None) or found
        return found

    def _tree(self, own: list[int], start: int, root: int, then: int | None) -> list[list[int]]:
        key = root, then
        if key not in self.counted:
            self.counted[key] = Counter()
            for number, at in self.places.get(root, ()):
                self._count(self.counted[key], self.streams[number][at : at + TREE_DEPTH + 1], then)
        outputs = self.counted[key].copy()
        prompt: Counter[Node] = Counter()
        for at in range(1, len(own)):
            if own[at - 1] == root:
                # A window of the output is inserted once it is whole, those of the prompt at the start.
                if at <= start - 1:
                    self._count(prompt, own[at : min(at + TREE_DEPTH + 1, start)], then)
                elif at + TREE_DEPTH + 1 <= len(own) and root not in self.stop:
                    self._count(outputs, own[at : at + TREE_DEPTH + 1], then)
        score = {node: (1 - 1e-4) * prompt[node] + 1e-4 * outputs[node] for node in outputs.keys() | prompt.keys()}
        if len(score) > TREE_NODES:
            enough = sorted(outputs.values(), reverse=True)[TREE_NODES // 2]
            kept = {node for node in score if outputs[node] >= enough}
            rest = sorted((node for node in score if node not in kept), key=lambda node: (-score[node], node))
            allowed = kept | set(rest[: max(0, TREE_NODES - len(kept))])
        else:
            allowed = set(score)
        children: dict[Node, list[Node]] = defaultdict(list)
        for node in allowed:
            children[node[:-1]].append(node)
        order: list[list[int]] = []
        stack: list[Node] = [()]
        while stack and len(order) < TREE_NODES:
            node = stack.pop()
            if node:
                order.append(list(node))
            stack += sorted(children[node], key=lambda child: (score[child], child[-1]))
        return order

    @staticmethod
    def _count(counts: "Counter[Node]", window: list[int], then: int | None) -> None:
        if then is not None:
            if not window or window[0] != then:
                return
            window = window[1:]
        for end in range(1, min(len(window), TREE_DEPTH) + 1):
            counts[tuple(window[:end])] += 1


def replay_tree(tree: AuthorsTree, texts: Sequence[Text]) -> Count:
    """What LASER's tree does with `texts` under its strict rule: the longest accepted branch counts."""
    count = Count()
    for text in texts:
        whole = [*text.prompt.tolist(), *text.text.tolist()]
        at = len(text.prompt)
        while at < len(whole):
            paths = tree.paths(whole[:at], len(text.prompt))
            accepted = max((len(path) for path in paths if path == whole[at : at + len(path)]), default=0)
            emitted = count.step(whole[at : at + accepted], whole[at : at + accepted + 1])
            count.drafted += len(paths) - accepted
            at += emitted
    return count
