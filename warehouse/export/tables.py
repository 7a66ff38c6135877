"""Exports: files that other libraries load, each a function of one snapshot (and a training cut-off) alone.

A static table by id shows every sample the same knowledge, the future of its event included. Give `at`, the end of
the training data's events, and export one table per cut-off; its files are named by it. Feast's holds all rows and is
joined by time, so that there the cut-off only leaves rows out.
"""

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from warehouse.errors import UsageError
from warehouse.export.feast import write_feast
from warehouse.export.numeric import write_fuxictr, write_npy
from warehouse.export.text import write_easyrec, write_recbole
from warehouse.export.vectors import Vectors, newest_vectors
from warehouse.schemas import FEATURES
from warehouse.snapshot import Snapshot
from warehouse.store import write_json

Format = Literal["fuxictr", "recbole", "npy", "easyrec", "feast"]

_BY_ID: Mapping[Format, Callable[[Path, Vectors, str], list[Path]]] = {
    "fuxictr": write_fuxictr,
    "recbole": write_recbole,
    "npy": write_npy,
    "easyrec": write_easyrec,
}

# How each library is told of its files; {side}, {dim} and {cut} are filled in.
_USE: Mapping[Format, str] = {
    "fuxictr": "feature {side}_id: pretrained_emb: {side}_augment{cut}.npz, pretrain_dim: {dim}, pretrain_usage: "
    "concat (or init, sum)",
    "recbole": "additional_feat_suffix: [{side}emb{cut}], load_col.{side}emb{cut}: [{side[0]}id, {side}_emb], "
    "alias_of_{side}_id: [{side[0]}id], preload_weight: {{{side[0]}id: {side}_emb}}",
    "npy": "torch.nn.Embedding.from_pretrained(torch.from_numpy(np.load('{side}_matrix{cut}.npy')), padding_idx=0), "
    "rows by {side}_ids{cut}.parquet",
    "easyrec": "join {side}_augment{cut}.csv to your samples by {side}_id, then feature_type: RawFeature, "
    "separator: '|', raw_input_dim: {dim}",
    "feast": "FileSource(path='{side}_features{cut}.parquet', timestamp_field='event_timestamp', "
    "created_timestamp_column='created_timestamp'), Field('{side}_augment', Array(Float32))",
}


def export_snapshot(
    root: Path, snapshot: Snapshot, to: Format, out: Path, at: datetime | None = None
) -> dict[str, object]:
    """What was written to the folder `out`: per table the files, rows, vector length, and how to load them.

    The same is kept there as `lorestream-<format><cut>.json`. Files of the same name are replaced, each in one step.
    A table without a vector before `at` is left out.
    Raises UsageError for an unknown format, an `out` that is a file, lies in the warehouse or cannot be made, an id
    that the format cannot hold, and when no table has a vector; MissingLibrary where numpy is needed and absent.
    """
    if to not in get_args(Format):
        raise UsageError(f"There is no export to {to!r}; it is one of {', '.join(get_args(Format))}.")
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file. Name a folder: an export is one file or more per table.")
    if out.resolve().is_relative_to(root.resolve()):
        raise UsageError(
            f"{out} lies in the warehouse {root}, whose files an export could replace. Name another folder."
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{out} cannot be made: {error.strerror}. Name a folder that you may write to.") from error
    cut = _cut(at)
    tables: dict[str, object] = {}
    for table in FEATURES:
        files, dim = snapshot.files(root, table), snapshot.augment_dim(table)
        side = table.removesuffix("_features")
        if to == "feast":
            written = _feast(out, table, files, at, cut) if files else None
        else:
            written = _by_id(out, newest_vectors(table, files, dim, at), to, cut)
        if written is not None:
            tables[table] = {**written, "dim": dim, "use": _USE[to].format(side=side, dim=dim, cut=cut)}
    if not tables:
        when = "" if at is None else f" before {at.isoformat()}"
        raise UsageError(f"Snapshot {snapshot.snapshot_id} has no vector{when}, so nothing was exported to {out}.")
    made: dict[str, object] = {
        "format": to,
        "snapshot_id": snapshot.snapshot_id,
        "at": None if at is None else _utc(at).isoformat(),
        "tables": tables,
    }
    write_json(out / f"lorestream-{to}{cut}.json", {"schema_version": 1, **made})
    return made


def _by_id(out: Path, vectors: Vectors, to: Format, cut: str) -> dict[str, object] | None:
    if not len(vectors.ids):
        return None
    written = _BY_ID[to](out, vectors, cut)
    return {"files": _names(written), "rows": len(vectors.ids), "without_vector": vectors.without_vector}


def _feast(out: Path, table: str, files: list[Path], at: datetime | None, cut: str) -> dict[str, object] | None:
    path, rows = write_feast(out, table, files, at, cut)
    if not rows:
        path.unlink()
        return None
    return {"files": _names([path]), "rows": rows}


def _names(paths: list[Path]) -> list[str]:
    return [path.name for path in paths]


def _cut(at: datetime | None) -> str:
    """What a cut-off adds to the name of a file; nothing without one."""
    if at is None:
        return ""
    moment = _utc(at)
    return f"-at-{moment:%Y%m%dT%H%M%S}{f'.{moment.microsecond:06d}' if moment.microsecond else ''}Z"


def _utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
