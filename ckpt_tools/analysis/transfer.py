"""A fine-tuned checkpoint against the one it began from: what trained, what stayed, and whether that was meant."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence

from ckpt_tools.analysis.diff import Diff, TensorDiff
from ckpt_tools.analysis.diff_layers import Head, Layer, head_of, is_cast, layers_of
from ckpt_tools.analysis.trainability import Judgement, judge
from ckpt_tools.errors import CkptError
from ckpt_tools.records import record

OUTCOMES = {
    "identical": "stayed",
    "cast": "stayed, in another dtype",
    "buffers moved": "drifted in buffers only",
    "changed": "trained",
    "replaced": "new",
    "altered": "altered",
    "added": "new",
    "removed": "gone",
    "unreadable": "not compared",
}
"""What a layer's status means where B was trained from A."""


@record
class Contradiction:
    """A tensor whose change is not what B itself says of it."""

    name: str
    what: str


@record
class Transfer:
    """The layers, the new head if there is one, and where B's own word and its bytes disagree.

    *judgements* is B's word on its parameters, by the names of the diff; empty where B says nothing.
    """

    layers: Sequence[Layer]
    head: Head | None
    judgements: Mapping[str, Judgement]
    contradictions: Sequence[Contradiction]


def transfer(diff: Diff) -> Transfer:
    """Hold what changed in *diff* against what B records as frozen, and what its optimizer has stepped."""
    layers = layers_of(diff.tensors)
    judgements: dict[str, Judgement] = {}
    if len(diff.sections) == 1:
        section = diff.sections[0]
        word = judge(diff.b, section.b, section.modules[1]).parameters
        for entry in diff.tensors:
            judgement = word.get(entry.b.name) if entry.b is not None else None
            if judgement is not None and judgement.verdict != "unknown":
                judgements[entry.name] = judgement
    found = []
    for entry in diff.tensors:
        judgement = judgements.get(entry.name)
        if judgement is None:
            continue
        if judgement.verdict == "frozen" and entry.change in ("value", "dtype") and not is_cast(entry):
            found.append(Contradiction(entry.name, f"{judgement.basis.reason}, but its values are not those of A"))
        elif judgement.verdict == "trainable" and entry.change == "identical":
            found.append(Contradiction(entry.name, f"{judgement.basis.reason}, but its bytes are still those of A"))
        elif judgement.verdict == "trainable" and is_cast(entry):
            found.append(Contradiction(entry.name, f"{judgement.basis.reason}, but its values are those of A, cast"))
    return Transfer(layers, head_of(layers), judgements, found)


@record
class Breach:
    """A tensor that breaks an expectation: the glob, and what it did instead."""

    name: str
    expected: str
    what: str


def breaches(diff: Diff, frozen: Sequence[str], changed: Sequence[str]) -> list[Breach]:
    """The tensors that break the expectations.

    What matches a glob in *frozen* must be in both files with the same values, buffers too; every parameter that
    matches one in *changed* must have other values than in A (not the same ones, cast), or be new. Raises `CkptError`
    for a glob that matches nothing: it would hold whatever happens.
    """
    found = []
    for glob in frozen:
        for entry in _matching(diff, glob):
            if entry.differs:
                found.append(Breach(entry.name, f"frozen: {glob}", _did(entry)))
    for glob in changed:
        weights = [entry for entry in _matching(diff, glob) if not entry.is_buffer]
        if not weights:
            raise CkptError(f"only buffers match {glob}, which no optimizer changes", path=diff.a.path)
        for entry in weights:
            if not entry.differs or is_cast(entry) or entry.change in ("removed", "unreadable"):
                found.append(Breach(entry.name, f"changed: {glob}", _did(entry)))
    return found


def _matching(diff: Diff, glob: str) -> list[TensorDiff]:
    found = [
        entry
        for entry in diff.tensors
        if any(
            fnmatch.fnmatchcase(name, glob)
            for name in (entry.name, entry.a.name if entry.a else "", entry.b.name if entry.b else "")
        )
    ]
    if not found:
        raise CkptError(f"no tensor's name matches the expectation {glob}", path=diff.a.path)
    return found


def _did(entry: TensorDiff) -> str:
    kind = "buffer" if entry.is_buffer else "parameter"
    if is_cast(entry):
        return f"a {kind} of another dtype, with the values of A, cast"
    return {
        "identical": f"a {kind} with the very bytes of A",
        "within tolerance": f"a {kind} that moved no more than the tolerance",
        "value": f"a {kind} that moved" + (": its layer ran in training mode" if entry.is_buffer else ""),
        "dtype": f"a {kind} of another dtype",
        "shape": f"a {kind} of another shape",
        "added": f"a {kind} that A does not have",
        "removed": f"a {kind} that B does not have",
        "unreadable": f"a {kind} that could not be compared",
    }[entry.change]
