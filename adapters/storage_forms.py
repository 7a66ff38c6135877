"""Smaller forms of augment vectors, and what a model then reads: half floats, bytes, and codes for models that take
categories only."""

import re
import warnings
from dataclasses import dataclass

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from warehouse.errors import ConfigError, InputError

FORMS = ("float32", "float16", "int8", "codes2x256", "codes4x256", "codes8x256")

_CODES = re.compile(r"codes(\d+)x(\d+)")

# k-means of more rows than this finds the same centroids from a sample of them.
FIT_ROWS = 65_536


@dataclass(frozen=True)
class Codes:
    """Rows as categories: vector ~ sum over levels l of codebooks[l][codes[:, l]].

    `codes` [n, levels] (uint8 up to 256 categories, else uint16), `codebooks` [levels, size, d] float32. Level 0 says
    the most, and each later one what the levels before it leave over.
    """

    codes: np.ndarray
    codebooks: np.ndarray

    @classmethod
    def fit(cls, vectors: np.ndarray, levels: int, size: int, seed: int = 0) -> "Codes":
        """Residual k-means of vectors [n, d]: `levels` categories of `size` values each.

        With fewer rows than values, the values left over stand for nothing. Raises InputError when there is no row.
        """
        _require_rows(vectors)
        if levels < 1 or not 2 <= size <= 65_536:
            raise ConfigError(f"Codes take at least 1 level and 2 to 65,536 values each: levels={levels}, size={size}.")
        rest = vectors.astype(np.float32)
        chosen = np.random.default_rng(seed).permutation(len(rest))[:FIT_ROWS]
        codes = np.zeros((len(rest), levels), np.uint8 if size <= 256 else np.uint16)
        codebooks = np.zeros((levels, size, rest.shape[1]), np.float32)
        for level in range(levels):
            distinct = np.unique(rest[chosen], axis=0)
            with warnings.catch_warnings():
                # What is left of few rows is all but equal; values that are not needed for it are no fault.
                warnings.simplefilter("ignore", ConvergenceWarning)
                found = KMeans(min(size, len(distinct)), n_init=1, random_state=seed).fit(rest[chosen])
            codes[:, level] = found.predict(rest)
            codebooks[level, : found.n_clusters] = found.cluster_centers_
            rest = rest - codebooks[level][codes[:, level]]
        return cls(codes, codebooks)

    def vectors(self) -> np.ndarray:
        """What the codes stand for, float32 [n, d]."""
        read: np.ndarray = sum(book[self.codes[:, level]] for level, book in enumerate(self.codebooks))
        return read


def quantise(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bytes int8 [n, d] and a scale [d] per number, with vectors ~ bytes * scale; off by at most half a scale."""
    scale = np.abs(vectors).max(axis=0).astype(np.float32) / 127
    scale[scale == 0] = 1.0
    return np.rint(vectors / scale).astype(np.int8), scale


def compress(vectors: np.ndarray, form: str, seed: int = 0) -> tuple[np.ndarray, float]:
    """Vectors as a model would read them out of `form`, float32 [n, d], and the bytes that a row takes in it.

    `form` is one of `FORMS`, or codes of other numbers: `codes<levels>x<values>`. Scales and codebooks, of which a
    table has one, are not counted. Raises ConfigError for an unknown form, InputError for vectors that are not [n, d],
    empty or not finite.
    """
    _require_rows(vectors)
    rows, dim = vectors.shape
    if form == "float32":
        return vectors.astype(np.float32), 4.0 * dim
    if form == "float16":
        return vectors.astype(np.float16).astype(np.float32), 2.0 * dim
    if form == "int8":
        stored, scale = quantise(vectors)
        return stored.astype(np.float32) * scale, 1.0 * dim
    match = _CODES.fullmatch(form)
    if match is None:
        raise ConfigError(
            f"There is no storage form {form!r}; there are {', '.join(FORMS)}, or codes<levels>x<values>."
        )
    codes = Codes.fit(vectors, int(match[1]), int(match[2]), seed)
    return codes.vectors(), float(codes.codes.nbytes / rows)


def _require_rows(vectors: np.ndarray) -> None:
    if vectors.ndim != 2 or not len(vectors):
        raise InputError(f"Vectors to compress are to be [n, d] with n > 0, these have shape {vectors.shape}.")
    if not np.isfinite(vectors).all():
        raise InputError("Some vectors to compress are not finite. Materialise them anew.")
