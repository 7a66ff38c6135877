"""Texts made elsewhere as rows of `requests` and `knowledge`, so that they meet the same gate, encoder and ladder.

Everything here is a function of its arguments: the caller reads the warehouse and writes the rows.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

import pyarrow as pa

from augment.interchange.batch import BatchText
from augment.interchange.faults import FaultReason, ImportFault
from augment.interchange.subjects import Subject, Subjects
from augment.interchange.texts import ImportedText
from augment.scope import EngineIdentity
from warehouse import keys
from warehouse.answers import IMPORTED
from warehouse.schemas import KNOWLEDGE, REQUESTS

# Nobody here wrote the prompts of imported texts, so they have no version of ours.
PROMPT_VERSION = "import"

# What is not known of a text made elsewhere: it is taken as whole, for the gate to judge.
_FINISHED = "stop"


class Judged(Protocol):
    """What a quality gate says of a text."""

    @property
    def status(self) -> str: ...

    @property
    def reason(self) -> str | None: ...


Judge = Callable[[str, str, str, str], Judged]
"""Called with kind of knowledge, prompt (empty where it is not known), text and finish reason."""


@dataclass(frozen=True)
class Accepted:
    """New rows, and what became of everything that was read.

    `accepted` counts texts by kind of knowledge, `unchanged` those among them that the warehouse held already;
    `statuses` counts the gate's verdicts on the new ones.
    """

    requests: pa.Table
    knowledge: pa.Table
    accepted: dict[str, int] = field(default_factory=dict)
    unchanged: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    faults: tuple[ImportFault, ...] = ()


def import_engine_id(model: str) -> str:
    """The engine id of texts that `model` wrote elsewhere, with a sampling that nobody told."""
    return IMPORTED + keys.engine_id(model, "", {}, "strict")


def import_key(text: ImportedText, subject: Subject) -> str:
    """The request key of an imported text.

    It names the text beside what was asked: elsewhere one prompt may have got several answers (REKI's files hold such),
    and a text that was written anew must not be taken for the old one.
    """
    asked = {
        "entity": str(text.entity),
        "id": subject.entity_id,
        "prompt": text.prompt,
        "source": subject.source_digest,
        "text": keys.digest(text.text),
    }
    return keys.request_key(keys.canonical_json(asked).decode(), text.model, "", {}, "strict")


def accept_texts(
    texts: Iterable[ImportedText | ImportFault],
    subjects: Subjects,
    asked: Collection[str],
    answered: Collection[str],
    judge: Judge,
    now: datetime,
) -> Accepted:
    """Rows for every text whose entity is among `subjects`, except those that the warehouse has.

    `asked` and `answered` are the keys in `requests` and in `knowledge`. They count apart, so that an import which
    ended between writing the one and the other is completed by the next. A row of `knowledge` bears the time at which
    its text was written, where the file says it.
    """
    requests: list[dict[str, object]] = []
    knowledge: list[dict[str, object]] = []
    faults: list[ImportFault] = []
    accepted, statuses = Counter[str](), Counter[str]()
    unchanged = 0
    for text in texts:
        if isinstance(text, ImportFault):
            faults.append(text)
            continue
        subject = subjects.get((text.entity, text.entity_id))
        if subject is None:
            faults.append(ImportFault(text.row, FaultReason.UNKNOWN_ID, f"{text.entity} {text.entity_id}"))
            continue
        key, kind = import_key(text, subject), text.entity.knowledge
        accepted[str(kind)] += 1
        unchanged += key in asked and key in answered
        if key not in asked:
            requests.append(
                {
                    "request_key": key,
                    "kind": str(kind),
                    "entity_id": subject.entity_id,
                    "partition_no": subject.partition_no,
                    "as_of": subject.as_of,
                    "prompt": text.prompt or "",
                    "prompt_version": PROMPT_VERSION,
                    "engine_id": import_engine_id(text.model),
                    "source_digest": subject.source_digest,
                    "created_at": now,
                }
            )
        if key not in answered:
            verdict = judge(kind, text.prompt or "", text.text, _FINISHED)
            statuses[str(verdict.status)] += 1
            knowledge.append(
                {
                    "request_key": key,
                    "text": text.text,
                    "status": str(verdict.status),
                    "finish_reason": _FINISHED,
                    # Not counted by whoever made it, and not paid for here.
                    "tokens_in": 0,
                    "tokens_out": 0,
                    "model": text.model,
                    "sampling": "{}",
                    "verification": "strict",
                    "prompt_version": PROMPT_VERSION,
                    "reason": verdict.reason,
                    "created_at": text.created or now,
                }
            )
    return _accepted(requests, knowledge, accepted, unchanged, statuses, faults)


def accept_batch(
    results: Iterable[BatchText | ImportFault],
    planned: pa.Table,
    engine: EngineIdentity,
    answered: Collection[str],
    judge: Judge,
    now: datetime,
) -> Accepted:
    """Rows of `knowledge` for the answers of a batch, as if `engine` had given them.

    `planned` holds the engine's calls (columns request_key, kind, prompt, prompt_version), those in `answered` too, so
    that an answer which was taken in before is told from one that nobody asked for.
    """
    names = ("request_key", "kind", "prompt", "prompt_version")
    columns = (planned.column(name).to_pylist() for name in names)
    calls = {key: (kind, prompt, version) for key, kind, prompt, version in zip(*columns, strict=True)}
    sampling = keys.canonical_json(dict(engine.sampling)).decode()
    knowledge: list[dict[str, object]] = []
    faults: list[ImportFault] = []
    accepted, statuses = Counter[str](), Counter[str]()
    unchanged = 0
    for result in results:
        if isinstance(result, ImportFault):
            faults.append(result)
            continue
        if result.request_key not in calls:
            faults.append(ImportFault(result.row, FaultReason.NOT_PLANNED, result.request_key))
            continue
        kind, prompt, prompt_version = calls[result.request_key]
        accepted[kind] += 1
        if result.request_key in answered:
            unchanged += 1
            continue
        verdict = judge(kind, prompt, result.text, result.finish_reason)
        statuses[str(verdict.status)] += 1
        knowledge.append(
            {
                "request_key": result.request_key,
                "text": result.text,
                "status": str(verdict.status),
                "finish_reason": result.finish_reason,
                "tokens_in": result.tokens_in,
                "tokens_out": result.tokens_out,
                "model": f"{engine.model}@{engine.revision}",
                "sampling": sampling,
                "verification": engine.verification,
                "prompt_version": prompt_version,
                "attempt": 0,
                "reason": verdict.reason,
                "created_at": now,
            }
        )
    return _accepted([], knowledge, accepted, unchanged, statuses, faults)


def _accepted(
    requests: list[dict[str, object]],
    knowledge: list[dict[str, object]],
    accepted: Counter[str],
    unchanged: int,
    statuses: Counter[str],
    faults: list[ImportFault],
) -> Accepted:
    return Accepted(
        pa.Table.from_pylist(requests, REQUESTS),
        pa.Table.from_pylist(knowledge, KNOWLEDGE),
        dict(accepted),
        unchanged,
        dict(statuses),
        tuple(faults),
    )
