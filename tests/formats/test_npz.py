"""numpy's files against numpy itself."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tools.checkpoint import Checkpoint, TensorInfo
from ckpt_tools.contents import read_bytes
from ckpt_tools.errors import CkptError, CorruptFile, UnsupportedFeature
from ckpt_tools.formats.npz import NPY, NPZ, OtherArray
from ckpt_tools.sources import FileSource, MemorySource


def npy(array: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def npz(*, save: Callable[..., None] = np.savez, **arrays: Any) -> bytes:
    buffer = io.BytesIO()
    save(buffer, **arrays)
    return buffer.getvalue()


def headed(header: str | bytes, data: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    raw = header if isinstance(header, bytes) else header.encode("utf-8")
    return b"\x93NUMPY" + bytes(version) + struct.pack("<H" if version == (1, 0) else "<I", len(raw)) + raw + data


def zipped(members: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


def of_npy(data: bytes) -> Checkpoint:
    source = MemorySource(data, "x.npy")
    assert NPY.detect is not None
    assert NPY.detect(source, data[:4096])
    return NPY.read(source)  # type: ignore[arg-type]


def of_npz(data: bytes) -> Checkpoint:
    source = MemorySource(data, "x.npz")
    assert NPZ.detect is not None
    assert NPZ.detect(source, data[:4096])
    return NPZ.read(source)  # type: ignore[arg-type]


def assert_same(found: object, array: np.ndarray[Any, Any]) -> None:
    assert isinstance(found, TensorInfo)
    assert (found.dtype.name, found.shape) == (array.dtype.name, array.shape)
    little = array.astype(array.dtype.newbyteorder("<"))
    assert read_bytes(found) == little.tobytes()


ARRAYS = {
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
    "big": np.arange(4, dtype=">i4"),
    "scalar": np.array(2.5, dtype=np.float16),
    "empty": np.zeros((2, 0, 3), dtype=np.int64),
    "mask": np.array([True, False]),
    "complex": np.array([1 + 2j, 3j], dtype=np.complex64),
    "bytes": np.arange(5, dtype=np.uint8),
    "unsigned": np.arange(3, dtype=np.uint64),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_one_array(name: str) -> None:
    checkpoint = of_npy(npy(ARRAYS[name]))
    assert (checkpoint.format, checkpoint.kind, checkpoint.refusals) == ("npy", "tensor", None)
    assert_same(checkpoint.values, ARRAYS[name])
    assert checkpoint.loose == (((), checkpoint.values),)
    assert checkpoint.anomalies == ()


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_archive_of_arrays(save: Callable[..., None]) -> None:
    checkpoint = of_npz(data := npz(save=save, **ARRAYS))
    assert (checkpoint.format, checkpoint.kind, checkpoint.size) == ("npz", "state_dict", len(data))
    (state_dict,) = checkpoint.state_dicts
    assert [tensor.name for tensor in state_dict.tensors] == list(ARRAYS)
    for tensor in state_dict.tensors:
        assert_same(tensor, ARRAYS[tensor.name])
    assert (checkpoint.anomalies, checkpoint.pickles) == ((), ())


def test_orders_are_strides() -> None:
    fortran, big = of_npy(npy(ARRAYS["fortran"])).values, of_npy(npy(ARRAYS["big"])).values
    assert isinstance(fortran, TensorInfo)
    assert fortran.stride == (1, 2)
    assert isinstance(big, TensorInfo)
    assert big.storage is not None
    assert big.storage.byteorder == "big"


def test_tensors_know_their_place_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, a=np.arange(4, dtype=np.uint8), b=np.frombuffer(b"needle", dtype=np.uint8))
    checkpoint = NPZ.read(FileSource(path))  # type: ignore[arg-type]
    storage = checkpoint.state_dicts[0]["b"].storage
    assert storage is not None
    assert storage.source.locate(storage.offset) == (str(path), path.read_bytes().index(b"needle"))


def test_every_version_of_the_header() -> None:
    array = np.arange(3, dtype=np.int16)
    header = "{'descr': '<i2', 'fortran_order': False, 'shape': (3,), }"
    for version in ((1, 0), (2, 0), (3, 0)):
        data = headed(header, array.tobytes(), version)
        assert np.array_equal(np.load(io.BytesIO(data)), array)
        assert_same(of_npy(data).values, array)


def test_sizes_as_python_2_wrote_them() -> None:
    data = headed("{'descr': '<i2', 'fortran_order': False, 'shape': (3L, 1L)}", bytes(6))
    values = of_npy(data).values
    assert isinstance(values, TensorInfo)
    assert values.shape == (3, 1)


@pytest.mark.parametrize(
    ("array", "descr"),
    [
        (np.array(["text", "more"]), "'<U4'"),
        (np.array([b"bytes"]), "'|S5'"),
        (np.array(["2020-01-01"], dtype="M8[D]"), "'<M8[D]'"),
        (np.zeros(2, dtype=[("x", "<f4"), ("y", "<i8")]), "[('x', '<f4'), ('y', '<i8')]"),
        (np.zeros(1, dtype=np.longdouble), f"'{np.dtype(np.longdouble).str}'"),
    ],
)
def test_what_is_no_tensor_is_listed(array: np.ndarray[Any, Any], descr: str) -> None:
    checkpoint = of_npz(npz(weight=ARRAYS["matrix"], other=array))
    (state_dict,) = checkpoint.state_dicts
    assert [tensor.name for tensor in state_dict.tensors] == ["weight"]
    other = state_dict.entries["other"]
    assert isinstance(other, OtherArray)
    assert (other.descr, other.shape) == (descr, array.shape)
    assert other.source.read(0, other.source.size) == array.tobytes()
    assert repr(other) == f"<array of {descr}, shape {array.shape}>"


def test_a_dict_that_was_saved_as_an_array() -> None:
    weights = {"conv1": {"weight": ARRAYS["matrix"], "bias": ARRAYS["unsigned"]}, "epoch": 3}
    checkpoint = of_npy(npy(weights, allow_pickle=True))
    (state_dict,) = checkpoint.state_dicts
    assert (state_dict.path, state_dict.role) == (("conv1",), "model")
    for name, tensor in zip(("weight", "bias"), state_dict.tensors, strict=True):
        assert_same(tensor, weights["conv1"][name])  # type: ignore[index]
    assert checkpoint.training is not None
    assert checkpoint.training.epoch is not None
    assert checkpoint.training.epoch.value == 3
    (pickle,) = checkpoint.pickles
    assert pickle.member == "array: pickle"
    assert {str(use) for use in pickle.globals} >= {"numpy.ndarray", "numpy.dtype"}


class Hostile:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("must not be called",)


def test_pickles_of_object_arrays_are_kept_for_the_audit(capsys: pytest.CaptureFixture[str]) -> None:
    objects = np.array([Hostile(), 1, None], dtype=object)
    checkpoint = of_npz(npz(weight=ARRAYS["matrix"], hidden=objects))
    assert [pickle.member for pickle in checkpoint.pickles] == ["hidden.npy: pickle"]
    assert "builtins.print" in {str(use).replace("__builtin__", "builtins") for use in checkpoint.globals}
    hidden = checkpoint.values["hidden"]  # type: ignore[index]
    assert isinstance(hidden, list)
    assert hidden[1:] == [1, None]
    assert capsys.readouterr().out == ""


# each as numpy's own header may give it, and whether numpy has pickle read the array
DESCRS = ["|O", "|O8", "O", "<O8", "object", "i4,O", [("a", "<i4"), ("b", "|O")], [("a", [("c", "O")])],
          [(("title", "name"), "O")], [("a", "O", (2,))], ("O", (2,)), [("a", ("i4,object", (2,)))]]  # fmt: skip
PLAIN = ["<f4", "<U3", "<M8[ns]", "|V8", [("O", "<i4")], [("a", "<i4", (2,))], ("<f8", (2,)), [("object", "|S3")]]


@pytest.mark.parametrize("descr", [*DESCRS, *PLAIN], ids=str)
def test_whether_numpy_would_unpickle_it(descr: Any, capsys: pytest.CaptureFixture[str]) -> None:
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': (1,)}}"
    data = headed(header, pickle.dumps(Hostile(), 2) + bytes(64))
    from numpy.lib.format import descr_to_dtype

    objects = descr_to_dtype(descr).hasobject
    assert objects == (descr in DESCRS)
    checkpoint = of_npy(data)
    assert [found.member for found in checkpoint.pickles] == (["array: pickle"] if objects else [])
    assert capsys.readouterr().out == ""


def test_what_numpy_would_pass_over() -> None:
    array = npy(ARRAYS["matrix"])
    assert [(a.what, a.where) for a in of_npy(array + b"tail").anomalies] == [
        ("4 bytes follow the array, which numpy does not read", "array")
    ]
    tensor = of_npy(array + b"tail").values
    assert isinstance(tensor, TensorInfo)
    assert tensor.storage is not None
    assert tensor.storage.nbytes == 24
    with pytest.warns(UserWarning, match="Duplicate name"):
        data = zipped([("a.npy", npy(np.zeros(2))), ("note.txt", b"hello"), ("a.npy", array)])
    checkpoint = of_npz(data)
    assert [(a.what, a.where) for a in checkpoint.anomalies] == [
        ("several members have this name; numpy takes the last", "a.npy"),
        ("the member is no array; numpy would give its bytes", "note.txt"),
    ]
    assert_same(checkpoint.state_dicts[0]["a"], np.load(io.BytesIO(data))["a"])


GOOD = "{'descr': '<i2', 'fortran_order': False, 'shape': (3,)}"


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"\x93NUMPY", "the array ends within its version: truncated"),
        (b"\x93NUMPY\x01\x00\x10", "the array ends within its header's length: truncated"),
        (headed(GOOD)[:40], "holds 40 of the 65 bytes up to the header's end: truncated"),
        (headed(GOOD, bytes(5)), "an array of shape (3,) takes 6 bytes, but 5 are there"),
        (headed("{'descr': "), "the array's header is no Python literal: b\"{'descr': \""),
        (headed("open('x')"), "the array's header is no Python literal: b\"open('x')\""),
        (headed(b"\xff", version=(3, 0)), "the array's header is no Python literal: b'\\xff'"),
        (headed("(" * 300), f"the array's header is no Python literal: {b'(' * 80!r}"),
        (headed("-" * 9000 + "1"), f"the array's header is no Python literal: {b'-' * 80!r}"),
        (headed("[" * 90 + "]" * 90 + "." * 1), f"the array's header is no Python literal: {b'[' * 80!r}"),
        (headed("9" * 9000), f"the array's header is no Python literal: {b'9' * 80!r}"),
        (headed("{[]: 1}"), "the array's header is no Python literal: b'{[]: 1}'"),
        (headed("[]"), "the array's header is not a dict of descr, fortran_order and shape"),
        (headed("{'descr': '<i2'}"), "the array's header is not a dict of descr, fortran_order and shape"),
        (
            headed("{'descr': '<i2', 'fortran_order': 0, 'shape': 3}"),
            "the array has the fortran_order 0 and the shape 3",
        ),
        (headed(GOOD.replace("3", "2, -3")), "an array has the impossible shape (2, -3)"),
        (headed(GOOD.replace("3", "2, 'a'")), "an array has the impossible shape (2, 'a')"),
        (
            headed(GOOD.replace("3", str(2**62))),
            f"an array of shape ({2**62},) takes {2**63:,} bytes, but 0 are there",
        ),
    ],
)
def test_damage_is_named(data: bytes, problem: str) -> None:
    with pytest.raises(CorruptFile) as caught:
        of_npy(data)
    assert (caught.value.problem, caught.value.path) == (problem, "x.npy")
    with pytest.raises(CorruptFile) as caught:
        of_npz(zipped([("a.npy", data)]))
    assert (caught.value.problem, caught.value.path, caught.value.member) == (problem, "x.npz", "a.npy")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (headed(GOOD, version=(9, 1)), "the array has the format version 9.1; 1.0 to 3.0 are known"),
        (headed(" " * 10_001), "the array has a header of 10,001 bytes, beyond the 10,000 numpy reads"),
    ],
)
def test_what_numpy_would_not_read_either(data: bytes, problem: str) -> None:
    with pytest.raises(ValueError):
        np.load(io.BytesIO(data))
    with pytest.raises(UnsupportedFeature) as caught:
        of_npy(data)
    assert caught.value.problem == problem


def test_a_damaged_pickle_says_in_which_member() -> None:
    data = npy(np.array([1, None], dtype=object))
    with pytest.raises(CkptError) as caught:
        of_npz(zipped([("a.npy", data[:-5])]))
    assert str(caught.value).startswith("x.npz: a.npy")
    assert "x.npz: a.npy: a.npy" not in str(caught.value)


def test_escapes_in_a_header_warn_nobody() -> None:
    with pytest.raises(CkptError):
        of_npy(headed(r"{'\d': 1}"))  # a SyntaxWarning of Python, and warnings are errors here


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (npz(a=ARRAYS["matrix"]), True),
        (zipped([("a.txt", b"")]), False),
        (zipped([("dir/a.npy", b"")]), True),
        (b"PK\x03\x04 and no more", False),
        (npy(ARRAYS["matrix"]), False),
    ],
)
def test_detection_of_archives(data: bytes, expected: bool) -> None:
    assert NPZ.detect is not None
    assert NPZ.detect(MemorySource(data, "x"), data[:4096]) is expected


@pytest.mark.parametrize(
    "data",
    [
        npy(ARRAYS["matrix"]),
        npy({"a": ARRAYS["matrix"]}, allow_pickle=True),
    ],
)
def test_every_truncation_is_refused(data: bytes) -> None:
    for size in range(8, len(data)):
        with pytest.raises(CkptError):
            of_npy(data[:size])


@given(st.data())
def test_changed_bytes(data: st.DataObject) -> None:
    original = data.draw(
        st.sampled_from(
            [
                (npy(ARRAYS["matrix"]), of_npy),
                (npz(a=ARRAYS["matrix"], o=np.array([None])), of_npz),
                (npz(save=np.savez_compressed, a=ARRAYS["matrix"]), of_npz),
            ]
        )
    )
    changed = bytearray(original[0])
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(4, len(changed) - 1))] = data.draw(st.integers(0, 255))
    source = MemorySource(bytes(changed), "x")
    for format in (NPY, NPZ):
        try:
            assert format.detect is not None
            if format.detect(source, bytes(changed[:4096])):
                format.read(source)  # type: ignore[arg-type]
        except CkptError as error:
            assert error.path
