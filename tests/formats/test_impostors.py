"""Files that are no checkpoints are named for what they are."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import struct
import tarfile
import zipfile
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tools.errors import CkptError, CorruptFile, NotACheckpoint, UnsupportedFeature
from ckpt_tools.formats.base import HEAD_BYTES
from ckpt_tools.formats.impostors import _UNREAD, _UNRELATED, explain, explain_zip
from ckpt_tools.sources import MemorySource


def explained(data: bytes, name: str = "x.pt") -> CkptError:
    return explain(MemorySource(data, name), data[:HEAD_BYTES])


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(zipfile.ZipInfo(name), b"content")
    return buffer.getvalue()


def tarred(*names: str, mode: str = "w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:  # type: ignore[call-overload]
        for name in names:
            archive.addfile(tarfile.TarInfo(name))
    return buffer.getvalue()


def varint(value: int) -> bytes:
    data = b""
    while value >= 0x80:
        data += bytes([value & 0x7F | 0x80])
        value >>= 7
    return data + bytes([value])


def message(*fields: tuple[int, int | bytes]) -> bytes:
    """A protobuf message."""
    data = b""
    for number, value in fields:
        if isinstance(value, int):
            data += varint(number << 3) + varint(value)
        else:
            data += varint(number << 3 | 2) + varint(len(value)) + value
    return data


LFS = b"version https://git-lfs.example/spec/v1\noid sha256:" + b"0f" * 32 + b"\nsize 102540417\n"
GRAPH = bytes(500)
NODE = message((1, b"input"), (2, b"Placeholder"), (5, b"attributes"))
LOGIN = b'<!DOCTYPE html>\n<html lang="en"><head>\n<title class="x">\n  Log in &amp;\n  wait </title></head>'

CASES: dict[str, tuple[bytes, type[CkptError], str]] = {
    "empty": (b"", NotACheckpoint, "an empty file"),
    "zeros": (bytes(10_000), CorruptFile, "10,000 bytes, all of them zero: space that was reserved and not filled"),
    "many zeros": (
        bytes(1_000_000),
        CorruptFile,
        "1,000,000 bytes, zero wherever they were looked at: space that was reserved and not filled",
    ),
    "zeros at the beginning": (
        bytes(300_000) + b"data" * 100_000,
        CorruptFile,
        "its first 4,096 bytes or more are zero, as in no format: the beginning is missing",
    ),
    "LFS pointer": (
        LFS,
        NotACheckpoint,
        f"a Git LFS pointer, not the file itself: oid sha256:{'0f' * 32}, size 102,540,417 bytes",
    ),
    "LFS pointer with CRLF": (
        LFS.replace(b"\n", b"\r\n"),
        NotACheckpoint,
        f"a Git LFS pointer, not the file itself: oid sha256:{'0f' * 32}, size 102,540,417 bytes",
    ),
    "LFS pointer cut off": (LFS[:45], NotACheckpoint, "a Git LFS pointer, not the file itself"),
    "annex pointer": (
        b"/annex/objects/SHA256E-s5--abc.pt\n",
        NotACheckpoint,
        "a git-annex pointer, not the file itself",
    ),
    "log-in page": (LOGIN, NotACheckpoint, "an HTML page titled 'Log in & wait', not a checkpoint"),
    "page in Latin 1": (
        b"<!DOCTYPE HTML>\n<title>caf\xe9</title>",
        NotACheckpoint,
        "an HTML page titled 'caf\u00e9', not a checkpoint",
    ),
    "page without title": (b"<HTML><body>", NotACheckpoint, "an HTML page, not a checkpoint"),
    "page after prolog": (
        b'\xef\xbb\xbf<?xml version="1.0"?> <!-- a --><!-- <b> -->\n<html><title>t</title>',
        NotACheckpoint,
        "an HTML page titled 't', not a checkpoint",
    ),
    "page in UTF-16": (
        "<html><title>Größe</title>".encode("utf-16"),
        NotACheckpoint,
        "an HTML page titled 'Größe', not a checkpoint",
    ),
    "title that would colour a terminal": (
        b"<html><title>\x1b[31mred</title>",
        NotACheckpoint,
        r"an HTML page titled '\x1b[31mred', not a checkpoint",
    ),
    "store's error": (
        b'<?xml version="1.0"?>\n<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>',
        NotACheckpoint,
        "an error as XML: 'Access Denied'",
    ),
    "error without message": (b"<Error/>", NotACheckpoint, "an error as XML"),
    "XML": (b"<!-- c --><net name='m'/>", NotACheckpoint, "an XML document (net), not a checkpoint"),
    "JSON error": (b'{"error": "Repository not found"}', NotACheckpoint, "an error as JSON: 'Repository not found'"),
    "JSON error object": (
        b'{"error": {"code": 404}}',
        NotACheckpoint,
        """an error as JSON: '{"code": 404}'""",
    ),
    "JSON": (b'[{"a": 1}]', NotACheckpoint, "JSON text, not a checkpoint"),
    "JSON of numbers": (b"[1, 2]", NotACheckpoint, "JSON text, not a checkpoint"),
    "damaged JSON": (b'{"a": ', NotACheckpoint, "damaged or truncated JSON text, not a checkpoint"),
    "deep JSON": (b"[" * 100_000, NotACheckpoint, "damaged or truncated JSON text, not a checkpoint"),
    "long JSON": (
        json.dumps(dict.fromkeys(map(str, range(50_000)))).encode(),
        NotACheckpoint,
        "JSON text, not a checkpoint",
    ),
    "shard index": (
        json.dumps({"metadata": {}, "weight_map": {str(n): "model-1.safetensors" for n in range(20_000)}}).encode(),
        NotACheckpoint,
        "the index of a sharded checkpoint",
    ),
    "notebook": (b'{"cells": [], "nbformat": 4}', NotACheckpoint, "a Jupyter notebook, not a checkpoint"),
    "text": (
        b"\n\n  Entry not found\n",
        NotACheckpoint,
        "plain text of 20 bytes that begins with 'Entry not found', not a checkpoint",
    ),
    "text in brackets": (
        b"[INFO] epoch 1",
        NotACheckpoint,
        "plain text of 14 bytes that begins with '[INFO] epoch 1', not a checkpoint",
    ),
    "long text": (
        b"word " * 100,
        NotACheckpoint,
        f"plain text of 500 bytes that begins with '{('word ' * 20)[:99]}…', not a checkpoint",
    ),
    "text cut in a character": (
        "ee\u0301é".encode()[:-1],
        NotACheckpoint,
        "plain text of 5 bytes that begins with 'ee\u0301', not a checkpoint",
    ),
    "half a character": (
        "é".encode()[:1],
        NotACheckpoint,
        r"not a checkpoint of any known format: 1 byte, b'\xc3' at the beginning",
    ),
    "Python": (b"# model\nimport torch\n\ndef f():\n", NotACheckpoint, "Python source, not a checkpoint"),
    "gzip of a pickle": (
        gzip.compress(b"\x80\x04K\x01."),
        UnsupportedFeature,
        "a file compressed with gzip that holds a pickle",
    ),
    "gzip of a torch zip": (
        gzip.compress(zipped("archive/data.pkl")),
        UnsupportedFeature,
        "a file compressed with gzip that holds a PyTorch zip archive",
    ),
    "gzip of a legacy file": (
        gzip.compress(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02"),
        UnsupportedFeature,
        "a file compressed with gzip that holds a legacy PyTorch checkpoint",
    ),
    "gzip of safetensors": (
        gzip.compress(struct.pack("<Q", 40) + b'{"a":'),
        UnsupportedFeature,
        "a file compressed with gzip that holds a safetensors file",
    ),
    "gzip of zeros": (
        gzip.compress(bytes(100_000_000)),
        UnsupportedFeature,
        "a file compressed with gzip that holds 262,144 bytes, all of them zero: "
        "space that was reserved and not filled",
    ),
    "gzip twice": (
        gzip.compress(gzip.compress(b"x")),
        UnsupportedFeature,
        "a file compressed with gzip that holds a file compressed with gzip",
    ),
    "gzip of noise": (
        gzip.compress(bytes(range(256))[::-1]),
        UnsupportedFeature,
        "a file compressed with gzip that holds an unknown kind of file",
    ),
    "gzip of nothing": (
        gzip.compress(b""),
        UnsupportedFeature,
        "a file compressed with gzip that holds nothing, as far as it can be read",
    ),
    "tar.gz": (
        gzip.compress(tarred("model.pt", "config.json")),
        UnsupportedFeature,
        "a tar archive compressed with gzip that holds 'model.pt', 'config.json'",
    ),
    "damaged gzip": (
        gzip.compress(b"x")[:12] + b"\xff" * 10,
        CorruptFile,
        "a file compressed with gzip that cannot be decompressed",
    ),
    "bzip2": (
        bz2.compress(b"\x80\x02."),
        UnsupportedFeature,
        "a file compressed with bzip2 that holds a pickle",
    ),
    "xz": (
        lzma.compress(b"\x93NUMPY\x01\0"),
        UnsupportedFeature,
        "a file compressed with xz that holds a NumPy array",
    ),
    "damaged xz": (
        b"\xfd7zXZ\0" + b"\xff" * 30,
        CorruptFile,
        "a file compressed with xz that cannot be decompressed",
    ),
    "zlib, as joblib compresses": (
        zlib.compress(b"\x80\x04K\x01."),
        UnsupportedFeature,
        "a file compressed with zlib that holds a pickle",
    ),
    "a text that begins with x": (
        b"xyz",
        NotACheckpoint,
        "plain text of 3 bytes that begins with 'xyz', not a checkpoint",
    ),
    "tar": (tarred("a/model.pt"), UnsupportedFeature, "a tar archive that holds 'a/model.pt'"),
    "tar of many": (
        tarred(*map(str, range(20))),
        UnsupportedFeature,
        "a tar archive that holds '0', '1', '2', '3', '4', '5', '6', '7', …",
    ),
    "Keras 2": (
        b"\x89HDF\r\n\x1a\n" + bytes(2000) + b"keras_version" + bytes(100),
        UnsupportedFeature,
        "a Keras model or its weights, as HDF5",
    ),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(2000), UnsupportedFeature, "an HDF5 file"),
    "SavedModel": (message((1, 1), (2, GRAPH)), UnsupportedFeature, "a TensorFlow SavedModel"),
    "Core ML": (message((1, 4), (2, b"description"), (500, GRAPH)), UnsupportedFeature, "a Core ML model"),
    "GraphDef": (
        message((1, NODE), (1, NODE), (4, message((1, 22)))),
        UnsupportedFeature,
        "a TensorFlow graph (GraphDef)",
    ),
    "TensorFlow Lite": (b"\x1c\0\0\0TFL3\x14\0", UnsupportedFeature, "a TensorFlow Lite model"),
    "TensorFlow index": (
        b"\0\0\0junk\xff" + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb",
        UnsupportedFeature,
        "the index of a TensorFlow checkpoint",
    ),
    "TensorFlow list": (
        b'model_checkpoint_path: "model-1"\n',
        NotACheckpoint,
        "the list of TensorFlow's checkpoints in a folder",
    ),
    "event log": (
        b"\x18\0\0\0\0\0\0\0\xa3\x7fK\"\t\0\0\xc0\xb5\x0f\xdc\xd9A\x1a\rbrain.Event:2",
        NotACheckpoint,
        "a TensorBoard event log, not a checkpoint",
    ),
    "PNG": (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", NotACheckpoint, "a PNG image, not a checkpoint"),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\4", UnsupportedFeature, "a 7z archive"),
    "zip": (
        zipped("a/", "a/readme.txt", "b.txt"),
        NotACheckpoint,
        "a zip archive without a checkpoint in it: 'a/readme.txt', 'b.txt'",
    ),
    "empty zip": (zipped(), NotACheckpoint, "an empty zip archive"),
    "workbook": (zipped("xl/workbook.xml"), NotACheckpoint, "an Excel workbook, not a checkpoint"),
    "truncated zip": (zipped("a.txt")[:60], CorruptFile, "the zip archive has no central directory"),
    "noise": (
        b"\xff\x00\xfe\x01",
        NotACheckpoint,
        r"not a checkpoint of any known format: 4 bytes, b'\xff\x00\xfe\x01' at the beginning",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_files_are_named(case: tuple[bytes, type[CkptError], str]) -> None:
    data, kind, problem = case
    error = explained(data)
    assert isinstance(error, kind)
    assert (error.problem, error.path) == (problem, "x.pt")


@pytest.mark.parametrize("case", [case for case in CASES.values() if "any known format:" not in case[2]])
def test_each_has_a_remedy(case: tuple[bytes, type[CkptError], str]) -> None:
    remedy = explained(case[0]).remedy
    assert remedy
    assert not remedy.endswith(".")  # it ends a sentence that CkptError makes


@pytest.mark.parametrize("row", [*_UNREAD, *_UNRELATED], ids=lambda row: row.what)
def test_magic_numbers_are_reached(row: tuple[bytes, str, str, int]) -> None:
    magic, what, remedy, offset = row
    error = explained(b"\x01\x02\x03\x04"[:offset] + magic + b"\xff\0\xfe\x01")
    assert error.problem in (what, f"{what}, not a checkpoint")
    assert error.remedy == remedy


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("model.pt.crdownload", b"\xff\x00\xfe\x01", "by its name, a download that has not finished"),
        ("model.PT.part", b"\xff\x00\xfe\x01", "by its name, a download that has not finished"),
        ("model.pt.part", LOGIN, "an HTML page titled 'Log in & wait', not a checkpoint"),  # content decides
        ("m.data-00000-of-00001", b"\xff\x00\xfe\x01", "by its name, a data file of a TensorFlow checkpoint"),
    ],
)
def test_names_are_the_last_resort(name: str, data: bytes, problem: str) -> None:
    assert explained(data, name).problem == problem


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["metadata.json", "config.json", "model.weights.h5"], "a Keras model (.keras, version 3)"),
        (["word/document.xml"], "a Word document, not a checkpoint"),
        (["META-INF/MANIFEST.MF", "A.class"], "a Java archive, not a checkpoint"),
        (["pkg/a.py", "pkg-1.0.dist-info/METADATA"], "a Python wheel, not a checkpoint"),
        (["m/saved_model.pb", "m/variables/variables.index"], "a zipped TensorFlow SavedModel"),
        (["a.pt", "b/c.SAFETENSORS", "d.txt"], "a zip archive that holds files of its own: 'a.pt', 'b/c.SAFETENSORS'"),
        (
            ["data.pkl", "version", "data/0"],
            "a PyTorch archive that was packed anew: its pickle is at 'data.pkl', where torch wants a folder at the "
            "root that holds nothing but the checkpoint",
        ),
        (
            ["README", "x/archive/data.pkl"],
            "a PyTorch archive that was packed anew: its pickle is at 'x/archive/data.pkl', where torch wants a "
            "folder at the root that holds nothing but the checkpoint",
        ),
        ([], "an empty zip archive"),
    ],
)
def test_zip_archives_are_told_by_their_members(names: list[str], problem: str) -> None:
    error = explain_zip(names)
    assert error is not None
    assert error.problem == problem
    assert error.remedy


@pytest.mark.parametrize("names", [["a.npy"], ["a.txt", "b/c.csv"]])
def test_other_zip_archives_are_not_told(names: list[str]) -> None:
    assert explain_zip(names) is None


def test_a_gzip_file_that_holds_itself() -> None:
    data = gzip.compress(b"x")
    for _ in range(2000):
        data = gzip.compress(data, 0)
    assert explained(data).problem == "a file compressed with gzip that holds a file compressed with gzip"


@pytest.mark.parametrize(
    "data",
    [
        b"<!---->" * 40_000,
        b"<!--" + b"<?" * 100_000,
        b"<title" * 40_000,
        b"<html>" + b"<title>" * 30_000,
        b"<a" * 100_000,
        b"{" * 200_000,
        b'{"' + b"\\" * 200_000,
        b"from a" * 40_000,
        b"#!" + b"python" * 40_000,
        b"\n" * 250_000,
        b"\x08\x01" * 100_000,
        b"\x80" * 250_000,
        b"oid sha256:" * 20_000,
    ],
    ids=lambda data: repr(data[:12]),
)
def test_text_that_would_stall_a_careless_pattern(data: bytes) -> None:
    assert str(explained(data))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_truncations_are_named_too(case: tuple[bytes, type[CkptError], str]) -> None:
    data = case[0]
    for size in range(0, min(len(data), 600)):
        assert str(explained(data[:size]))


@given(st.sampled_from([data for data, _, _ in CASES.values() if 0 < len(data) < 5000]), st.data())
def test_changed_bytes(original: bytes, draw: st.DataObject) -> None:
    data = bytearray(original)
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(0, len(data) - 1))] = draw.draw(st.integers(0, 255))
    assert str(explained(bytes(data)))
