"""Checkpoints that are made of others: what the files say each, put together under their names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from ckpt_tools.checkpoint import Anomaly, Checkpoint, Pickle, Refusal
from ckpt_tools.formats.base import HEAD_BYTES, Format
from ckpt_tools.formats.impostors import explain
from ckpt_tools.report import listed
from ckpt_tools.sources import Source

Parts = Mapping[str, Checkpoint]
"""Checkpoints by the name of their file, as the whole knows it."""

_V = TypeVar("_V")
_OTHERS = re.compile(r".+\.(safetensors|bin|pt2?|pth|ckpt|gguf|h5|msgpack|onnx|npz|pkl)")


def open_part(source: Source, formats: Iterable[Format]) -> Checkpoint:
    """The checkpoint in *source*, which is to be of one of *formats*; raises what it is where it is of none."""
    head = source.peek(0, HEAD_BYTES)
    for format in formats:
        if format.detect is not None and format.detect(source, head):
            return format.read(source)  # type: ignore[arg-type]
    raise explain(source, head)


def common(mappings: Sequence[Mapping[str, _V]]) -> dict[str, _V]:
    """The entries that all of *mappings* have."""
    first, *rest = mappings or [{}]
    return {key: value for key, value in first.items() if all(other.get(key) == value for other in rest)}


def all_pickles(parts: Parts) -> tuple[Pickle, ...]:
    """All pickles, each named after its file too."""
    return tuple(replace(p, member=f"{name}: {p.member}") for name, part in parts.items() for p in part.pickles)


def all_refusals(parts: Parts) -> tuple[Refusal, ...]:
    """Why ``weights_only`` refuses some of the files, each at a path that begins with the file's name."""
    return tuple(replace(r, path=(name, *r.path)) for name, part in parts.items() for r in part.refusals or ())


def all_anomalies(parts: Parts) -> tuple[Anomaly, ...]:
    """All anomalies, each with its file."""
    return tuple(
        replace(a, where=f"{name}: {a.where}" if a.where else name)
        for name, part in parts.items()
        for a in part.anomalies
    )


def beside(names: Iterable[str], described: Collection[str]) -> dict[str, object]:
    """The metadata that names the weights and pickles of a folder which are not *described* with the others."""
    rest = [name for name in names if name not in described and _OTHERS.fullmatch(name)]
    return {"not described": listed(rest)} if rest else {}
