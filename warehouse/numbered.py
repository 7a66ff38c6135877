"""Numbered objects below a folder, of which the newest counts (`index/00000042.json`): of many makers of one, one wins.

It is all that writers on several machines agree by. What is asked of the store is that an object can be created on the
condition that it does not exist; where it looks first and writes then, two that do so within the same moment are told
apart by reading back, unless the second writes after the first has read.
"""

from contextlib import suppress
from pathlib import PurePosixPath

from warehouse.errors import StoreUnavailable
from warehouse.objects import Objects


def object_of(folder: str, number: int) -> str:
    """The name of the object with that number."""
    return f"{folder}/{number:08d}.json"


def newest(objects: Objects, folder: str) -> int:
    """The highest number in `folder`, 0 where there is none."""
    return max(_numbers(objects, folder), default=0)


def claim(objects: Objects, folder: str, number: int, content: bytes) -> None:
    """Make the object with that number, which is the newest then. `content` must be unlike any other maker's.

    Raises FileExistsError when another maker has this number or a later one.
    """
    name = object_of(folder, number)
    try:
        objects.create(name, content)
        is_ours = objects.exclusive or objects.read(name) == content
    except (FileExistsError, StoreUnavailable) as error:
        # A request whose answer was lost is sent again by the filesystem's library, and then meets its own object.
        try:
            is_ours = objects.read(name) == content
        except FileNotFoundError:
            raise error from None
    if not is_ours:
        raise FileExistsError(name)
    # Old numbers are removed, and who slept since they were new could take one that is free again.
    if newest(objects, folder) != number:
        objects.remove(name)
        raise FileExistsError(name)


def remove_before(objects: Objects, folder: str, number: int) -> None:
    """Remove the objects with lower numbers."""
    for old in _numbers(objects, folder):
        if old < number:
            with suppress(FileNotFoundError):
                objects.remove(object_of(folder, old))


def _numbers(objects: Objects, folder: str) -> list[int]:
    stems = (PurePosixPath(name).stem for name in objects.sizes(folder))
    return [int(stem) for stem in stems if stem.isdigit()]
