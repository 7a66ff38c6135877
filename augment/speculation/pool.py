"""The retrieval pool: knowledge texts that drafts are copied from, as one immutable file.

    pool = RetrievalPool.build(sequences, groups, prompts=prompts, identity=identity)
    pool.save(path)
    pool = RetrievalPool.load(path, expected=identity)

The file is a JSON header and aligned arrays. Loading maps it into memory, so workers share its pages and it takes the
same time whatever its size; its digest is that of the header, which holds the digests of all blocks of the rest.
"""

import mmap
import struct
from collections.abc import Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import BaseModel

from augment.speculation import mixing
from augment.speculation.contexts import ContextIndex, build_index, number_tokens
from warehouse.errors import InputError, LorestreamError
from warehouse.keys import DIGEST_BYTES
from warehouse.store import replacing

if TYPE_CHECKING:
    from augment.speculation.drafting import Session

_MAGIC = b"LOREPOOL"
_VERSION = 1
_ALIGNMENT = 64
_BLOCK = 1 << 20
# Hashing a whole large pool would take longer than loading may: so many blocks, evenly spread, besides the header.
_CHECKED_BLOCKS = 64
_MAX_HEADER = 1 << 28


class PoolIdentity(BaseModel, frozen=True, extra="forbid"):
    """What a pool's texts were made with; drafts for anything else would seldom be right."""

    model: str = ""
    tokenizer: str = ""  # its digest
    prompt_version: str = ""


class PoolMismatch(InputError):
    """A pool was made with another model, tokenizer or prompt version than this run's."""

    def __init__(self, path: str, expected: PoolIdentity, found: PoolIdentity) -> None:
        self.path, self.expected, self.found = path, expected, found
        differing = [name for name in PoolIdentity.model_fields if getattr(expected, name) != getattr(found, name)]
        said = "; ".join(
            f"{name.replace('_', ' ')}: expected {getattr(expected, name)!r}, found {getattr(found, name)!r}"
            for name in differing
        )
        super().__init__(
            f"The pool {path} was made for something else ({said}). Build one from this model's texts with "
            "`lorestream pool build`, or go back to what the pool was made with."
        )


class CorruptPool(LorestreamError):
    """A pool file does not hold what was written."""

    def __init__(self, path: str, problem: str) -> None:
        self.path, self.problem = path, problem
        super().__init__(
            f"The pool {path} cannot be used: {problem}. Delete it and build it again with `lorestream pool build`; "
            "nothing is lost, it is made from the knowledge in the warehouse."
        )


class RetrievalPool:
    """Texts to draft from. `digest` names content and identity; two pools of the same digest draft the same."""

    def __init__(
        self,
        index: ContextIndex,
        mixer: mixing.Mixer,
        group_names: Sequence[str],
        text_groups: NDArray[np.uint16],
        identity: PoolIdentity,
        header: bytes | None = None,
    ) -> None:
        """Called by `build` and `load`. `text_groups` [texts] are places in `group_names`."""
        self.index, self.mixer, self.identity = index, mixer, identity
        self.group_names, self.text_groups = list(group_names), text_groups
        self.groups: Mapping[str, int] = {name: number for number, name in enumerate(group_names)}
        self.texts = len(text_groups)
        self.tokens = len(index.places)
        self._header = header or _header(self._arrays(), self.group_names, identity)
        self.digest = _digest(self._header)

    @classmethod
    def build(
        cls,
        sequences: Sequence[Sequence[int]],
        groups: Sequence[str] | None = None,
        *,
        prompts: Sequence[Sequence[int]] | None = None,
        identity: PoolIdentity | None = None,
    ) -> Self:
        """A pool of `sequences` (token ids of answers, without an end-of-sequence token).

        `groups` names the group of each. `prompts`, the prompt of each, are not stored: the weights that say when to
        copy from a prompt are fitted on them. Raises ValueError when lengths differ or there are 65,536 groups.
        """
        for name, other in (("groups", groups), ("prompts", prompts)):
            if other is not None and len(other) != len(sequences):
                raise ValueError(f"There are {len(sequences)} sequences, but {len(other)} {name}.")
        texts = [np.asarray(sequence, np.int32) for sequence in sequences]
        asked = None if prompts is None else [np.asarray(prompt, np.int32) for prompt in prompts]
        names = sorted(set(groups or ()))
        if len(names) >= 2**16:
            raise ValueError(f"A pool has fewer than 65,536 groups; these texts have {len(names)}.")
        number = {name: n for n, name in enumerate(names)}
        # Without groups every text has number 0, which no name leads to.
        text_groups = np.array([number[group] for group in groups or ()], np.uint16)
        if groups is None:
            text_groups = np.zeros(len(texts), np.uint16)
        text_groups.flags.writeable = False
        index = build_index(texts)
        mixer = mixing.fit(index, texts, asked)
        return cls(index, mixer, names, text_groups, identity or PoolIdentity())

    def save(self, path: Path) -> None:
        """Write the pool to `path`: whole, or not at all."""
        with replacing(path) as temporary, temporary.open("wb") as file:
            file.write(_MAGIC + struct.pack("<Q", len(self._header)) + self._header + bytes.fromhex(self.digest))
            file.write(bytes(-file.tell() % _ALIGNMENT))
            for piece in _stream(self._arrays()):
                file.write(piece)

    @classmethod
    def load(cls, path: Path, expected: PoolIdentity | None = None) -> Self:
        """The pool at `path`, mapped into memory.

        Its header, its small arrays and a spread of its blocks (all of a pool of up to 64 MB) are checked. Raises
        PoolMismatch if it was not made with what is `expected`, CorruptPool if it is damaged, FileNotFoundError.
        """
        with path.open("rb") as file:
            size = path.stat().st_size
            if size < len(_MAGIC) + 8:
                raise CorruptPool(str(path), f"it has {size} bytes, less than a header")
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        header, start = _read_header(content, str(path))
        described = orjson.loads(header)
        if described.get("version") != _VERSION:
            raise CorruptPool(str(path), f"it has format {described.get('version')}, this program reads {_VERSION}")
        identity = PoolIdentity.model_validate(described["identity"])
        if expected is not None and identity != expected:
            raise PoolMismatch(str(path), expected, identity)
        if size != start + described["bytes"]:
            raise CorruptPool(str(path), f"it has {size} bytes instead of {start + described['bytes']}")
        _check_blocks(content, start, described, str(path))
        arrays = {
            name: np.frombuffer(content, dtype, int(np.prod(shape)), start + offset).reshape(shape)
            for name, (dtype, shape, offset) in described["arrays"].items()
        }
        mixer = mixing.unpack(arrays.pop("mixer"))
        text_groups = arrays.pop("text_groups")
        numbers = number_tokens(arrays["vocabulary"])
        numbers.flags.writeable = False
        index = ContextIndex(**arrays, numbers=numbers)
        return cls(index, mixer, described["groups"], text_groups, identity, header)

    def session(self, prompt_ids: Sequence[int], group: str | None = None) -> "Session":
        """Drafts for one request: `propose(max_tokens)`, and `accept(token_ids)` of what the model then emitted."""
        from augment.speculation.drafting import Session

        return Session(self, prompt_ids, group)

    def stats(self) -> dict[str, Any]:
        """Digest, identity, texts, tokens, distinct tokens, groups with their texts, bytes in all and per token."""
        stored = len(self._header) + sum(array.nbytes for array in self._arrays().values())
        counts = np.bincount(self.text_groups, minlength=len(self.group_names))
        return {
            "digest": self.digest,
            "identity": self.identity.model_dump(),
            "texts": self.texts,
            "tokens": self.tokens,
            "distinct_tokens": len(self.index.vocabulary),
            "groups": dict(zip(self.group_names, counts.tolist(), strict=False)),
            "fitted": bool(any(part.any() for part in self.mixer)),
            "bytes": stored,
            "bytes_per_token": round(stored / max(self.tokens, 1), 2),
        }

    def _arrays(self) -> dict[str, NDArray[Any]]:
        stored = {name: array for name, array in self.index._asdict().items() if name != "numbers"}
        small = {"mixer": mixing.pack(self.mixer), "text_groups": self.text_groups}
        # Small arrays first: their blocks are always checked, since the compiled code takes places from them.
        return dict(sorted({**stored, **small}.items(), key=lambda named: (named[1].nbytes, named[0])))


def _stream(arrays: Mapping[str, NDArray[Any]]) -> Iterator[memoryview | bytes]:
    """The arrays' bytes, each padded to the alignment."""
    for array in arrays.values():
        yield np.ascontiguousarray(array).view(np.uint8).data if array.nbytes else b""
        yield bytes(-array.nbytes % _ALIGNMENT)


def _header(arrays: Mapping[str, NDArray[Any]], groups: Sequence[str], identity: PoolIdentity) -> bytes:
    described: dict[str, tuple[str, tuple[int, ...], int]] = {}
    at = 0
    for name, array in arrays.items():
        described[name] = array.dtype.str, array.shape, at
        at += array.nbytes + -array.nbytes % _ALIGNMENT
    blocks, hasher, room = [], blake2b(digest_size=DIGEST_BYTES), _BLOCK
    for piece in _stream(arrays):
        view = memoryview(piece)
        while len(view):
            hasher.update(view[:room])
            taken = min(room, len(view))
            view, room = view[taken:], room - taken
            if not room:
                blocks.append(hasher.hexdigest())
                hasher, room = blake2b(digest_size=DIGEST_BYTES), _BLOCK
    blocks.append(hasher.hexdigest())
    return orjson.dumps(
        {
            "version": _VERSION,
            "identity": identity.model_dump(),
            "groups": list(groups),
            "arrays": described,
            "bytes": at,
            "blocks": blocks,
        }
    )


def _digest(header: bytes) -> str:
    return blake2b(header, digest_size=DIGEST_BYTES).hexdigest()


def _read_header(content: mmap.mmap, path: str) -> tuple[bytes, int]:
    """The header and where the arrays start; raises CorruptPool."""
    if content[: len(_MAGIC)] != _MAGIC:
        raise CorruptPool(path, f"it starts with {content[: len(_MAGIC)]!r} instead of {_MAGIC!r}")
    (length,) = struct.unpack_from("<Q", content, len(_MAGIC))
    begins = len(_MAGIC) + 8
    ends = begins + length
    if length > _MAX_HEADER or ends + DIGEST_BYTES > len(content):
        raise CorruptPool(path, f"its header should have {length} bytes, and the file ends before that")
    header, expected = content[begins:ends], content[ends : ends + DIGEST_BYTES].hex()
    found = _digest(header)
    if found != expected:
        raise CorruptPool(path, f"its header has the digest {found} instead of {expected}")
    start = ends + DIGEST_BYTES
    return header, start + -start % _ALIGNMENT


def _check_blocks(content: mmap.mmap, start: int, described: Mapping[str, Any], path: str) -> None:
    blocks: list[str] = described["blocks"]
    large = [offset for name, (_, _, offset) in described["arrays"].items() if name in ("followers", "places", "texts")]
    always = min(large, default=0) // _BLOCK + 1
    spread = np.linspace(0, len(blocks) - 1, min(len(blocks), _CHECKED_BLOCKS)).astype(int).tolist()
    with memoryview(content) as view:
        for block in sorted({*range(min(always, len(blocks))), *spread}):
            begins = start + block * _BLOCK
            piece = view[begins : min(begins + _BLOCK, start + described["bytes"])]
            found = blake2b(piece, digest_size=DIGEST_BYTES).hexdigest()
            if found != blocks[block]:
                raise CorruptPool(path, f"block {block} has the digest {found} instead of {blocks[block]}")
