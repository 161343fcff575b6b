"""Proof that an output holds what its source does: it is read again and compared, tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ckpt_tools.analysis.digest import Digest, digest
from ckpt_tools.convert.plan import Entry, Plan, source_of
from ckpt_tools.convert.write_safetensors import shape
from ckpt_tools.errors import CkptError
from ckpt_tools.formats import open_checkpoint

Advance = Callable[[int], None]


def source_digest(plan: Plan, advance: Advance | None = None) -> Digest:
    """The digest of the tensors that *plan* takes, under the source's names: what ``ckpt digest`` prints."""
    return digest([entry.tensor for entry in plan.entries], advance)


def prove(path: str, plan: Plan, source: Digest, cast: Mapping[str, str], advance: Advance | None = None) -> Digest:
    """Read the file *path* and compare it with *plan* and the *source*'s digests; those of *cast* tensors differ.

    Returns the output's digest. Raises `CkptError` where anything is not as it should be.
    """
    found = digest(source_of(open_checkpoint(path), None).tensors if plan.entries else (), advance)
    compare(found, plan, source, cast)
    return found


def compare(found: Digest, plan: Plan, source: Digest, cast: Mapping[str, str]) -> None:
    """Raise `CkptError` where *found*, the digest of the output, is not what *plan* makes of *source*."""
    known = {line.name: line.sha256 for line in source.tensors}
    expected = {
        entry.name: (entry.dtype.name, entry.tensor.shape, cast.get(entry.name, known[entry.tensor.name]))
        for entry in plan.entries
    }
    actual = {line.name: (line.dtype, line.shape, line.sha256) for line in found.tensors}
    wrong = sorted(name for name in expected.keys() | actual.keys() if expected.get(name) != actual.get(name))
    if wrong:
        raise CkptError(
            f"the output would not hold what the source does: {', '.join(wrong[:8])}, so it was not kept",
            path=plan.checkpoint.path,
            remedy="The source or the disk may have changed meanwhile; try again",
        )


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
