"""`lorestream lift`: where the data come from, what is encoded once, and where the report goes."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adapters.config import AdapterConfig, CtrConfig
from adapters.lift.config import QUICK, MatrixConfig, TowerConfig
from augment.encode import EncoderConfig, TextEncoder
from augment.scope import Scope
from flows.config import load_config
from flows.run import closing_run
from warehouse.errors import ConfigError, UsageError
from warehouse.keys import digest
from warehouse.ledger import existing_ledger
from warehouse.store import replacing, write_json

log = logging.getLogger("lorestream")

Encode = Callable[[str, Sequence[str]], np.ndarray]
OUTPUT = Path("lift")


def matrix_config(quick: bool, **chosen: object) -> MatrixConfig:
    """The matrix that was asked for; what is None is left to `--quick` or the defaults."""
    return MatrixConfig.model_validate(
        (QUICK if quick else {}) | {name: value for name, value in chosen.items() if value is not None}
    )


def lift(
    config: Path, dataset: Path | None, knowledge: Path | None, out: Path | None, matrix: MatrixConfig, workers: int = 1
) -> dict[str, object]:
    """The report as one object. Cells, embeddings, `report.json` and `report.html` stand in `out`.

    With a dataset nothing of `config` is read; else the warehouse it names is measured, and by default `out` is the
    folder `lift` beside the warehouse.
    """
    # What takes seconds to import is not wanted by a command that only prints its help.
    from adapters.lift.matrix import Matrix, Progress
    from adapters.lift.report import html_page, report_of
    from adapters.lift.rerank import COMPARED_AT, kept_rerank

    longest = max(matrix.history_length, matrix.kar_history_length, matrix.long_history_length)
    if dataset is not None:
        from adapters.lift.movielens import movielens_data

        folder = out or OUTPUT
        encoder = TextEncoder(EncoderConfig(dtype="bfloat16"))
        texts = knowledge or dataset.parent / "knowledge"
        data = movielens_data(dataset, texts, cached_encode(encoder, folder / "embeddings"), longest, matrix.users)
    else:
        from adapters.lift.stored import stored_data

        if knowledge is not None:
            raise UsageError("--knowledge goes with --dataset; a warehouse holds its own knowledge.")
        loaded = load_config(config)
        existing_ledger(loaded.root)
        folder = out or loaded.base / OUTPUT
        matrix = as_configured(matrix, loaded.adapter)
        with closing_run(loaded, Scope()) as run:
            encode = cached_encode(run.encoder, folder / "embeddings")
            data = stored_data(config.resolve().parent.name, run.stored, run.labelled_events, encode, longest)

    def told(progress: Progress) -> None:
        cell = progress.cell
        auc = "no AUC" if progress.auc is None else f"AUC {progress.auc:.4f}"
        log.info(
            "%d/%d  %s %s %s seed %d: %s, %.1f s; %.0f min left",
            progress.done, progress.total, cell.protocol, cell.backbone, cell.arm, cell.seed, auc,
            progress.seconds, progress.left_s / 60,
        )  # fmt: skip

    cells = Matrix(data, matrix, folder)
    log.info("%d cells; those in %s are kept", len(cells.cells()), folder / "cells")
    cells.run(told, workers)
    rerank = None
    if "kar" in matrix.protocols:

        def told_of_lists(arm: str, seed: int, ndcg: float) -> None:
            log.info("re-ranking, %s seed %d: NDCG@%d %.4f", arm, seed, COMPARED_AT, ndcg)

        rerank = kept_rerank(cells, told_of_lists)
    report = report_of(cells, rerank)
    result: dict[str, Any] = report.model_dump(mode="json")
    write_json(folder / "report.json", result)
    with replacing(folder / "report.html") as temporary:
        temporary.write_text(html_page(report), encoding="utf-8")
    return {**result, "report": str(folder / "report.html")}


def as_configured(matrix: MatrixConfig, adapter: AdapterConfig) -> MatrixConfig:
    """The matrix with the CTR model and the adapter of a warehouse's `[adapter]` section: lift measures those.

    Raises ConfigError for an adapter whose layer the matrix does not have.
    """
    if adapter.form in ("mindspore", "laser"):
        raise ConfigError(
            f'`lorestream lift` measures adapters of the forms "whitened" and "kar", and adapter.form is '
            f'"{adapter.form}". Set another form for this measurement.'
        )
    ctr = CtrConfig.model_validate({name: getattr(adapter, name) for name in CtrConfig.model_fields})
    tower = TowerConfig(
        components=adapter.components,
        collaborative=adapter.collaborative,
        whitening=adapter.whitening,
        out_dim=adapter.out_dim,
        shared=adapter.shared,
        dedicated=adapter.dedicated,
        hidden=adapter.expert_hidden,
        dropout=adapter.expert_dropout,
        linear_path=adapter.linear_path,
        weight_decay=adapter.adapter_weight_decay,
        head_weight=adapter.knowledge_loss_weight,
    )
    return matrix.model_copy(update={"ctr": ctr, "tower": tower, "history_length": adapter.history_length})


def summary(report: dict[str, Any]) -> str:
    """The differences on all test samples, one a line, and where the rest stands."""
    lines = [f"{report['data']}: {report['cells']} cells, {report['missing']} missing", ""]
    for d in report["differences"]:
        if d["part"] != "all" or None in d["auc"].values():
            continue
        auc = d["auc"]
        lines.append(
            f"{d['protocol']:<11}{d['backbone']:<9}{d['arm'] + ' - ' + d['against']:<34}"
            f"{auc['value']:+.4f} AUC ({auc['low']:+.4f} to {auc['high']:+.4f})"
        )
    for kept in report["kept"]:
        share = kept["share"]
        if share["value"] is not None:
            lines.append(
                f"{kept['protocol']:<11}an adapter trained with {kept['frozen_with']}, then frozen, keeps "
                f"{share['value']:.0%} of the lift ({share['low']:.0%} to {share['high']:.0%}) on "
                f"{', '.join(kept['backbones'])}"
            )
    return "\n".join([*lines, "", *report["notes"], f"Tables and plots: {report['report']}"])


def cached_encode(encoder: TextEncoder, folder: Path) -> Encode:
    """Vectors of texts [n, d], made once per encoder and texts and kept in `folder`."""

    def encode(name: str, texts: Sequence[str]) -> np.ndarray:
        path = folder / f"{name}-{digest([encoder.encoder_id, list(texts)])[:16]}.npy"
        if path.exists():
            return np.asarray(np.load(path))
        log.info("%s: encoding %d texts", name, len(texts))
        vectors = encoder.encode(list(texts))
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.save(file, vectors)
        return vectors

    return encode
