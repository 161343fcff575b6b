"""What a file is that no format recognises, and what to do about it.

Called when a file is to be refused anyway, so nothing here has to be fast; but a file may be huge or hostile,
so no more than `_LOOK` bytes of it, or of what is compressed in it, are read at a time.
"""

from __future__ import annotations

import bz2
import html
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from ckpt_tools.errors import CorruptFile, NotACheckpoint, UnsupportedFeature
from ckpt_tools.formats.archive import Archive
from ckpt_tools.formats.base import HEAD_BYTES
from ckpt_tools.formats.tar import BLOCK, entries, is_header
from ckpt_tools.report import count
from ckpt_tools.sources import MemorySource, Source

_LOOK = 1 << 18
_MEMORY = 1 << 27
_SHOWN = 8
"""The most names that are listed."""

_Problem = NotACheckpoint | CorruptFile | UnsupportedFeature

_AGAIN = "Fetch it again: a download or a copy went wrong"
_ANSWER = "A server's answer was saved in place of the file: check the address, and sign in if it needs that"
_WRONG_FILE = "Check the path: this is another kind of file"
_UNPACK = "Unpack it and name the file inside"
_EXPORT = "Name the PyTorch checkpoint that it was made from, or convert it in its own framework"
_CHECKPOINT_SUFFIXES = (
    ".pt", ".pth", ".ckpt", ".bin", ".pkl", ".safetensors", ".npz", ".h5", ".onnx", ".gguf", ".pt2", ".zip", ".tar",
)  # fmt: skip
_UNFINISHED = (".crdownload", ".part", ".partial", ".download", ".incomplete", ".aria2", ".opdownload", ".!ut")


class _Magic(NamedTuple):
    """Bytes at a fixed *offset* that tell what a file is."""

    magic: bytes
    what: str
    remedy: str = _WRONG_FILE
    offset: int = 0


_UNREAD = (
    _Magic(b"7z\xbc\xaf\x27\x1c", "a 7z archive", f"{_UNPACK}: 7z x"),
    _Magic(b"Rar!\x1a\x07", "a RAR archive", f"{_UNPACK}: unrar x"),
    _Magic(b"\x28\xb5\x2f\xfd", "a file compressed with Zstandard", f"{_UNPACK}: unzstd"),
    _Magic(b"\x04\x22\x4d\x18", "a file compressed with LZ4", f"{_UNPACK}: unlz4"),
    _Magic(b"TFL3", "a TensorFlow Lite model", _EXPORT, 4),
    _Magic(b"ORTM", "an ONNX Runtime model (.ort)", _EXPORT, 4),
    *(_Magic(magic, "a GGML model, of the format before GGUF", _EXPORT) for magic in (b"lmgg", b"fmgg", b"tjgg")),
)
"""What may well hold weights, but is not read."""

_UNRELATED = (
    _Magic(b"MATLAB 5.0 MAT-file", "a MATLAB file"),
    _Magic(b"PAR1", "a Parquet table"),
    _Magic(b"ARROW1", "an Arrow table"),
    _Magic(b"SQLite format 3\0", "an SQLite database"),
    _Magic(b"\x89PNG\r\n\x1a\n", "a PNG image"),
    _Magic(b"\xff\xd8\xff", "a JPEG image"),
    _Magic(b"GIF8", "a GIF image"),
    _Magic(b"RIFF", "a RIFF media file (WAV, AVI, WebP)"),
    _Magic(b"ftyp", "a video of the MP4 family", offset=4),
    _Magic(b"%PDF-", "a PDF document"),
    _Magic(b"\x7fELF", "an ELF program or library"),
    _Magic(b"MZ\x90\0", "a Windows program or library"),
    _Magic(b"\xcf\xfa\xed\xfe", "a macOS program or library"),
    _Magic(b"\xca\xfe\xba\xbe", "a Java class or a macOS program"),
    _Magic(b"\0asm", "a WebAssembly module"),
    _Magic(b"\0\x05\x16\x07", "the attributes that macOS keeps beside a file, under its name after ._"),
)


class _Compression(NamedTuple):
    """A way to compress one file; *opened* gives the first `_LOOK` bytes inside, or fewer."""

    magic: bytes
    name: str
    command: str
    opened: Callable[[bytes], bytes]


_COMPRESSIONS = (
    _Compression(b"\x1f\x8b\x08", "gzip", "gunzip", lambda data: zlib.decompressobj(31).decompress(data, _LOOK)),
    _Compression(b"BZh", "bzip2", "bunzip2", lambda data: bz2.BZ2Decompressor().decompress(data, _LOOK)),
    _Compression(
        b"\xfd7zXZ\0", "xz", "unxz", lambda data: lzma.LZMADecompressor(memlimit=_MEMORY).decompress(data, _LOOK)
    ),
    _Compression(b"\x78", "zlib", "pigz -dz", lambda data: zlib.decompressobj().decompress(data, _LOOK)),
)
_COMPRESSED_LOOK = 1 << 21  # bzip2 gives nothing before the end of a block, which is nearly 1 MB

_CONTAINED = (
    (re.compile(rb"PK\x03\x04.{26}[^\0]*/data\.pkl", re.S), "a PyTorch zip archive"),
    (re.compile(rb"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\."), "a legacy PyTorch checkpoint"),
    (re.compile(rb".{4}\0{4}\{\"", re.S), "a safetensors file"),
    (re.compile(rb"PK\x03\x04"), "a zip archive"),
    (re.compile(rb"\x93NUMPY"), "a NumPy array"),
    (re.compile(rb"\x80[\x02-\x05]"), "a pickle"),
)
"""How what other modules read begins, for what is compressed."""


def explain(source: Source, head: bytes) -> _Problem:
    """What *source*, which no format recognises and which begins with *head*, is instead."""
    for look in _LOOKS:
        problem = look(source, head)
        if problem is not None:
            problem.at(path=source.name)
            return problem
    return NotACheckpoint(
        f"not a checkpoint of any known format: {count(source.size, 'byte')}, {head[:16]!r} at the beginning",
        path=source.name,
    )


def explain_zip(names: Sequence[str]) -> _Problem | None:
    """What a zip archive with members of these *names* is, where they tell; None where they do not.

    It is no archive that torch, numpy or a format for archives of checkpoints would read.
    """
    if not names:
        return NotACheckpoint("an empty zip archive", remedy=_AGAIN)
    known = set(names)
    if {"config.json", "model.weights.h5"} <= known:
        return UnsupportedFeature("a Keras model (.keras, version 3)", remedy=_EXPORT)
    for what, told in _ZIPS:
        if any(told.search(name) for name in names):
            return NotACheckpoint(f"{what}, not a checkpoint", remedy=_WRONG_FILE)
    if any(name.endswith("saved_model.pb") for name in names):
        return UnsupportedFeature("a zipped TensorFlow SavedModel", remedy=_EXPORT)
    pickles = [name for name in names if name == "data.pkl" or name.endswith("/data.pkl")]
    if pickles:
        return UnsupportedFeature(
            f"a PyTorch archive that was packed anew: its pickle is at {_quoted(pickles[0])}, where torch wants a "
            "folder at the root that holds nothing but the checkpoint",
            remedy="Zip again, without compression, from the folder above: zip -0 -r",
        )
    checkpoints = [name for name in names if name.lower().endswith(_CHECKPOINT_SUFFIXES)]
    if checkpoints:
        return UnsupportedFeature(
            f"a zip archive that holds files of its own: {_listed(checkpoints)}",
            remedy="Unpack it and name the one that is wanted",
        )
    return None


_ZIPS = (
    ("a Word document", re.compile(r"^word/")),
    ("an Excel workbook", re.compile(r"^xl/")),
    ("a PowerPoint presentation", re.compile(r"^ppt/")),
    ("an Android app", re.compile(r"^AndroidManifest\.xml$")),
    ("a Python wheel", re.compile(r"^[^/]+\.dist-info/METADATA$")),
    ("an e-book", re.compile(r"^META-INF/container\.xml$")),
    ("a Java archive", re.compile(r"^META-INF/MANIFEST\.MF$")),
    ("an OpenDocument file", re.compile(r"^META-INF/manifest\.xml$")),
)


# --- text for messages


def _quoted(text: str) -> str:
    """*text* from a file in quotes, on one line, without control characters and bounded."""
    line = " ".join(text.split())
    return repr(line if len(line) <= 100 else line[:99] + "…")


def _listed(names: Iterable[str]) -> str:
    shown = list(islice(names, _SHOWN + 1))
    return ", ".join(map(_quoted, shown[:_SHOWN])) + (", …" if len(shown) > _SHOWN else "")


def _decoded(data: bytes) -> str | None:
    """*data*, which may break off within a character, as text; None where it is none."""
    for encoding, mark in (("utf-16", b"\xff\xfe"), ("utf-16", b"\xfe\xff"), ("utf-8-sig", b"")):
        if data.startswith(mark):
            try:
                text = data[: len(data) & ~1 if mark else None].decode(encoding)
            except UnicodeDecodeError as error:
                if len(data) - error.start > 3:
                    return None
                text = data[: error.start].decode(encoding, "ignore")
            return None if not text or re.search(r"[^\t\n\f\r\x1b -~\x85\xa0-\U0010ffff]", text) else text
    raise AssertionError("unreachable")


# --- the looks, in order; each names one kind of file


def _empty(source: Source, head: bytes) -> _Problem | None:
    if source.size:
        return None
    return NotACheckpoint("an empty file", remedy=_AGAIN)


def _zeros(source: Source, head: bytes) -> _Problem | None:
    """Space that was reserved and never written, as an interrupted download leaves it."""
    if any(head):
        return None
    everything = source.size <= _LOOK
    step = max(source.size // 256, 1)
    offsets = [0] if everything else [*range(0, source.size, step), source.size - len(head)]
    if any(any(source.peek(offset, _LOOK if everything else 4096)) for offset in offsets):
        return CorruptFile(
            f"its first {count(len(head), 'byte')} or more are zero, as in no format: the beginning is missing",
            remedy=_AGAIN,
        )
    where = "all of them zero" if everything else "zero wherever they were looked at"
    return CorruptFile(f"{count(source.size, 'byte')}, {where}: space that was reserved and not filled", remedy=_AGAIN)


def _pointer(source: Source, head: bytes) -> _Problem | None:
    """Git LFS's pointer file (git-lfs, docs/spec.md), or git-annex's."""
    text = head[:1024].decode("ascii", "replace")
    oid = re.search(r"^oid (sha256:[0-9a-f]{64})\s", text, re.M)
    if re.match(r"version https?://\S+/spec/v1\s", text) or (oid and text.startswith("version http")):
        size = re.search(r"^size (\d{1,20})\s", text, re.M)
        return NotACheckpoint(
            "a Git LFS pointer, not the file itself"
            + (f": oid {oid[1]}" if oid else "")
            + (f", size {int(size[1]):,} bytes" if size else ""),
            remedy="Fetch the file with: git lfs pull",
        )
    if re.match(r"/annex/objects/\S+", text):
        return NotACheckpoint("a git-annex pointer, not the file itself", remedy="Fetch the file with: git annex get")
    return None


def _compressed(source: Source, head: bytes) -> _Problem | None:
    """gzip, bzip2, xz and zlib, with what is inside."""
    for magic, name, command, opened in _COMPRESSIONS:
        if not head.startswith(magic):
            continue
        try:
            inside = opened(source.peek(0, _COMPRESSED_LOOK))
        except (zlib.error, OSError, lzma.LZMAError):
            if name == "zlib":  # an x is no magic
                return None
            return CorruptFile(f"a file compressed with {name} that cannot be decompressed", remedy=_AGAIN)
        if not inside and name == "zlib":  # nor are an x and a letter that fits
            return None
        if is_header(inside[:BLOCK]):
            held = _listed(entry.name for entry in entries(MemorySource(inside, "")) if entry.regular)
            return UnsupportedFeature(
                f"a tar archive compressed with {name} that holds {held or 'no files'}", remedy=f"{_UNPACK}: tar -xf"
            )
        return UnsupportedFeature(
            f"a file compressed with {name} that holds {_name_of(inside)}", remedy=f"Decompress it first: {command}"
        )
    return None


def _name_of(head: bytes) -> str:
    """What begins with *head*, in a few words; what is compressed again stays closed."""
    if not head:
        return "nothing, as far as it can be read"
    for pattern, what in _CONTAINED:
        if pattern.match(head):
            return what
    for magic, name, _, _ in _COMPRESSIONS:
        if head.startswith(magic) and len(magic) > 1:
            return f"a file compressed with {name}"
    for look in _LOOKS:
        problem = None if look is _compressed else look(MemorySource(head, ""), head[:HEAD_BYTES])
        if problem is not None:
            return problem.problem
    return "an unknown kind of file"


def _tar(source: Source, head: bytes) -> _Problem | None:
    if not is_header(head[:BLOCK]):
        return None
    held = _listed(entry.name for entry in islice(entries(source), 1000) if entry.regular)
    return UnsupportedFeature(f"a tar archive that holds {held or 'no files'}", remedy=f"{_UNPACK}: tar -xf")


def _zip(source: Source, head: bytes) -> _Problem | None:
    if not head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return None
    try:
        names = [member.name for member in Archive.of(source).members]
    except CorruptFile as error:
        error.remedy = error.remedy or _AGAIN
        return error
    if explained := explain_zip(names):
        return explained
    endings = {name.partition("/")[2] for name in names}
    if endings & {".format_version", ".data/serialization_id", "byteorder"} and "archive_format" not in endings:
        return CorruptFile("a PyTorch zip archive without its data.pkl", remedy=_AGAIN)
    files = (name for name in names if not name.endswith("/"))
    return NotACheckpoint(f"a zip archive without a checkpoint in it: {_listed(files)}", remedy=_WRONG_FILE)


def _hdf5(source: Source, head: bytes) -> _Problem | None:
    if not head.startswith(b"\x89HDF\r\n\x1a\n"):
        return None
    # Keras writes these as attributes of the root group
    keras = re.search(rb"keras_version|model_weights|layer_names", source.peek(0, _LOOK))
    return UnsupportedFeature("a Keras model or its weights, as HDF5" if keras else "an HDF5 file", remedy=_EXPORT)


class _Field(NamedTuple):
    """A field of a protobuf message: its *number*, its wire type, and its number or the place of its bytes."""

    number: int
    wire: int
    value: int
    size: int


def _fields(source: Source, limit: int = 64) -> Iterator[_Field]:
    """The fields of the protobuf message in *source*, up to the first that cannot be one."""
    at = 0
    for _ in range(limit):
        tag, at = _varint(source, at)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            return
        value, size = at, 0
        if wire == 0:
            value, at = _varint(source, at)
        elif wire == 2:
            size, at = _varint(source, at)
            value = at
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            return
        if value < 0 or size < 0:
            return
        yield _Field(number, wire, value, size)
        at += size
        if at > source.size:
            return


def _varint(source: Source, at: int) -> tuple[int, int]:
    """The number at *at* and the offset after it; -1 where there is none."""
    value = 0
    for shift, byte in enumerate(source.peek(at, 10)):
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value, at + shift + 1
    return -1, at


def _text_field(source: Source, field: _Field) -> str | None:
    if field.wire != 2 or field.size > 256:
        return None
    text = _decoded(source.peek(field.value, field.size))
    return text if text and text.isprintable() else None


def _other_protobuf(source: Source, head: bytes) -> _Problem | None:
    """TensorFlow's SavedModel and GraphDef, and Core ML's Model."""
    fields = list(_fields(source))
    numbers = {field.number for field in fields}
    first = fields[0] if fields else None
    if first is None or len(fields) < 2:
        return None
    if first.number == 1 and first.wire == 0 and fields[1].number == 2 and fields[1].wire == 2:
        if any(200 <= number <= 3000 for number in numbers) and first.value <= 20:
            return UnsupportedFeature("a Core ML model", remedy=_EXPORT)
        if numbers == {1, 2} and first.value == 1:
            return UnsupportedFeature("a TensorFlow SavedModel", remedy=_EXPORT)
    if first.number == 1 and first.wire == 2 and numbers <= {1, 2, 3, 4}:
        node = source.slice(first.value, min(first.size, source.size - first.value), source.name)
        inner = [field for field in islice(_fields(node), 2) if _text_field(node, field)]
        if [field.number for field in inner] == [1, 2]:  # a node's name and operation
            return UnsupportedFeature("a TensorFlow graph (GraphDef)", remedy=_EXPORT)
    return None


def _tensorflow_checkpoint(source: Source, head: bytes) -> _Problem | None:
    """A TensorFlow checkpoint of several files, or an event log."""
    # the index is a table of LevelDB's, whose last bytes are a magic number (table/format.h)
    if source.peek(max(source.size - 8, 0), 8) == b"\x57\xfb\x80\x8b\x24\x75\x47\xdb":
        return UnsupportedFeature("the index of a TensorFlow checkpoint", remedy=_EXPORT)
    if re.search(r"\.data-\d{5}-of-\d{5}$", source.name):
        return UnsupportedFeature("by its name, a data file of a TensorFlow checkpoint", remedy=_EXPORT)
    if re.match(rb"(all_)?model_checkpoint_paths?: \"", head):
        return NotACheckpoint("the list of TensorFlow's checkpoints in a folder", remedy=_WRONG_FILE)
    if b"brain.Event:" in head[:64]:
        return NotACheckpoint("a TensorBoard event log, not a checkpoint", remedy=_WRONG_FILE)
    return None


def _magic(source: Source, head: bytes) -> _Problem | None:
    for magic, what, remedy, offset in _UNREAD:
        if head.startswith(magic, offset):
            return UnsupportedFeature(what, remedy=remedy)
    for magic, what, remedy, offset in _UNRELATED:
        if head.startswith(magic, offset):
            return NotACheckpoint(f"{what}, not a checkpoint", remedy=remedy)
    return None


def _web_page(source: Source, head: bytes) -> _Problem | None:
    start = source.peek(0, _LOOK)
    text = _decoded(start) or start.decode("latin-1")  # some pages are in the encodings of before UTF-8
    if not re.match(r"<(!doctype\s+html|html|head|body)\b", text[_prolog(text) :], re.I):
        return None
    title = re.search(r"<title[^<>]{0,200}>([^<]{1,1000})", text, re.I)
    return NotACheckpoint(
        "an HTML page" + (f" titled {_quoted(html.unescape(title[1]))}" if title else "") + ", not a checkpoint",
        remedy="A web page was saved in place of the file: check the address, and sign in if it needs that",
    )


_SPACE = re.compile(r"\s*")


def _prolog(text: str) -> int:
    """Where the first element or the document type of marked-up *text* begins."""
    at = 0
    while text.startswith(("<!--", "<?"), at := _SPACE.match(text, at).end()):  # type: ignore[union-attr]
        end = "-->" if text.startswith("<!--", at) else "?>"
        at = text.find(end, at) + len(end)
        if at < len(end):
            return len(text)
    return at


def _xml(source: Source, head: bytes) -> _Problem | None:
    """XML; often an error that a store of files has sent."""
    text = _decoded(source.peek(0, _LOOK))
    root = re.match(r"<([A-Za-z][\w:.-]{0,100})[\s/>]", text[_prolog(text) :]) if text else None
    if text is None or root is None:
        return None
    message = re.search(r"<Message>([^<]{1,1000})", text)
    if root[1] == "Error":
        said = f": {_quoted(html.unescape(message[1]))}" if message else ""
        return NotACheckpoint(f"an error as XML{said}", remedy=_ANSWER)
    return NotACheckpoint(f"an XML document ({root[1]}), not a checkpoint", remedy=_WRONG_FILE)


def _json(source: Source, head: bytes) -> _Problem | None:
    """JSON; often an error that a server has sent."""
    text = _decoded(source.peek(0, _LOOK))
    if text is None or not re.match(r"\s*(\{\s*[\"}]|\[\s*[\[\]{\"\d-])", text):
        return None
    if re.search(r'"weight_map"\s*:\s*\{', text):
        return NotACheckpoint("the index of a sharded checkpoint", remedy="Name the folder that it is in")
    try:
        value = json.loads(text)
        said = next((value[key] for key in _ERRORS if value.get(key)), None) if isinstance(value, dict) else None
        error = said if isinstance(said, str) else json.dumps(said) if said else ""
    except (ValueError, RecursionError):
        damaged = source.size <= _LOOK
        return NotACheckpoint(
            f"{'damaged or truncated ' if damaged else ''}JSON text, not a checkpoint", remedy=_WRONG_FILE
        )
    if error:
        return NotACheckpoint(f"an error as JSON: {_quoted(error[:1000])}", remedy=_ANSWER)
    notebook = isinstance(value, dict) and "nbformat" in value
    return NotACheckpoint(f"{'a Jupyter notebook' if notebook else 'JSON text'}, not a checkpoint", remedy=_WRONG_FILE)


_ERRORS = ("error", "errors", "message", "detail")
"""Keys under which servers put what went wrong."""


def _text(source: Source, head: bytes) -> _Problem | None:
    text = _decoded(source.peek(0, _LOOK))
    if text is None:
        return None
    if re.search(r"^(import [\w.]+|from [\w.]+ import |def \w+\(|class \w+[(:]|#!.*python)", text, re.M):
        return NotACheckpoint("Python source, not a checkpoint", remedy=_WRONG_FILE)
    line = next((line for line in text.splitlines() if line.strip()), "")
    return NotACheckpoint(
        f"plain text of {count(source.size, 'byte')} that begins with {_quoted(line)}, not a checkpoint",
        remedy=_ANSWER if source.size < 256 else _WRONG_FILE,
    )


def _unfinished(source: Source, head: bytes) -> _Problem | None:
    if not source.name.lower().endswith(_UNFINISHED):
        return None
    return CorruptFile("by its name, a download that has not finished", remedy="Let it finish, or start it again")


_LOOKS: tuple[Callable[[Source, bytes], _Problem | None], ...] = (
    _empty,
    _zeros,
    _pointer,
    _tar,
    _zip,
    _compressed,
    _hdf5,
    _magic,
    _tensorflow_checkpoint,
    _other_protobuf,
    _web_page,
    _xml,
    _json,
    _text,
    _unfinished,
)
