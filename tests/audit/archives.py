"""Zip archives made, and damaged, byte by byte."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path

MLP = (Path(__file__).resolve().parents[2] / "fixtures" / "zip" / "mlp.pt").read_bytes()
"""A state_dict as torch saves it: ``mlp/data.pkl`` and four storages."""


def contents(data: bytes = MLP) -> list[tuple[str, bytes]]:
    """The members of an archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


def packed(members: Sequence[tuple[str, bytes]], *, deflated: bool = False) -> bytes:
    """An archive of *members*, of which several may have one name."""
    out = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED) as archive:
            for name, data in members:
                archive.writestr(name, data)
    return out.getvalue()


def with_member(name: str, data: bytes) -> bytes:
    """The state_dict, and one more member."""
    return packed([*contents(), (name, data)])


def directory_entries(data: bytes) -> list[int]:
    """The offsets of the entries of the central directory."""
    offsets, at = [], data.find(b"PK\x01\x02")
    while at >= 0:
        offsets.append(at)
        at = data.find(b"PK\x01\x02", at + 46)
    return offsets


def local_header(data: bytes, index: int) -> int:
    """The offset of the local header of member number *index*."""
    found: int = struct.unpack_from("<L", data, directory_entries(data)[index] + 42)[0]
    return found


def patched(data: bytes, at: int, new: bytes) -> bytes:
    """*data* with the bytes at *at* replaced."""
    return data[:at] + new + data[at + len(new) :]
