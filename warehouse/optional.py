"""Libraries that only some functions use: reading a warehouse works without them."""

from collections.abc import Iterator
from contextlib import contextmanager

from warehouse.errors import UsageError


class MissingLibrary(UsageError):
    """A function was called that takes a library which is not installed."""

    def __init__(self, library: str, purpose: str) -> None:
        self.library, self.purpose = library, purpose
        super().__init__(f"{purpose} takes {library}, which is not installed: `pip install {library}`.")


@contextmanager
def needs(library: str, purpose: str) -> Iterator[None]:
    """Turns an import of `library` that fails in the block into MissingLibrary, which says what `purpose` takes."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingLibrary(error.name or library, purpose) from error
