"""The quality gate's verdicts on real LLM knowledge: counts per corpus and status, and texts judged per second.

    python benchmarks/quality_corpora.py [--json] [--data FOLDER] [--half tuned|held-out] [--sample N]

The corpora are those of `shared/data/knowledge` (REKI's group texts by GPT-3.5, CoLaKG's item texts by DeepSeek). Gate
and config are the defaults. Asked about are the nine factors that REKI's prompts name, and none for CoLaKG, whose
prompts are not at hand: the movie's title stands for them. The catalogue is MovieLens-1M's titles and genres, and for
Amazon Books the titles that the prompts name, parted at commas.

Thresholds and phrases were tuned on one half of the texts (`tuned`, by a hash of corpus and id) and are reported on the
other. `hedging` counts texts with at least one sentence that refuses, makes excuses, hedges or mends the question,
`declining` those with one that refuses, makes excuses or mends it ("these are books, not movies").
`--sample N` lists N rejected and N/2 accepted texts of the group corpora by file and id, for reading them; it prints no
text, and neither do the counts.
"""

import argparse
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from zlib import crc32

import pyarrow.parquet as pq

from augment.quality.config import QualityConfig
from augment.quality.gate import QualityGate, Verdict
from augment.quality.refusal import load_phrases
from augment.quality.status import Status
from augment.quality.words import split_sentences
from prompts.hygiene import article_first

SHARED = Path(__file__).parents[2] / "shared" / "data"
FACTORS = (
    "genre",
    "author",
    "writing style",
    "theme",
    "setting",
    "length and complexity",
    "time period",
    "literary quality",
    "critical acclaim",
)
COLLECTIVE = ("ml-1m-collective", "amazon-books-collective")
_LISTED = re.compile(r"consisting of (.*?),?\s+please describe", re.DOTALL)


@dataclass(frozen=True)
class Sample:
    """One stored answer: `entity` is the corpus's own word for whom it is about, `asked` is false for an empty list."""

    corpus: str
    entity: str
    id: str
    prompt: str
    text: str
    asked: bool

    @property
    def half(self) -> str:
        return "held-out" if crc32(f"{self.corpus[:2]}/{self.entity}/{self.id}".encode()) % 2 else "tuned"

    @property
    def row(self) -> str:
        """The line of the report on which it counts."""
        return f"{self.corpus}/{self.entity}" + ("" if self.asked else " (asked about nothing)")


@dataclass(frozen=True)
class Row:
    """Counts of one line of the report."""

    texts: int
    hedging: int
    declining: int
    declining_rejected: int
    statuses: dict[str, int]
    faults: dict[str, int]


def read_samples(data: Path) -> tuple[list[Sample], set[str]]:
    """Every answer, and the names of the catalogues."""
    titles = {row["item_id"]: row for row in pq.read_table(data / "ml-1m" / "movies.parquet").to_pylist()}
    names = {row["title"] for row in titles.values()}
    samples = []
    for corpus in COLLECTIVE:
        for row in pq.read_table(data / "knowledge" / f"{corpus}.parquet").to_pylist():
            listed = _LISTED.search(row["prompt"])
            asked = bool(listed and listed[1].strip())
            if listed and corpus.startswith("amazon"):
                names |= set(_titles(listed[1]))
            samples.append(Sample(corpus, row["entity"], str(row["group_id"]), row["prompt"], row["text"], asked))
    for row in pq.read_table(data / "knowledge" / "ml-1m-item-colakg.parquet").to_pylist():
        title = article_first(titles[row["item_id"]]["title"])
        samples.append(Sample("ml-1m-item-colakg", "item", str(row["item_id"]), f'"{title}"', row["text"], True))
    return samples, names


def _titles(listed: str) -> Iterator[str]:
    """Titles of a list parted at commas; as a title may hold one, neighbours together too."""
    parts = listed.split(", ")
    yield from parts
    yield from map(", ".join, pairwise(parts))


def judge(gate: QualityGate, samples: Sequence[Sample]) -> tuple[list[Verdict], float]:
    """One verdict per sample, and the texts judged per second of processor time."""
    started = time.process_time()
    verdicts = [
        gate.judge("item_facts" if "colakg" in s.corpus else "group", s.prompt, s.text, "stop") for s in samples
    ]
    return verdicts, len(samples) / (time.process_time() - started)


def summarise(samples: Sequence[Sample], verdicts: Sequence[Verdict]) -> dict[str, Row]:
    """A row per corpus, entity and whether anything was asked."""
    rows = {}
    for name in dict.fromkeys(sample.row for sample in samples):
        texts = [s.text for s in samples if s.row == name]
        mine = [v for s, v in zip(samples, verdicts, strict=True) if s.row == name]
        declining = [v for text, v in zip(texts, mine, strict=True) if _declines(text)]
        rows[name] = Row(
            texts=len(mine),
            hedging=sum(v.measures.get("hedged_share", 0) > 0 for v in mine),
            declining=len(declining),
            declining_rejected=sum(v.status != Status.OK for v in declining),
            statuses=dict(Counter(str(v.status) for v in mine)),
            faults=dict(Counter(v.reason.split(" is ")[0] for v in mine if v.reason)),
        )
    return rows


def _declines(text: str) -> bool:
    declining = {"refuses", "excuses", "corrects"}
    return any(not declining.isdisjoint(load_phrases().classes(words)) for words in split_sentences(text))


def draw(samples: Sequence[Sample], verdicts: Sequence[Verdict], count: int) -> list[tuple[Sample, Verdict]]:
    """`count` rejected and half as many accepted texts of the groups that were asked about something, at random."""
    pairs = [(s, v) for s, v in zip(samples, verdicts, strict=True) if s.asked and s.corpus in COLLECTIVE]
    rejected = [pair for pair in pairs if pair[1].status != Status.OK]
    accepted = [pair for pair in pairs if pair[1].status == Status.OK]
    rng = random.Random(0)
    return rng.sample(rejected, min(count, len(rejected))) + rng.sample(accepted, min(count // 2, len(accepted)))


def main() -> None:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--data", type=Path, default=SHARED)
    parser.add_argument("--half", choices=("tuned", "held-out"))
    parser.add_argument("--sample", type=int, default=0)
    args = parser.parse_args()
    if not (args.data / "knowledge").is_dir():
        sys.exit(f"There is no {args.data / 'knowledge'}. Name the folder that holds it and ml-1m with --data.")
    samples, names = read_samples(args.data)
    samples = [s for s in samples if args.half in (None, s.half)]
    gate = QualityGate(QualityConfig(), {"group": FACTORS}, names)
    verdicts, rate = judge(gate, samples)
    rows = summarise(samples, verdicts)
    drawn = [
        {"file": s.corpus, "entity": s.entity, "id": s.id, "status": str(v.status), "reason": v.reason}
        for s, v in draw(samples, verdicts, args.sample)
    ]
    if args.json:
        report = {name: vars(row) for name, row in rows.items()}
        print(json.dumps({"texts_per_s": round(rate), "half": args.half, "rows": report, "sample": drawn}))
        return
    for name, row in rows.items():
        counts = ", ".join(f"{status} {count}" for status, count in sorted(row.statuses.items()))
        print(f"{name}: {row.texts} texts; {counts}; by {row.faults}")
        print(f"    {row.hedging} hedging, {row.declining} declining, of which {row.declining_rejected} rejected")
    for line in drawn:
        print(*line.values(), sep="\t")
    print(f"{rate:,.0f} texts/s")


if __name__ == "__main__":
    main()
