"""Files as objects: whole reads, whole writes, no renames. Any fsspec filesystem will do (`s3://`, `gs://`, `memory://`).

What is relied on: an object that was written whole is seen whole or not at all, and after it was written it is seen.
"""

from pathlib import Path
from typing import Protocol

from warehouse.errors import UsageError

SCHEME = "://"


class Objects(Protocol):
    """Named objects below one place. Names are relative, with `/`."""

    def read(self, name: str) -> bytes:
        """The object's bytes. Raises FileNotFoundError."""
        ...

    def fetch(self, name: str, into: Path) -> None:
        """Copy the object to the file `into`. Raises FileNotFoundError."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Replace the object in one step."""
        ...

    def store(self, name: str, file: Path) -> None:
        """Make the object of a file's bytes, in one step."""
        ...

    def sizes(self, folder: str) -> dict[str, int]:
        """Names of the objects below `folder`, at any depth, and their bytes."""
        ...

    def remove(self, name: str) -> None:
        """Remove the object; it need not exist."""
        ...


class FsspecObjects:
    """Objects below an fsspec URL. Credentials and endpoints come from where the filesystem's library looks for them
    (for S3 the environment and `~/.aws`)."""

    def __init__(self, url: str) -> None:
        try:
            import fsspec
        except ModuleNotFoundError as error:
            raise UsageError(f"{url} needs fsspec: pip install 'lorestream[objects]', or use a local path.") from error
        if url.startswith(("file:", "local:")):
            # Its writes are no single steps, and a plain path has atomic renames.
            raise UsageError(f"{url} is a local folder: give its plain path.")
        try:
            self._fs, self._base = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise UsageError(
                f"{url} cannot be opened: {error}. Install that filesystem's package, or correct the URL."
            ) from error
        # Listings are kept for minutes otherwise, and another process may have written since.
        self._fs.use_listings_cache = False

    def read(self, name: str) -> bytes:
        self._fs.invalidate_cache()
        return bytes(self._fs.cat_file(self._path(name)))

    def fetch(self, name: str, into: Path) -> None:
        self._fs.get_file(self._path(name), str(into))

    def write(self, name: str, content: bytes) -> None:
        self._fs.pipe_file(self._path(name), content)

    def store(self, name: str, file: Path) -> None:
        self._fs.put_file(str(file), self._path(name))

    def sizes(self, folder: str) -> dict[str, int]:
        self._fs.invalidate_cache()
        try:
            found = self._fs.find(self._path(folder), detail=True)
        except FileNotFoundError:
            return {}
        start = len(self._base.rstrip("/")) + 1
        return {path[start:]: int(info["size"]) for path, info in found.items() if info["type"] == "file"}

    def remove(self, name: str) -> None:
        try:
            self._fs.rm_file(self._path(name))
        except FileNotFoundError:
            return

    def _path(self, name: str) -> str:
        return f"{self._base.rstrip('/')}/{name}"


def is_url(place: object) -> bool:
    """Whether `place` names objects rather than a folder."""
    return isinstance(place, str) and SCHEME in place
