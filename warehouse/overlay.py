"""A throw-away copy of a warehouse that shares its files, for dry runs: what is written there is gone afterwards."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from warehouse.errors import LorestreamError

# The only parts that are ever replaced in place; everything else is immutable and may be linked.
_MUTABLE = {"manifest.json", "features.duckdb"}
_SKIPPED = {"lorestream.lock", "lorestream.turn"}


@contextmanager
def overlay(root: Path) -> Iterator[Path]:
    """A temporary warehouse that holds all of `root`'s files as links; new files land beside them and vanish.

    An error of the block that names one of its files leaves with the name of the file in `root`.
    """
    with tempfile.TemporaryDirectory(prefix="lorestream-dry-run-") as folder:
        copy = Path(folder).resolve()
        for source, folders, files in os.walk(root):
            target = copy / Path(source).relative_to(root)
            for name in folders:
                (target / name).mkdir()
            for name in files:
                if name in _MUTABLE:
                    shutil.copy2(Path(source) / name, target / name)
                elif name not in _SKIPPED:
                    (target / name).symlink_to((Path(source) / name).resolve())
        try:
            yield copy
        except LorestreamError as error:
            error.args = tuple(str(arg).replace(str(copy), str(root.resolve())) for arg in error.args)
            raise
