"""Files as objects: whole reads, whole writes, no renames. Any fsspec filesystem will do (`s3://`, `gs://`, `memory://`).

What is relied on: an object that was written whole is seen whole or not at all, and after it was written it is seen.
Of two that create the same object one wins where the filesystem can write on the condition that nothing is there yet
(`FsspecObjects.exclusive`).
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from warehouse.errors import StoreRefused, StoreUnavailable, UsageError

SCHEME = "://"

# Filesystems whose `mode="create"` is one conditional request; the others look first and write then.
_CONDITIONAL = frozenset({"s3", "s3a", "gs", "gcs", "memory"})

# What libraries call it when they have no credentials at all; what the server says of wrong ones is a PermissionError.
_CREDENTIALS = frozenset(
    {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "DefaultCredentialsError"}
)

# Somebody was there before, or at the same moment.
_CONDITION_FAILED = ("PreconditionFailed", "ConditionalRequestConflict")


class Objects(Protocol):
    """Named objects below one place. Names are relative, with `/`.

    All raise StoreUnavailable where the place does not answer and StoreRefused where it answers no.
    """

    # Whether `create` is one step, as far as is known. Where it is not, two that create within the same moment may both
    # believe they did.
    exclusive: bool

    def read(self, name: str) -> bytes:
        """The object's bytes. Raises FileNotFoundError."""
        ...

    def fetch(self, name: str, into: Path) -> None:
        """Copy the object to the file `into`. Raises FileNotFoundError."""
        ...

    def write(self, name: str, content: bytes) -> None:
        """Replace the object in one step."""
        ...

    def create(self, name: str, content: bytes) -> None:
        """Make an object that does not exist. Raises FileExistsError when it does."""
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
        self._url = url
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
        self.exclusive = url.split(SCHEME)[0] in _CONDITIONAL

    def read(self, name: str) -> bytes:
        with self._asking():
            self._fs.invalidate_cache()
            return bytes(self._fs.cat_file(self._path(name)))

    def fetch(self, name: str, into: Path) -> None:
        with self._asking():
            self._fs.get_file(self._path(name), str(into))

    def write(self, name: str, content: bytes) -> None:
        with self._asking(), self._writing():
            self._fs.pipe_file(self._path(name), content)

    def create(self, name: str, content: bytes) -> None:
        with self._asking(), self._writing():
            self._fs.invalidate_cache()
            try:
                self._fs.pipe_file(self._path(name), content, mode="create")
            except OSError as error:
                # Of servers that do not say which condition it was, s3fs makes no FileExistsError.
                if any(code in f"{error} {error.__cause__}" for code in _CONDITION_FAILED):
                    raise FileExistsError(name) from error
                raise

    def store(self, name: str, file: Path) -> None:
        with self._asking(), self._writing():
            self._fs.put_file(str(file), self._path(name))

    def sizes(self, folder: str) -> dict[str, int]:
        with self._asking():
            self._fs.invalidate_cache()
            try:
                found = self._fs.find(self._path(folder), detail=True)
            except FileNotFoundError:
                return {}
        start = len(self._base.rstrip("/")) + 1
        return {path[start:]: int(info["size"]) for path, info in found.items() if info["type"] == "file"}

    def remove(self, name: str) -> None:
        with self._asking():
            try:
                self._fs.rm_file(self._path(name))
            except FileNotFoundError:
                return

    def _path(self, name: str) -> str:
        return f"{self._base.rstrip('/')}/{name}"

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Raise what goes wrong on the way to the objects as one of our errors."""
        try:
            yield
        except (FileNotFoundError, FileExistsError, StoreRefused):
            raise
        # Every filesystem's library has errors of its own, and of many these are no OSError.
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            said = f"{type(error).__name__}: {error}"
            if isinstance(error, PermissionError) or type(error).__name__ in _CREDENTIALS:
                raise StoreRefused(self._url, said) from error
            raise StoreUnavailable(self._url, said) from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """For a writer nothing can be missing but the place itself."""
        try:
            yield
        except FileNotFoundError as error:
            raise StoreRefused(self._url, str(error)) from error


def is_url(place: object) -> bool:
    """Whether `place` names objects rather than a folder."""
    return isinstance(place, str) and SCHEME in place
