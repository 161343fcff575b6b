"""Checksums that are put together from those of parts are those of the whole, and nothing known is read again."""

from __future__ import annotations

import io
import warnings
import zipfile
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tools.analysis.checksums import Checksums, combined
from ckpt_tools.analysis.statistics import statistics_of
from ckpt_tools.audit.rules import BY_CODE
from ckpt_tools.audit.subject import Subject
from ckpt_tools.formats import open_checkpoint
from ckpt_tools.formats.archive import Archive
from ckpt_tools.sources import MemorySource
from tests.hostile.assembler import tensors

torch = pytest.importorskip("torch")


class Counting(MemorySource):
    """Notes which bytes were read."""

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(data, name)
        self.reads: list[tuple[int, int]] = []

    def peek(self, offset: int, count: int) -> bytes:
        data = super().peek(offset, count)
        self.reads.append((offset, len(data)))
        return data

    def read_of(self, start: int, end: int) -> int:
        """How many bytes between *start* and *end* were read, each counted as often as it was."""
        return sum(max(0, min(end, at + size) - max(start, at)) for at, size in self.reads)


@given(st.binary(max_size=64), st.binary(max_size=64))
def test_two_checksums_make_that_of_both(first: bytes, second: bytes) -> None:
    assert combined(zlib.crc32(first), zlib.crc32(second), len(second)) == zlib.crc32(first + second)


CRC, SIZE = st.integers(0, (1 << 32) - 1), st.integers(0, 1 << 62)


@given(CRC, CRC, CRC, SIZE, SIZE)
def test_it_does_not_matter_which_two_come_together_first(a: int, b: int, c: int, second: int, third: int) -> None:
    assert combined(combined(a, b, second), c, third) == combined(a, combined(b, c, third), second + third)


@given(st.binary(min_size=1, max_size=200), st.lists(st.tuples(st.integers(0, 199), st.integers(0, 60)), max_size=8))
def test_runs_in_any_order_and_overlapping(data: bytes, runs: list[tuple[int, int]]) -> None:
    known = Checksums()
    for start, size in runs:
        part = data[start : start + size]
        known.add("x", start, len(part), zlib.crc32(part))
    source = Counting(data, "x")
    assert known.of(source) == zlib.crc32(data)
    assert known.of(source.slice(len(data) // 3, len(data) - len(data) // 3, "y")) == zlib.crc32(data[len(data) // 3 :])


def test_what_is_known_is_not_read() -> None:
    data = bytes(range(256)) * 64
    known = Checksums()
    known.add("x", 1000, 4000, zlib.crc32(data[1000:5000]))
    known.add("x", 5000, 8000, zlib.crc32(data[5000:13000]))
    source = Counting(data, "x")
    assert known.of(source) == zlib.crc32(data)
    assert source.read_of(1000, 13000) == 0
    assert source.read_of(0, len(data)) == len(data) - 12000


def save(values: object, path) -> bytes:
    torch.save(values, path)
    return path.read_bytes()


def test_an_audit_reads_a_tensor_once(tmp_path) -> None:
    whole = torch.randn(3, 500_000)
    values = {
        "whole": whole,
        "transposed": torch.randn(300, 200).T,
        "part": torch.randn(5000)[:3000],
        "half": whole[:1].half(),
    }
    source = Counting(save(values, tmp_path / "m.pt"), "m.pt")
    subject = Subject.of(source, "m.pt")
    _ = subject.coverage  # which looks for the archive's end, and so reads on from the last storage
    source.reads.clear()
    assert list(BY_CODE["I201"].findings(subject)) == []
    assert all(numbers is not None for _, numbers in subject.statistics)
    for storage in subject.coverage.storages:
        ((_, start, size),) = storage.source.extents(0, storage.nbytes)
        assert source.read_of(start, start + size) == size, storage.key


@pytest.mark.parametrize("offset", [0, 1, 4095, 4_000_000, 5_999_999])
def test_a_flipped_bit_is_found_wherever_it_is(tmp_path, offset) -> None:
    data = bytearray(save({"weight": torch.randn(1_500_000)}, tmp_path / "m.pt"))
    (tensor,) = open_checkpoint(bytes(data)).state_dicts[0].tensors
    ((_, start, _),) = tensor.storage.source.extents(0, tensor.nbytes)
    data[start + offset] ^= 1
    (found,) = BY_CODE["I201"].findings(Subject.of(MemorySource(bytes(data), "m.pt"), "m.pt"))
    assert found.location.member == "m/data/0"
    assert found.evidence["found"] == f"{zlib.crc32(data[start : start + tensor.nbytes]):08x}"


def test_checksums_of_statistics_are_of_the_bytes_in_the_file(tmp_path) -> None:
    values = {"a": torch.randn(7, 9), "b": torch.zeros(4, dtype=torch.uint8), "c": torch.randn(6, 4).T}
    data = save(values, tmp_path / "m.pt")
    source = MemorySource(data, "m.pt")
    known = Checksums()
    list(statistics_of(open_checkpoint(source).state_dicts[0].tensors, checksums=known))
    archive = Archive.of(source)
    for member in archive.members:
        assert known.of(archive.open(member)) == member.crc


def test_two_members_of_one_name_have_checksums_of_their_own() -> None:
    def archive(crc: int) -> bytes:
        file = io.BytesIO()
        with warnings.catch_warnings(), zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
            warnings.simplefilter("ignore")
            pickled = tensors(key="0", numel=2)
            made.writestr("a/data.pkl", pickled)
            made.writestr("a/version", "3\n")
            made.writestr("a/data/0", b"AAAAAAAA")
            made.writestr("a/data/0", b"BBBBBBBB")
        data = file.getvalue()
        at = data.rindex(zlib.crc32(b"BBBBBBBB").to_bytes(4, "little"))
        return data[:at] + crc.to_bytes(4, "little") + data[at + 4 :]

    def found(data: bytes) -> list[str]:
        subject = Subject.of(MemorySource(data, "m.pt"), "m.pt")
        return [finding.location.member for finding in BY_CODE["I201"].findings(subject)]

    assert found(archive(zlib.crc32(b"BBBBBBBB"))) == []
    assert found(archive(zlib.crc32(b"AAAAAAAA"))) == ["a/data/0"]
