"""Proof that an output holds what its source does: it is read again and compared, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ckpt_tools.analysis.digest import Digest, digest
from ckpt_tools.convert.plan import Entry, Plan, source_of
from ckpt_tools.convert.write_safetensors import shape
from ckpt_tools.errors import CkptError
from ckpt_tools.formats import open_checkpoint
from ckpt_tools.report import listed

Advance = Callable[[int], None]

SMALL = 4 << 20
"""Bytes that are hashed sooner than a thread is begun."""


def prove(path: str, plan: Plan, cast: Mapping[str, str], advance: Advance | None = None) -> tuple[Digest, Digest]:
    """Read the source and the file *path* side by side and compare them, tensor by tensor.

    *cast* has the digests that cast tensors should have. Returns the digest of the tensors taken from the source,
    under the source's names (what ``ckpt digest`` prints where that is all of them), and the output's. Raises
    `CkptError` where anything is not as *plan* has it.
    """
    written = source_of(open_checkpoint(path), None).tensors if plan.entries else ()
    if sum(tensor.nbytes for tensor in plan.tensors) < SMALL:
        source, found = digest(plan.tensors, advance), digest(written, advance)
    else:
        from concurrent.futures import ThreadPoolExecutor  # which imports logging

        with ThreadPoolExecutor(1) as other:  # hashing leaves the interpreter to others
            reading = other.submit(digest, plan.tensors, advance)
            found = digest(written, advance)
            source = reading.result()
    compare(found, plan, source, cast)
    return source, found


def compare(found: Digest, plan: Plan, source: Digest, cast: Mapping[str, str]) -> None:
    """Raise `CkptError` where *found*, the digest of the output, is not what *plan* makes of *source*."""
    expected = {line.name: line for line in (replace(line, name=_renamed(line.name, plan)) for line in source.tensors)}
    for entry in plan.entries:
        if entry.dtype != entry.tensor.dtype and entry.name in expected:
            line = expected[entry.name]
            expected[entry.name] = replace(line, dtype=entry.dtype.name, sha256=cast.get(entry.name, line.sha256))
    actual = {line.name: line for line in found.tensors}
    wrong = sorted(name for name in expected.keys() | actual.keys() if expected.get(name) != actual.get(name))
    if wrong:
        raise CkptError(
            f"the output would not hold what the source does: {listed(wrong, 8)}, so it was not kept",
            path=plan.checkpoint.path,
            remedy="The source or the disk may have changed meanwhile; try again",
        )


def _renamed(name: str, plan: Plan) -> str:
    """The output's name for a line of the source's digest: a tensor's own, or ``name#part``."""
    end = len(name)
    while name[:end] not in plan.names:
        end = name.rindex("#", 0, end)
    return plan.names[name[:end]] + name[end:]


def prove_with_library(path: str, stored: Sequence[Entry]) -> None:
    """Open the safetensors file *path* with the safetensors library: it finds the names and shapes of *stored*."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np") as file:  # "np" needs no torch
            found = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CkptError(f"the safetensors library refuses the output: {error}") from None
    if found != {entry.name: shape(entry) for entry in stored}:
        raise CkptError("the safetensors library finds other tensors in the output than were written")
