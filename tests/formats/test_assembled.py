"""Tensors put together from pieces: the right bytes at any offset, from any grid; and what is no cover is refused."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tools.checkpoint import Storage, TensorInfo
from ckpt_tools.contents import read_bytes
from ckpt_tools.dtypes import BY_NAME
from ckpt_tools.errors import CorruptFile, LimitExceeded, UnsupportedFeature
from ckpt_tools.formats import assembled
from ckpt_tools.formats.assembled import Deferred, Piece, assemble, elements
from ckpt_tools.formats.dense import dense
from ckpt_tools.sources import FileSource, MemorySource

INT16 = BY_NAME["int16"]


def memory(data: bytes) -> MemorySource:
    return MemorySource(data, "piece")


def numbers(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(math.prod(shape), dtype="<i2").reshape(shape)


def cut(whole: np.ndarray, cuts: list[list[int]]) -> list[Piece]:
    """The pieces of *whole* cut in each dimension at *cuts*."""
    edges = [list(itertools.pairwise([0, *sorted(at), size])) for at, size in zip(cuts, whole.shape, strict=True)]
    return [
        Piece(
            tuple(a for a, _ in box),
            tuple(b - a for a, b in box),
            memory(whole[tuple(slice(a, b) for a, b in box)].tobytes()),
        )
        for box in itertools.product(*edges)
    ]


@st.composite
def grids(draw: st.DrawFn) -> tuple[np.ndarray, list[Piece]]:
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    cuts = [draw(st.lists(st.integers(0, size), max_size=3)) for size in shape]  # also pieces of no elements
    whole = numbers(shape)
    return whole, draw(st.permutations(cut(whole, cuts)))


@given(grids(), st.sampled_from([0, 64]), st.data())
def test_any_window_of_any_grid(grid: tuple[np.ndarray, list[Piece]], short: int, data: st.DataObject) -> None:
    whole, pieces = grid
    with mock.patch.object(assembled, "SHORT_RUN", short):
        check_windows(whole, pieces, data)


def check_windows(whole: np.ndarray, pieces: list[Piece], data: st.DataObject) -> None:
    tensor = assemble("t", INT16, whole.shape, pieces)
    assert read_bytes(tensor) == whole.tobytes()
    assert tensor.nbytes == whole.nbytes
    filled = sum(0 not in piece.sizes for piece in pieces)
    assert tensor.details == ({"chunks": filled} if filled > 1 else {})
    assert tensor.storage is not None
    offset = data.draw(st.integers(0, whole.nbytes))
    count = data.draw(st.integers(0, whole.nbytes + 4))
    assert tensor.storage.source.peek(offset, count) == whole.tobytes()[offset : offset + count]


def test_one_piece_can_still_be_located(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(bytes(10) + numbers((2, 3)).tobytes())
    piece = Piece((0, 0), (2, 3), FileSource(file).slice(10, 12, "piece"))
    tensor = assemble("t", INT16, (2, 3), [piece, Piece((2, 0), (0, 3), memory(b""))])
    assert tensor.storage is not None
    assert tensor.storage.source.locate(4) == (str(file), 14)
    assert (tensor.stride, tensor.details) == ((3, 1), {})


def test_several_pieces_cannot_be_located() -> None:
    tensor = assemble("t", INT16, (4,), cut(numbers((4,)), [[2]]))
    assert tensor.storage is not None
    assert tensor.storage.source.locate(0) is None


def test_no_elements() -> None:
    tensor = assemble("t", INT16, (0, 3), [Piece((0, 0), (0, 3), memory(b""))])
    assert (read_bytes(tensor), tensor.shape) == (b"", (0, 3))


def test_scalar() -> None:
    tensor = assemble("t", INT16, (), [Piece((), (), memory(b"\x07\0"))])
    assert (read_bytes(tensor), tensor.shape, tensor.stride) == (b"\x07\0", (), ())


FOUR = memory(bytes(8))


@pytest.mark.parametrize(
    ("shape", "pieces", "problem"),
    [
        ((4, 2), [Piece((0, 0), (2, 2), FOUR)], "t has 8 elements, of which its chunks hold 4"),
        (
            (4, 2),
            [Piece((0, 0), (2, 2), FOUR), Piece((1, 0), (2, 2), FOUR)],
            r"t: the chunks at \(0, 0\) and at \(1, 0\) overlap",
        ),
        ((4, 2), [Piece((0, 0), (2, 2), FOUR), Piece((0, 0), (2, 2), FOUR)], "overlap"),
        ((), [Piece((), (), memory(b"ab")), Piece((), (), memory(b"ab"))], "overlap"),
        ((4, 2), [Piece((3, 0), (2, 2), FOUR)], r"t is of shape 4×2; its chunk 2×2 at \(3, 0\) reaches out"),
        ((4, 2), [Piece((0,), (8,), memory(bytes(16)))], "t has 2 dimensions, and a chunk of it 1"),
        ((4,), [], "t has 4 elements, of which its chunks hold 0"),
        ((4,), [Piece((0,), (4,), memory(bytes(6)))], "t: a chunk of 8 bytes has 6: piece"),
    ],
)
def test_what_is_no_cover(shape: tuple[int, ...], pieces: list[Piece], problem: str) -> None:
    with pytest.raises(CorruptFile, match=problem):
        assemble("t", INT16, shape, pieces)


def test_columns_are_told_apart_without_comparing_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembled, "MAX_COMPARED", 1000)
    whole = numbers((3, 500))
    assert read_bytes(assemble("t", INT16, whole.shape, cut(whole, [[], list(range(1, 500))]))) == whole.tobytes()


def test_comparing_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembled, "MAX_COMPARED", 100)
    whole = numbers((20, 20))
    with pytest.raises(LimitExceeded, match="t is cut into 400 chunks"):
        assemble("t", INT16, whole.shape, cut(whole, [list(range(1, 20)), list(range(1, 20))]))


def test_deferred_is_found_once_and_late() -> None:
    found = []

    def find() -> MemorySource:
        found.append(1)
        return memory(b"abcd")

    source = Deferred("late", 4, find)
    assert not found
    assert source.read(1, 2) + source.read(0, 1) == b"bca"
    assert len(found) == 1


def test_deferred_must_be_as_long_as_was_said() -> None:
    with pytest.raises(CorruptFile, match="late: holds 4 bytes where 5 are wanted"):
        Deferred("late", 5, lambda: memory(b"abcd")).read(0, 1)


def test_elements_lie_in_the_file_or_are_gathered(tmp_path: Path) -> None:
    whole = numbers((40, 30))
    file = tmp_path / "f"
    file.write_bytes(b"head" + whole.tobytes())
    storage = Storage(FileSource(file), 4, whole.nbytes, INT16, "cpu", "0")
    row = elements(TensorInfo("t", INT16, (30,), (1,), 60, storage), "row")
    assert (row.read(0, row.size), row.locate(2)) == (whole[2].tobytes(), (str(file), 4 + 120 + 2))
    turned = elements(TensorInfo("t", INT16, (30, 40), (1, 30), 0, storage), "turned")
    expected = whole.T.tobytes()
    assert turned.read(7, 100) == expected[7:107]
    assert turned.read(2000, 300) == expected[2000:2300]
    assert turned.read(1, 5) == expected[1:6]  # back
    assert turned.locate(0) is None
    swapped = Storage(memory(b"\1\2\3\4"), 0, 4, INT16, "cpu", "0", "big")
    assert elements(dense("t", INT16, (2,), swapped), "swapped").read(0, 4) == b"\2\1\4\3"


def test_elements_of_what_has_none() -> None:
    source = elements(TensorInfo("t", INT16, (2,), (1,), device="meta"), "t")
    with pytest.raises(UnsupportedFeature, match="t has no bytes of its own: it is meta"):
        source.read(0, 1)
