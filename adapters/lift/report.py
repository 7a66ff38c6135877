"""The report of a matrix: one object for `--json`, and one self-contained HTML page with plots and tables."""

import html
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version

from pydantic import BaseModel

from adapters.lift.compare import ArmMeasure, Difference, Interval, Kept, compare
from adapters.lift.config import ARMS, Arm, MatrixConfig, Protocol
from adapters.lift.matrix import Matrix
from adapters.lift.plots import interval_plot
from adapters.lift.rerank import RerankReport

PROTOCOLS: dict[Protocol, str] = {
    "kar": "KAR's protocol: users are split; the events that the LLM was shown are no targets",
    "time": "Time: training before validation before test; texts as of each event",
    "cold_items": "Cold items: no event of a tested item in training or in any history",
    "cold_users": "Cold users: the first events of users without a training event",
}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1080px; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.5rem } h2 { margin-top: 2.5rem; font-size: 1.2rem } h3 { font-size: 1rem; margin-bottom: .3rem }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-size: 13px }
th, td { padding: 2px 10px; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }
th:first-child, td:first-child { text-align: left } .up { color: #0a6b35 } .down { color: #b3261e }
svg text { font: 12px system-ui, sans-serif } details { margin: .5rem 0 } .note { color: #555 }
"""


class MatrixReport(BaseModel, frozen=True, extra="forbid"):
    """All that was measured. `samples` counts training, validation and test samples by protocol.

    `missing` cells are still to be fitted; `seconds` is what the finished ones took, by protocol and backbone.
    `versions` names what computed the report, which may not be what fitted older cells.
    """

    data: str
    events: int
    users: int
    users_of: int
    items: int
    config: MatrixConfig
    notes: tuple[str, ...]
    samples: dict[Protocol, dict[str, int]]
    cells: int
    missing: int
    versions: dict[str, str]
    seconds: dict[str, float]
    mean_cell_s: float | None
    measures: tuple[ArmMeasure, ...]
    differences: tuple[Difference, ...]
    kept: tuple[Kept, ...] = ()
    rerank: RerankReport | None = None

    def difference(self, protocol: Protocol, backbone: str, arm: Arm, against: Arm, part: str = "all") -> Difference:
        """One of `differences`; KeyError where it was not measured."""
        wanted = (protocol, backbone, arm, against, part)
        for found in self.differences:
            if (found.protocol, found.backbone, found.arm, found.against, found.part) == wanted:
                return found
        raise KeyError(wanted)


def report_of(matrix: Matrix, rerank: RerankReport | None = None) -> MatrixReport:
    """The report of the cells that are done."""
    measures, differences, kept = compare(matrix)
    results = [result for cell in matrix.cells() if (result := matrix.find(cell)) is not None]
    seconds: dict[str, float] = {}
    samples: dict[Protocol, dict[str, int]] = {}
    for result in results:
        name = f"{result.protocol} {result.backbone}"
        seconds[name] = seconds.get(name, 0.0) + result.seconds
        samples[result.protocol] = {
            "train": result.train_samples,
            "validation": result.valid_samples,
            "test": result.test_samples,
        }
    present = matrix.data.samples
    users = len(set(present.user.tolist()))
    notes = list(matrix.data.notes)
    if users < len(present.users):
        sample = f"A random sample of {users:,} of {len(present.users):,} users"
        teaching = matrix.config.train_users
        notes.insert(0, sample + (f", of whom {teaching:,} may teach." if teaching else "."))
    return MatrixReport(
        data=matrix.data.name,
        events=len(present),
        users=users,
        users_of=len(present.users),
        items=len(set(present.item.tolist())),
        config=matrix.config,
        notes=tuple(notes),
        samples=samples,
        cells=len(results),
        missing=len(matrix.cells()) - len(results),
        versions=_versions(),
        seconds=seconds,
        mean_cell_s=sum(seconds.values()) / len(results) if results else None,
        measures=tuple(measures),
        differences=tuple(differences),
        kept=tuple(kept),
        rerank=rerank,
    )


def _versions() -> dict[str, str]:
    found = {name: version(name) for name in ("deepctr-torch", "torch", "numpy")}
    machine = f"{platform.machine()}, {os.cpu_count()} processors"
    return {"python": platform.python_version(), **found, "machine": machine}


def html_page(report: MatrixReport) -> str:
    """The report as one HTML document that loads nothing else."""
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>Lift: {html.escape(report.data)}</title>",
        f"<style>{STYLE}</style><h1>What knowledge adds: {html.escape(report.data)}</h1>",
        f"<p>{report.events:,} events of {report.users:,} users on {report.items:,} items. {report.cells} cells "
        f"fitted, {report.missing} missing, {sum(report.seconds.values()) / 60:.1f} minutes of fitting. Differences "
        f"are means over {len(report.config.seeds)} seeds with 95 % intervals of a paired bootstrap over users and "
        f"seeds ({report.config.bootstrap_draws} draws); green and red ones leave out zero.</p>",
        "<ul class=note>" + "".join(f"<li>{html.escape(note)}</li>" for note in report.notes) + "</ul>",
        "<details><summary>The arms</summary>"
        + _table(("arm", "what its model knows"), list(ARMS.items()))
        + "</details>",
    ]
    if report.kept:
        parts.append(_kept(report.kept))
    for protocol in report.config.protocols:
        if protocol in report.samples:
            parts += _protocol(report, protocol)
    if report.rerank is not None:
        parts += _rerank(report.rerank)
    settings = report.config.model_dump_json(indent=2)
    parts.append(f"<details><summary>Settings</summary><pre>{html.escape(settings)}</pre></details></html>\n")
    return "\n".join(parts)


def _protocol(report: MatrixReport, protocol: Protocol) -> list[str]:
    counts = report.samples[protocol]
    sizes = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    parts = [f"<h2>{html.escape(PROTOCOLS[protocol])}</h2><p class=note>Samples: {sizes}.</p>"]
    for backbone in report.config.backbones:
        here = [d for d in report.differences if d.protocol == protocol and d.backbone == backbone]
        rows = [m for m in report.measures if (m.protocol, m.backbone, m.part) == (protocol, backbone, "all")]
        if not rows:
            continue
        against = {d.arm: d for d in here if d.part == "all" and d.against == "base"}
        parts.append(f"<h3>{backbone}</h3>")
        parts.append(
            _table(
                (
                    "arm",
                    "AUC",
                    "sd of seeds",
                    "AUC less base",
                    "relative",
                    "GAUC",
                    "LogLoss",
                    "LogLoss less base",
                    "ECE",
                ),
                [_measure_row(m, against.get(m.arm)) for m in rows],
            )
        )
        if against:
            parts.append(interval_plot("AUC less base", [(arm, d.auc) for arm, d in against.items()]))
        controls = [d for d in here if d.part == "all" and d.against != "base"]
        if controls:
            parts.append(interval_plot("AUC over a control", [(f"{d.arm} - {d.against}", d.auc) for d in controls]))
        parts.append(_slices(here, report.measures))
    return parts


def _measure_row(m: ArmMeasure, less: Difference | None) -> tuple[str, ...]:
    return (
        m.arm,
        _number(m.auc),
        _number(m.auc_spread),
        _interval(less.auc) if less else "",
        f"{less.auc_relative:+.2%}" if less and less.auc_relative is not None else "",
        _number(m.gauc),
        _number(m.logloss),
        _interval(less.logloss, less_is_better=True) if less else "",
        _number(m.calibration_error),
    )


def _slices(differences: Sequence[Difference], measures: Sequence[ArmMeasure]) -> str:
    chosen = [
        d for d in differences if d.part != "all" and (d.arm, d.against) in (("full", "base"), ("full", "titles"))
    ]
    if not chosen:
        return ""
    size = {(m.protocol, m.backbone, m.part): m for m in measures if m.arm == "base"}
    rows = []
    for d in chosen:
        base = size.get((d.protocol, d.backbone, d.part))
        rows.append(
            (
                d.part,
                f"{base.samples:,}" if base else "",
                _number(base.auc if base else None),
                f"{d.arm} - {d.against}",
                _interval(d.auc),
                _interval(d.logloss, less_is_better=True),
            )
        )
    header = ("slice", "samples", "AUC of base", "difference", "AUC", "LogLoss")
    return "<details open><summary>Slices</summary>" + _table(header, rows) + "</details>"


def _kept(kept: Sequence[Kept]) -> str:
    rows = []
    for k in kept:
        share = k.share
        told = "n/a" if share.value is None else f"{share.value:.0%} ({share.low or 0:.0%} to {share.high or 0:.0%})"
        rows.append((k.protocol, ", ".join(k.backbones), _interval(k.joint), _interval(k.frozen), told))
    with_model = kept[0].frozen_with
    title = f"<h2>What an adapter that was trained with {with_model} keeps on other models</h2>"
    return title + _table(("protocol", "models", "trained jointly, AUC less base", "frozen", "kept"), rows)


def _rerank(report: RerankReport) -> list[str]:
    rows = [
        (arm, *(_number(value) for value in at.values()), _interval(report.differences[arm]) if arm != "base" else "")
        for arm, at in report.ndcg.items()
    ]
    header = ("arm", *(f"NDCG@{k}" for k in next(iter(report.ndcg.values()))), f"NDCG@{report.compared_at} less base")
    text = f"{report.lists:,} lists of {report.length}, {len(report.seeds)} seeds. {html.escape(report.model)}"
    return [f"<h2>Re-ranking, as in KAR</h2><p class=note>{text}</p>", _table(header, rows)]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells may hold markup that `_interval` made; all other text is escaped."""
    head = "".join(f"<th>{html.escape(name)}</th>" for name in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{c if c.startswith('<span') else html.escape(c)}</td>" for c in row) + "</tr>"
        for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"


def _interval(interval: Interval, less_is_better: bool = False) -> str:
    if interval.value is None or interval.low is None or interval.high is None:
        return "n/a"
    good, bad = interval.is_above_zero, interval.is_below_zero
    if less_is_better:
        good, bad = bad, good
    kind = "up" if good else "down" if bad else ""
    return f"<span class='{kind}'>{interval.value:+.4f} ({interval.low:+.4f} to {interval.high:+.4f})</span>"
