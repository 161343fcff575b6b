r"""A digest of the weights that is the same whatever file holds them.

Of each tensor: SHA-256 over its elements' bytes, dense, row-major, little-endian, conj and neg bits resolved. Of
the whole: SHA-256 over one line a tensor, sorted by name (as UTF-8 bytes)::

    <name as a JSON string> <dtype> [<size>,<size>,…] <hex digest of the tensor>\n

Names, dtypes, shapes and bytes count; order, strides, sharing, requires_grad, devices and the file format do
not. A tensor made of parts (sparse, quantized per channel, nested) counts as its parts, named ``name#part``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ckpt_tools.checkpoint import TensorInfo
from ckpt_tools.contents import check_expansion, chunks, identity, parts_of

ALGORITHM = "ckpt-digest-1"
"""The name of the rule above; another rule gets another name."""


@dataclass(frozen=True, slots=True)
class TensorDigest:
    """A tensor's line: everything of it that the digest covers."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str

    @property
    def line(self) -> str:
        """The line that enters the digest of the whole."""
        sizes = ",".join(map(str, self.shape))
        return f"{json.dumps(self.name)} {self.dtype} [{sizes}] {self.sha256}\n"


@dataclass(frozen=True, slots=True)
class Digest:
    """The digest of a set of tensors and of each of them, sorted by name."""

    sha256: str
    tensors: tuple[TensorDigest, ...]


def digest(tensors: Iterable[TensorInfo], progress: Callable[[int], None] | None = None) -> Digest:
    """Digest *tensors*, streaming their bytes once; *progress* is told how many bytes were read.

    Memory that several names share is read once. Raises `UnsupportedFeature` for tensors without bytes, and
    `LimitExceeded` for those that repeat a few bytes without measure.
    """
    tensors = list(tensors)
    check_expansion(tensors)
    known: dict[object, str] = {}
    lines: list[TensorDigest] = []
    for name, tensor in _dense(tensors):
        key = identity(tensor)
        if key not in known or tensor.storage is None:
            hasher = hashlib.sha256()
            for chunk in chunks(tensor):
                hasher.update(chunk)
                if progress is not None:
                    progress(len(chunk))
            known[key] = hasher.hexdigest()
        lines.append(TensorDigest(name, tensor.dtype.name, tensor.shape, known[key]))
    lines.sort(key=lambda line: line.name.encode("utf-8", "surrogatepass"))
    whole = hashlib.sha256("".join(line.line for line in lines).encode("ascii"))
    return Digest(whole.hexdigest(), tuple(lines))


def _dense(tensors: Iterable[TensorInfo]) -> Iterator[tuple[str, TensorInfo]]:
    pending = [(tensor.name, tensor) for tensor in tensors]
    pending.reverse()
    while pending:
        name, tensor = pending.pop()
        if tensor.storage is not None or not tensor.parts:
            yield name, tensor
        pending += [(f"{name}#{label}", part) for label, part in reversed(parts_of(tensor))]
