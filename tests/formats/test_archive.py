"""Zip archives as torch reads them: which member answers to a name, where its bytes lie, what is left of a cut one."""

from __future__ import annotations

import io
import random
import struct
import warnings
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from ckpt_tools import Checkpoint, open_checkpoint
from ckpt_tools.contents import read_bytes
from ckpt_tools.errors import CkptError, CorruptFile, NotACheckpoint, UnsupportedFeature
from ckpt_tools.formats.archive import Archive, MissingDirectory
from ckpt_tools.sources import MemorySource

torch = pytest.importorskip("torch")


@dataclass(frozen=True)
class Entry:
    """A member to be written, and how."""

    name: str
    data: bytes
    method: int = 0
    padding: int = 0
    local_name: str | None = None
    flags: int = 0
    zip64: bool = False
    descriptor: bool = False


def written(
    entries: Sequence[Entry],
    order: Sequence[int] | None = None,
    *,
    comment: bytes = b"",
    zip64: bool = False,
    gap: bytes = b"",
) -> bytes:
    """A zip file of *entries*; the central directory lists them in *order*. *gap* follows the end record's fields."""
    body = b""
    records: list[bytes] = []
    for entry in entries:
        packed = entry.data
        if entry.method == 8:
            deflate = zlib.compressobj(wbits=-15)
            packed = deflate.compress(entry.data) + deflate.flush()
        name, local_name = entry.name.encode(), (entry.local_name or entry.name).encode()
        sizes = len(packed), len(entry.data)
        crc = zlib.crc32(entry.data)
        extra = struct.pack("<HH", 0x4246, entry.padding) + bytes(entry.padding) if entry.padding else b""
        central_extra = b""
        shown = sizes
        offset = len(body)
        if entry.zip64:
            extra += struct.pack("<HHQQ", 1, 16, sizes[1], sizes[0])
            central_extra = struct.pack("<HHQQQ", 1, 24, sizes[1], sizes[0], offset)
            shown, offset = (0xFFFFFFFF, 0xFFFFFFFF), 0xFFFFFFFF
        flags = entry.flags | (8 if entry.descriptor else 0)
        local = (0, 0, 0) if entry.descriptor else (crc, *shown)
        header = struct.pack("<4s5H", b"PK\3\4", 45, flags, entry.method, 0, 0x21)
        body += header + struct.pack("<3L2H", *local, len(local_name), len(extra)) + local_name + extra + packed
        if entry.descriptor:
            body += struct.pack("<4s3L", b"PK\7\x08", crc, *sizes)
        record = struct.pack("<4s6H", b"PK\1\2", 45, 45, flags, entry.method, 0, 0x21)
        record += struct.pack("<3L5H2L", crc, *shown, len(name), len(central_extra), 0, 0, 0, 0, offset)
        records.append(record + name + central_extra)
    directory = b"".join(records[i] for i in (order if order is not None else range(len(records))))
    start, count = len(body), len(records)
    end = b""
    if zip64:
        end += struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(directory), start)
        end += struct.pack("<4sLQL", b"PK\6\7", 0, start + len(directory), 1)
        end += struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, len(comment))
    else:
        end += struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, len(directory), start, len(comment))
    return body + directory + end + gap + comment


def saved(value: object) -> dict[str, bytes]:
    """The members that torch.save writes, without the root folder."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}


def entries_of(members: dict[str, bytes], root: str = "archive") -> list[Entry]:
    return [Entry(f"{root}/{name}", data) for name, data in members.items()]


def marked(number: int) -> dict[str, bytes]:
    """Members of a file whose pickle says *number*, and so do the bytes of its one storage."""
    return saved({"number": number, "w": torch.full((4,), float(number))})


def by_torch(data: bytes) -> tuple[int, float] | None:
    """What torch takes from `marked` members: the pickle's number and the storage's; None where it fails."""
    try:
        value = torch.load(io.BytesIO(data), weights_only=True)
    except Exception:
        return None
    return value["number"], float(value["w"][0])


def by_us(data: bytes) -> tuple[int, float] | None:
    try:
        checkpoint = open_checkpoint(data)
    except CkptError:
        return None
    assert isinstance(checkpoint.values, dict)
    ((_, found),) = [*checkpoint.loose, *(("", t) for s in checkpoint.state_dicts for t in s.tensors)]
    return checkpoint.values["number"], struct.unpack("<f", read_bytes(found)[:4])[0]


# --- several members that answer to one name


def spellings(name: str, count: int, chance: random.Random) -> list[str]:
    """*count* ways to write the file *name*, equal and not, that miniz does not tell apart."""
    folder, _, file = name.partition("/")
    return [folder + "/" + "".join(c.upper() if chance.random() < 0.3 else c for c in file) for _ in range(count)]


@pytest.mark.parametrize("seed", range(60))
def test_of_duplicates_the_one_that_torch_takes(seed: int) -> None:
    chance = random.Random(seed)
    count = 2 + seed % 5
    others = {k: v for k, v in marked(0).items() if k not in ("data.pkl", "data/0")}
    entries = entries_of(others)
    for number, name in enumerate(spellings("archive/data.pkl", count, chance), 1):
        entries.append(Entry(name, marked(number)["data.pkl"]))
    for number, name in enumerate(spellings("archive/data/0", count, chance), 1):
        entries.append(Entry(name, marked(number)["data/0"]))
    for _ in range(chance.randrange(8)):
        entries.append(Entry(f"archive/{''.join(chance.choices('adt./0', k=6))}", b"decoy"))
    chance.shuffle(entries)
    order = list(range(len(entries)))
    chance.shuffle(order)
    data = written(entries, order)
    expected = by_torch(data)
    assert expected is not None
    assert by_us(data) == expected
    assert len(open_checkpoint(data).anomalies) >= 2


def test_duplicates_are_reported_with_the_one_taken() -> None:
    members = [*entries_of(marked(1)), Entry("archive/DATA.pkl", marked(2)["data.pkl"])]
    data = written(members)
    archive = Archive(MemorySource(data, "x"))
    assert archive.duplicates == (("archive/data.pkl", "archive/DATA.pkl"),)
    taken = archive.find("archive/data.pkl")
    assert taken is not None
    (anomaly,) = open_checkpoint(data).anomalies
    assert anomaly.where == "archive/data.pkl = archive/DATA.pkl"
    assert anomaly.what == (f"2 members answer to the same name; torch opens the one at byte {taken.header_offset:,}")


def test_case_counts_for_no_name() -> None:
    data = written([Entry(f"Archive/{name.upper()}", content) for name, content in marked(3).items()])
    assert by_torch(data) == by_us(data) == (3, 3.0)


def test_only_ascii_letters_are_folded() -> None:
    source = MemorySource(written([Entry("r/É", b"1"), Entry("r/é", b"2"), Entry("r/Z", b"3")]), "x")
    archive = Archive(source)
    assert archive.duplicates == ()
    for name, content in {"r/É": b"1", "r/é": b"2", "R/z": b"3"}.items():
        member = archive.find(name)
        assert member is not None
        assert archive.open(member).read(0, 1) == content
    assert archive.find("r/ż") is None


def test_the_root_is_that_of_the_first_entry() -> None:
    entries = [*entries_of(marked(1), "a"), *entries_of(marked(2), "b")]
    order = list(range(len(entries)))
    assert by_us(written(entries, order)) == (1, 1.0)
    assert by_us(written(entries, order[::-1])) == (2, 2.0)


@pytest.mark.parametrize("name", ["b/data/0", "ARCHIVE/data/1", "readme", "archive.txt"])
def test_members_outside_of_the_root(name: str) -> None:
    """torch refuses them, whatever is in them."""
    data = written([*entries_of(marked(1)), Entry(name, b"x")])
    assert by_torch(data) is None
    checkpoint = open_checkpoint(data)
    said = "1 of 8 members stand outside of 'archive/', so that torch refuses it"
    assert [anomaly.what for anomaly in checkpoint.anomalies] == [said]
    assert [(refusal.subject, refusal.reason) for refusal in checkpoint.refusals or ()] == [("zip archive", said)]


@pytest.mark.parametrize("version", [b"1", b"10\n", b"3\n", b"0\n", b"11", b"x", b"", b"1" * 5000, None])
def test_versions(version: bytes | None) -> None:
    members = marked(1)
    del members["version"]
    data = written(entries_of(members | ({"version": version} if version is not None else {})))
    checkpoint = open_checkpoint(data)
    assert (not checkpoint.refusals) == (by_torch(data) is not None)
    if checkpoint.refusals:
        (anomaly,) = checkpoint.anomalies
        assert anomaly.what.startswith("the archive's version is ")
        assert anomaly.what.endswith(", where torch wants 1 to 10")


def test_no_root_no_checkpoint() -> None:
    with pytest.raises((NotACheckpoint, UnsupportedFeature)):
        open_checkpoint(written([Entry(name, data) for name, data in marked(1).items()]))


# --- layouts


LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "padded": {"padding": 100},
    "much padded": {"padding": 60_000},
    "deflated": {"method": 8},
    "zip64": {"zip64": True},
    "descriptors": {"descriptor": True},
    "other names in the local headers": {"local_name": "x"},
    "longer names in the local headers": {"local_name": "y" * 300},
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ending", [{}, {"comment": b"made by hand"}, {"comment": b"c" * 65_535}, {"zip64": True}])
def test_layouts(layout: str, ending: dict[str, Any]) -> None:
    # torch fails on comments that are long for the file: it seeks to before its beginning
    members = marked(4) | {"data/9": random.Random(4).randbytes(70_000)}
    entries = [replace(entry, **LAYOUTS[layout]) for entry in entries_of(members)]
    data = written(entries, **ending)
    assert by_us(data) == (4, 4.0)
    assert by_torch(data) == (4, 4.0)


def test_a_comment_that_looks_like_an_end_record() -> None:
    """miniz takes the last signature that has room for a whole record."""
    for comment in (b"PK\5\6", b"xPK\5\6" + bytes(17), b"PK\5\6" * 3):
        data = written(entries_of(marked(5)), comment=comment)
        assert by_us(data) == by_torch(data) == (5, 5.0)


def test_an_end_record_in_the_comment_is_the_end_record() -> None:
    """As in miniz: a signature with room for a record after it is taken for one."""
    inner = written(entries_of(marked(6)))
    at = inner.rindex(b"PK\5\6")
    comment = inner[at:]
    data = written(entries_of(marked(6)), comment=comment)
    assert by_us(data) == by_torch(data)


def test_the_zip64_record_counts_where_there_is_one() -> None:
    """Even if the fields of the plain record are in order, and name another directory."""
    first, second = entries_of(marked(1), "a"), entries_of(marked(2), "b")
    both = written([*first, *second])
    end = both.rindex(b"PK\5\6")
    (start,) = struct.unpack_from("<L", both, end + 16)
    count = len(first)
    size = sum(46 + len(entry.name) for entry in first)
    rest = end - start - size
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, rest, start + size)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, end, 1)
    plain = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, count, count, size, start, 0)
    data = both[:end] + record + locator + plain
    assert by_torch(data) == (2, 2.0)
    assert by_us(data) == (2, 2.0)


def test_bytes_before_the_directory_belong_to_nobody() -> None:
    data = written(entries_of(marked(7)))
    end = data.rindex(b"PK\5\6")
    start = data.index(b"PK\1\2")
    moved = data[:start] + bytes(1000) + data[start:end]
    fields = struct.unpack_from("<4s4H2LH", data, end)
    data = moved + struct.pack("<4s4H2LH", *fields[:6], fields[6] + 1000, 0)
    assert by_us(data) == by_torch(data) == (7, 7.0)


def test_where_the_bytes_lie(tmp_path: Any) -> None:
    """A stored member's bytes can be found in the file itself."""
    path = tmp_path / "x.pt"
    path.write_bytes(written([replace(entry, padding=37) for entry in entries_of(marked(8))]))
    checkpoint = open_checkpoint(path)
    (found,) = [*(t for _, t in checkpoint.loose), *(t for s in checkpoint.state_dicts for t in s.tensors)]
    assert found.storage is not None
    name, offset = found.storage.source.locate(4) or ("", 0)
    assert name == str(path)
    assert path.read_bytes()[offset - 4 : offset + 12] == struct.pack("<4f", *[8.0] * 4)


def damaged(data: bytes, position: int, value: bytes) -> bytes:
    return data[:position] + value + data[position + len(value) :]


def central(data: bytes, name: str) -> int:
    """Where the central record of *name* begins."""
    return data.rindex(name.encode()) - 46


def test_crc_and_local_flags_are_not_looked_at() -> None:
    data = written(entries_of(marked(9)))
    record = central(data, "archive/data.pkl")
    data = damaged(data, record + 16, b"\1\2\3\4")
    local = data.index(b"archive/data.pkl") - 30
    data = damaged(data, local + 6, b"\1\0")  # encrypted, it says
    assert by_us(data) == by_torch(data) == (9, 9.0)


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        (8, b"\1\0", "the member is encrypted"),
        (10, b"\x0c\0", "the member is compressed by method 12"),
        (20, struct.pack("<L", 1 << 30), "reach past the end of the file"),
        (42, struct.pack("<L", 1 << 30), "reach past the end of the file"),
        (42, struct.pack("<L", 5), "no local header stands where the central directory points"),
        (24, struct.pack("<L", 5), "it is stored, but has"),
        (0, b"XX", "the central directory is damaged"),
        (28, struct.pack("<H", 60_000), "the central directory"),
    ],
)
def test_damaged_records(field: int, value: bytes, problem: str) -> None:
    data = written(entries_of(marked(10)))
    data = damaged(data, central(data, "archive/data.pkl") + field, value)
    assert by_torch(data) is None
    with pytest.raises(CkptError, match=problem):
        open_checkpoint(data)


@pytest.mark.parametrize(
    ("field", "value", "problem"),
    [
        (10, struct.pack("<H", 60_000), "the central directory declares 60,000 entries"),
        (12, struct.pack("<L", 1 << 31), "but the file ends at byte"),
        (16, struct.pack("<L", 1 << 31), "but the file ends at byte"),
        (16, struct.pack("<L", 1), "the central directory is damaged"),
    ],
)
def test_damaged_end_records(field: int, value: bytes, problem: str) -> None:
    data = written(entries_of(marked(11)))
    data = damaged(data, data.rindex(b"PK\5\6") + field, value)
    assert by_torch(data) is None
    with pytest.raises(CkptError, match=problem):
        open_checkpoint(data)


def test_deflated_members_that_do_not_inflate() -> None:
    entries = [replace(entry, method=8) for entry in entries_of(marked(12))]
    data = written(entries)
    local = data.index(b"archive/data/0")
    data = damaged(data, local + len("archive/data/0"), b"\xff\xff")
    checkpoint = open_checkpoint(data)
    (found,) = [*(t for _, t in checkpoint.loose), *(t for s in checkpoint.state_dicts for t in s.tensors)]
    with pytest.raises(CorruptFile, match="does not inflate"):
        read_bytes(found)


def test_a_bomb_is_not_inflated() -> None:
    entries = entries_of(marked(13))
    entries[0] = replace(entries[0], data=b"]" * 40_000_000, method=8)
    with pytest.raises(CkptError, match="its pickle of 40,000,000 bytes is deflated to"):
        open_checkpoint(written(entries))


def test_declared_sizes_beyond_what_deflate_can_do() -> None:
    data = written([replace(entry, method=8) for entry in entries_of(marked(14))])
    data = damaged(data, central(data, "archive/data/0") + 24, struct.pack("<L", 1 << 31))
    with pytest.raises(CorruptFile, match=r"more than .* deflated bytes can hold"):
        open_checkpoint(data)


def test_too_small_to_be_anything() -> None:
    for size in range(22):
        with pytest.raises(MissingDirectory):
            Archive(MemorySource((b"PK\3\4" + bytes(30))[:size], "x"))


# --- what is left of a file that is cut


def sample() -> tuple[bytes, dict[str, tuple[int, int]]]:
    """A file of three storages, as torch writes it, and where each of them begins and ends."""
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(10), "b": torch.ones(500, dtype=torch.int16), "c": torch.ones(3)}, buffer)
    data = buffer.getvalue()
    places = {}
    with zipfile.ZipFile(buffer) as archive:
        for key in "012":
            info = archive.getinfo(f"archive/data/{key}")
            name_length, extra_length = struct.unpack_from("<2H", data, info.header_offset + 26)
            start = info.header_offset + 30 + name_length + extra_length
            places[key] = (start, start + info.file_size)
    return data, places


def told(data: bytes) -> str:
    with pytest.raises(CorruptFile) as caught:
        open_checkpoint(data)
    assert caught.value.remedy is not None
    return caught.value.problem


def test_truncated_archives_tell_what_is_left() -> None:
    data, places = sample()
    whole = len(data)
    for key, complete, then in (("0", 0, "1"), ("1", 1, "2"), ("2", 2, None)):
        start, end = places[key]
        cut = f"its pickle is whole and names 3 storages, of which {complete} are complete; storage '{key}' is cut"
        for size in (start, start + 1, end - 1):
            problem = told(data[:size])
            assert problem.startswith(f"a truncated PyTorch zip archive: {size:,} bytes are there of at least ")
            assert problem.endswith(cut)
            least = int(problem.partition("of at least ")[2].partition(";")[0].replace(",", ""))
            assert size < least <= whole
        assert told(data[:end]).endswith(f"of which {complete + 1} are complete"), then
    assert f" {whole - 1:,} bytes are there of at least {whole:,}; " in told(data[:-1])


def test_every_truncation_counts_right() -> None:
    data, places = sample()
    pickle_start = 30 + sum(struct.unpack_from("<2H", data, 26))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        pickle_end = pickle_start + archive.getinfo("archive/data.pkl").file_size
    for size in range(4, len(data) - 22, 7):
        problem = told(data[:size])
        if size < pickle_start:
            assert problem == "a zip archive of which not even the first header is whole"
        elif size < pickle_end:
            assert problem == f"a PyTorch zip archive, truncated after {size:,} bytes, within its pickle"
        else:
            complete = sum(end <= size for _, end in places.values())
            assert f"names 3 storages, of which {complete} are complete" in problem
            cut = [key for key, (start, end) in places.items() if start <= size < end]
            assert problem.endswith(f"storage '{cut[0]}' is cut" if cut else "are complete")


def test_truncated_archives_that_were_packed_again() -> None:
    """Sizes stand in the local headers, and nothing after the bytes; deflated members are counted whole, too."""
    members = saved({"a": torch.zeros(100), "b": torch.ones(100)})
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", method) as archive:
            for name, content in members.items():
                archive.writestr(f"archive/{name}", content)
            offset = archive.getinfo("archive/data/1").header_offset
        data = buffer.getvalue()
        assert told(data[:offset]).endswith("names 2 storages, of which 1 are complete")
        assert told(data[: data.index(b"PK\1\2")]).endswith("names 2 storages, of which 2 are complete")


class Sub(torch.Tensor):  # type: ignore[name-defined, misc]
    """A subclass: its storage stands in arguments of arguments."""


def test_storages_of_subclasses_count_too() -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(4).as_subclass(Sub), "b": torch.nn.Parameter(torch.zeros(4))}, buffer)
    data = buffer.getvalue()
    assert "names 2 storages, of which 2 are complete" in told(data[: data.index(b"PK\1\2")])


@pytest.mark.parametrize("numel", [-1, -(1 << 70), 1 << 63, 1 << 40_000], ids=int.bit_length)
def test_impossible_sizes_in_a_truncated_archive(numel: int) -> None:
    size = numel.bit_length() // 8 + 1
    number = b"\x8b" + struct.pack("<i", size) + numel.to_bytes(size, "little", signed=True)
    pid = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpu" + number + b"tQ"
    data = written([Entry("archive/data.pkl", b"\x80\2" + pid + b"."), Entry("archive/data/0", bytes(40))])
    assert "names 0 storages" in told(data[: data.index(b"PK\1\2")])


def test_other_archives_that_are_cut() -> None:
    data = written([Entry("readme.txt", b"hello" * 10)])
    problem = told(data[: data.index(b"PK\1\2")])
    size = data.index(b"PK\1\2")
    assert problem == f"a zip archive, truncated after {size:,} bytes; its first member is 'readme.txt'"


def test_tensors_are_all_there(tmp_path: Any) -> None:
    """The sanity of these tests: what `written` writes, zipfile reads."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with zipfile.ZipFile(io.BytesIO(written(entries_of(marked(1)), comment=b"c"))) as archive:
            assert archive.testzip() is None
            assert archive.comment == b"c"
    checkpoint = open_checkpoint(written(entries_of(marked(1))))
    assert isinstance(checkpoint, Checkpoint)
