"""The integrity rules: what each finds, and what it leaves alone."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import numpy as np
import pytest

from ckpt_tools.audit.subject import Subject
from tests.audit.archives import MLP, contents, directory_entries, local_header, packed, patched, with_member
from tests.audit.cases import FIXTURES, Case, Cases, Make, fixture, made

PLAIN = packed(contents())
DEFLATED = packed(contents(), deflated=True)
FLIPPED = patched(MLP, MLP.index(b"mlp/data/0") + 10 + 66 + 5, b"\xff")
WITHOUT = [(name, data) for name, data in contents() if not name.endswith("data/3")]


def _without_checksums() -> bytes:
    data = PLAIN
    for index, at in enumerate(directory_entries(data)):
        data = patched(data, at + 16, bytes(4))
        data = patched(data, local_header(data, index) + 14, bytes(4))
    return data


def _two_headers_at_one_place() -> bytes:
    """The last entry of the directory points to the first member."""
    last = directory_entries(PLAIN)[-1]
    return patched(PLAIN, last + 42, struct.pack("<L", 0))


def _wrong_total(folder: Path) -> Subject:
    for source in (FIXTURES / "sharded/safetensors").iterdir():
        text = source.read_bytes()
        (folder / source.name).write_bytes(re.sub(rb'"total_size": ?\d+', b'"total_size": 1', text))
    return Subject.open(str(folder))


def _external(nbytes: int) -> Make:
    """An ONNX model of 16 bytes of weights in a file beside it, which has *nbytes*."""

    def make(folder: Path) -> Subject:
        onnx = pytest.importorskip("onnx")
        weight = onnx.numpy_helper.from_array(np.arange(4, dtype=np.float32), "w")
        graph = onnx.helper.make_graph([], "g", [], [], [weight])
        path = folder / "model.onnx"
        onnx.save_model(
            onnx.helper.make_model(graph),
            path,
            save_as_external_data=True,
            location="model.data",
            size_threshold=0,
        )
        (folder / "model.data").write_bytes((folder / "model.data").read_bytes()[:nbytes])
        return Subject.open(str(path))

    return make


CASES: Cases = {
    "I101": Case(fixture("refused/lfs_pointer.pt"), fixture("refused/cut.safetensors"), "a Git LFS pointer"),
    "I102": Case(
        made(with_member("mlp/notes.dat", bytes(range(256)))),
        made(with_member("mlp/notes.txt", b"plain text")),
        "256 bytes not looked at: no format that is known",
        member="mlp/notes.dat",
    ),
    "I103": Case(fixture("refused/overlap.safetensors"), fixture("safetensors/library.safetensors"), "begins within"),
    "I104": Case(fixture("refused/header.gguf"), fixture("other/tiny.gguf"), "declares 3 tensors"),
    "I105": Case(fixture("refused/archive.tar.gz"), fixture("refused/lfs_pointer.pt"), "compressed with gzip"),
    "I201": Case(made(FLIPPED), made(MLP), "its checksum is", member="mlp/data/0"),
    "I202": Case(made(_without_checksums()), made(PLAIN), "none of 10 members has a checksum"),
    "I203": Case(
        made(patched(PLAIN, local_header(PLAIN, 0) + 30, b"mlp/none.txt")),
        made(DEFLATED),
        "the name mlp/none.txt",
        member="mlp/data.pkl",
    ),
    "I204": Case(
        made(with_member("mlp/DATA.PKL", b"N.")),
        made(with_member("mlp/other.pkl", b"N.")),
        "2 members are called mlp/data.pkl = mlp/DATA.PKL; torch opens the one whose header is at byte 0",
        member="mlp/data.pkl",
    ),
    "I205": Case(
        made(_two_headers_at_one_place()),
        made(PLAIN),
        "within mlp/data.pkl, which ends at byte",
        member="mlp/.data/serialization_id",
    ),
    "I206": Case(
        made(with_member("mlp/data/4", bytes(24))), made(MLP), "24 bytes that no tensor refers to", member="mlp/data/4"
    ),
    "I207": Case(
        made(packed([*WITHOUT, ("mlp/data/3", bytes(20))])),
        made(PLAIN),
        "the member has 20 bytes, the storage 12",
        member="mlp/data/3",
    ),
    "I208": Case(_external(10), _external(16), "model.data ends at byte 10", tensor="w"),
    "I301": Case(
        made((FIXTURES / "legacy/state_dict.pt").read_bytes() + bytes(8)),
        fixture("legacy/state_dict.pt"),
        "8 bytes follow the last storage",
    ),
    "I302": Case(_wrong_total, fixture("sharded/safetensors"), "total_size is 1 bytes", member="metadata"),
}
