"""ONNX models are described as their protobuf has them, and as the onnx package reads them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.checkpoint import TensorInfo
from ckpt_tools.contents import read_bytes
from ckpt_tools.errors import CkptError, CorruptFile, LimitExceeded, NotACheckpoint, UnsupportedFeature
from ckpt_tools.formats import onnx, open_checkpoint
from ckpt_tools.sources import MemorySource
from tests.formats.as_torch import assert_only_ckpt_errors, by_name
from tests.formats.hostile import assert_withstands_damage

FLOAT, UINT8, INT32, INT64, STRING, BOOL, FLOAT16, DOUBLE, COMPLEX64 = 1, 2, 6, 7, 8, 9, 10, 11, 14


def varint(value: int) -> bytes:
    value &= (1 << 64) - 1
    made = b""
    while value > 0x7F:
        made += bytes([value & 0x7F | 0x80])
        value >>= 7
    return made + bytes([value])


def message(*fields: tuple[int, int | str | bytes]) -> bytes:
    """A protobuf message from (field number, value): numbers as varints, the rest with its length."""
    made = b""
    for number, value in fields:
        if isinstance(value, int):
            made += varint(number << 3) + varint(value)
        else:
            data = value.encode() if isinstance(value, str) else value
            made += varint(number << 3 | 2) + varint(len(data)) + data
    return made


def tensor(name: str, dims: tuple[int, ...], kind: int, *fields: tuple[int, int | str | bytes]) -> bytes:
    return message(*((1, size) for size in dims), (2, kind), (8, name), *fields)


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


def value_info(name: str, *dims: int | str, kind: int = FLOAT) -> bytes:
    shape = message(*((1, message((1 if isinstance(dim, int) else 2, dim))) for dim in dims))
    return message((1, name), (2, message((1, message((1, kind), (2, shape))))))


def model(*graph: tuple[int, int | str | bytes], more: tuple[tuple[int, int | str | bytes], ...] = ()) -> bytes:
    opset = message((2, 17))
    return message((1, 8), (2, "pytorch"), (3, "2.4.0"), (7, message(*graph)), (8, opset), *more)


def with_tensor(*args: Any) -> bytes:
    return model((5, tensor(*args)))


def only(data: bytes | Path) -> TensorInfo:
    ((_, found),) = by_name(open_checkpoint(data)).items()
    return found


def example() -> bytes:
    return model(
        (1, message((1, "x"), (1, "w"), (2, "h"), (4, "MatMul"))),
        (1, message((1, "h"), (1, "b"), (2, "y"), (4, "Add"))),
        (2, "main_graph"),
        (5, tensor("w", (2, 3), FLOAT, (9, floats(*range(6))))),
        (5, tensor("b", (3,), FLOAT, (4, floats(1, 2, 3)))),
        (11, value_info("x", "batch", 2)),
        (11, value_info("w", 2, 3)),
        (12, value_info("y", "batch", 3)),
        more=(
            (8, message((1, "com.microsoft"), (2, 1))),
            (14, message((1, "labels"), (2, "cat dog"))),
            (14, message((1, "long"), (2, "x" * 70_000))),
        ),
    )


def test_a_model() -> None:
    checkpoint = open_checkpoint(example())
    assert (checkpoint.format, checkpoint.kind, checkpoint.refusals) == ("onnx", "program", None)
    assert dict(checkpoint.producer) == {
        "exporter": "pytorch 2.4.0", "ONNX IR version": "8", "opset": "ai.onnx 17, com.microsoft 1"
    }  # fmt: skip
    assert dict(checkpoint.metadata) == {
        "labels": "cat dog",
        "long": "[70,000 bytes of text]",
        "graph": "main_graph",
        "nodes": 2,
        "inputs": ("x: float32[batch, 2]",),  # not w, which is an initializer
        "outputs": ("y: float32[batch, 3]",),
    }
    found = by_name(checkpoint)
    assert {n: (t.dtype.name, t.shape, t.stride) for n, t in found.items()} == {
        "w": ("float32", (2, 3), (3, 1)), "b": ("float32", (3,), (1,))
    }  # fmt: skip
    assert read_bytes(found["w"]) == floats(*range(6))
    assert read_bytes(found["b"]) == floats(1, 2, 3)


def test_bytes_of_tensors_are_passed_over() -> None:
    class Counting(MemorySource):
        total = 0

        def peek(self, offset: int, count: int) -> bytes:
            data = super().peek(offset, count)
            self.total += len(data)
            return data

    weights = [(5, tensor(f"layer.{n}.weight", (1 << 18,), FLOAT, (9, bytes(1 << 20)))) for n in range(8)]
    nodes = [(1, message((1, "x"), (2, "y"), (4, "Relu"))) for _ in range(1000)]
    source = Counting(model(*nodes, *weights), "model.onnx")
    assert len(by_name(open_checkpoint(source))) == 8
    assert source.total < 100_000


# --- where values can stand


def test_values_of_fixed_width_lie_where_they_are() -> None:
    assert read_bytes(only(with_tensor("t", (2,), DOUBLE, (10, struct.pack("<2d", 1, 2))))) == struct.pack("<2d", 1, 2)
    assert read_bytes(only(with_tensor("t", (1,), COMPLEX64, (4, floats(1, 2))))) == floats(1, 2)


@pytest.mark.parametrize(
    ("kind", "field", "values", "code"),
    [
        (INT64, 7, [1, -2, 300, 1 << 62], "q"),
        (INT32, 5, [1, -2, 300, -(1 << 31)], "i"),
        (UINT8, 5, [0, 1, 128, 255], "B"),
        (BOOL, 5, [1, 0, 1, 1], "?"),
        (13, 11, [0, 1, (1 << 64) - 1, 5], "Q"),
        (12, 11, [0, 1, (1 << 32) - 1, 5], "I"),
        (FLOAT16, 5, [0x3C00, 0xBC00, 0, 1], "H"),
    ],
)
def test_values_in_varints(kind: int, field: int, values: list[int], code: str) -> None:
    run = b"".join(varint(value) for value in values)
    found = only(with_tensor("t", (2, 2), kind, (field, run)))
    expected = struct.pack(f"<4{code}", *values)
    assert read_bytes(found) == expected
    # and piece by piece, forward and back, not only at values' borders
    source = found.storage.source if found.storage else None
    assert source is not None
    pieces = [(0, 1), (1, 2), (3, 1), (2, len(expected) - 2), (0, len(expected))]
    assert [source.read(at, size) for at, size in pieces] == [expected[at : at + size] for at, size in pieces]


def test_dimensions_packed_or_one_by_one() -> None:
    packed = message((1, varint(2) + varint(3)), (2, FLOAT), (8, "t"), (9, floats(*range(6))))
    assert only(model((5, packed))).shape == (2, 3)


def test_values_that_are_not_there() -> None:
    found = only(with_tensor("t", (2,), FLOAT))
    with pytest.raises(UnsupportedFeature, match="the file holds no values"):
        read_bytes(found)
    one_by_one = varint(7 << 3) + varint(5) + varint(7 << 3) + varint(6)
    found = only(model((5, tensor("t", (2,), INT64) + one_by_one)))
    with pytest.raises(UnsupportedFeature, match="its values are scattered"):
        read_bytes(found)


def test_tensors_of_no_elements_and_of_no_dimensions() -> None:
    assert read_bytes(only(with_tensor("t", (0, 3), FLOAT))) == b""
    assert read_bytes(only(with_tensor("t", (), FLOAT, (9, floats(5))))) == floats(5)


def test_text_is_no_tensor_but_is_told() -> None:
    (section,) = open_checkpoint(with_tensor("words", (2,), STRING, (6, b"a"), (6, b"b"))).state_dicts
    assert dict(section.entries) == {"words": "[2 × string]"}


@pytest.mark.parametrize(("kind", "label", "nbytes"), [(22, "INT4", 3), (23, "FLOAT4E2M1", 3), (26, "INT2", 2)])
def test_elements_packed_in_bytes(kind: int, label: str, nbytes: int) -> None:
    raw = bytes(range(nbytes))
    found = only(with_tensor("t", (5,), kind, (9, raw)))
    assert (found.dtype.name, found.shape, found.numel, found.nbytes) == (label, (5,), 5, nbytes)
    assert read_bytes(dict(found.parts)["blocks"]) == raw


def test_sparse_initializers() -> None:
    values = tensor("s", (2,), FLOAT, (9, floats(5, 6)))
    indices = tensor("", (2,), INT64, (7, varint(1) + varint(7)))
    found = only(model((15, message((1, values), (2, indices), (3, 3), (3, 3)))))
    assert (found.name, found.layout, found.shape) == ("s", "sparse_coo", (3, 3))
    assert {name: read_bytes(part) for name, part in found.parts} == {
        "indices": struct.pack("<2q", 1, 7), "values": floats(5, 6)
    }  # fmt: skip


# --- external data


def external(name: str, *entries: tuple[str, str], dims: tuple[int, ...] = (2,)) -> bytes:
    pairs = [(13, message((1, key), (2, value))) for key, value in entries]
    return with_tensor(name, dims, FLOAT, *pairs, (14, 1))


def saved(folder: Path, data: bytes) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(data)
    return path


def test_external_data(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(bytes(4) + floats(1, 2))
    entries = ("location", "weights.bin"), ("offset", "4"), ("length", "8")
    path = saved(tmp_path, external("w", *entries))
    found = only(path)
    assert read_bytes(found) == floats(1, 2)
    assert found.storage is not None
    assert found.storage.source.locate(found.storage.offset) == (str(tmp_path / "weights.bin"), 4)
    assert open_checkpoint(path).size == path.stat().st_size + 12
    (tmp_path / "weights.bin").write_bytes(floats(1, 2))
    assert read_bytes(only(saved(tmp_path, external("w", ("location", "weights.bin"))))) == floats(1, 2)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ((("location", "absent.bin"),), "its file 'absent.bin' is not there"),
        ((("location", "short.bin"),), "short.bin ends at byte 4"),
        ((("location", "short.bin"), ("offset", str(1 << 70))), "short.bin ends at byte 4"),
        ((), "its file '' is not there"),
    ],
)
def test_external_data_that_is_not_there(entries: tuple[tuple[str, str], ...], reason: str, tmp_path: Path) -> None:
    (tmp_path / "short.bin").write_bytes(bytes(4))
    with pytest.raises(UnsupportedFeature, match=reason):
        read_bytes(only(saved(tmp_path, external("w", *entries))))


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname", "a/../../secret.bin", "..\\secret.bin"])
def test_external_data_does_not_climb(location: str, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(floats(1, 2))
    folder = tmp_path / "model"
    folder.mkdir()
    path = saved(folder, external("w", ("location", location)))
    (anomaly,) = open_checkpoint(path).anomalies
    assert repr(location) in anomaly.what
    with pytest.raises(UnsupportedFeature, match="outside the model's folder"):
        read_bytes(only(path))


def test_external_data_of_a_model_without_a_folder() -> None:
    with pytest.raises(UnsupportedFeature, match="not read from a folder"):
        read_bytes(only(external("w", ("location", "weights.bin"))))


# --- damage


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (with_tensor("t", (3,), FLOAT, (9, floats(1, 2))), CorruptFile, "'t' has 8 bytes, but its shape takes 12"),
        (with_tensor("t", (3,), INT64, (7, varint(1))), CorruptFile, "'t' has 1 bytes for 3 numbers"),
        (with_tensor("t", (1 << 62, 4), FLOAT), CorruptFile, "'t' has more elements than 63 bits"),
        (with_tensor("t", (-1,), FLOAT), CorruptFile, "negative dimension"),
        (with_tensor("t", (1,) * 65, FLOAT), LimitExceeded, "more than 64 dimensions"),
        (with_tensor("t", (1,), 99), UnsupportedFeature, "'t' is of ONNX's type 99"),
        (with_tensor("t" * 70_000, (1,), FLOAT), LimitExceeded, "a name of 70,000 bytes"),
        (model((5, tensor("t", (0,), FLOAT)), (5, tensor("t", (0,), FLOAT))), CorruptFile, "two initializers"),
        (external("w", ("location", "x"), ("length", "9")), CorruptFile, "has 9 bytes at 0 of 'x'"),
        (external("w", ("location", "x"), ("offset", "-1")), CorruptFile, "has 8 bytes at -1"),
        (external("w", ("location", "x"), ("offset", "a")), CorruptFile, "an offset that is no number"),
        (external("w", ("location", "x"), ("offset", "9" * 5000)), CorruptFile, "an offset that is no number"),
        (model((15, message((3, 1)))), UnsupportedFeature, "type 0"),
        (model((2, 5)), CorruptFile, "a number stands where text must"),
        (model((5, b"\x0b\x01")), CorruptFile, "no protobuf field"),
        (model((5, b"\x00\x01")), CorruptFile, "no protobuf field"),
        (model((5, b"\x4a\x7f")), CorruptFile, "field 9 wants 127 bytes, and 0 are left"),
        (model((5, b"\x08" + b"\xff" * 12)), CorruptFile, "a number without an end"),
        (model((5, b"\x08\xff")), CorruptFile, "within a number"),
        (example()[:200], CorruptFile, "truncated: field 7 wants"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_damaged_model(data: bytes, error: type[CkptError], text: str) -> None:
    with pytest.raises(error, match=text):
        open_checkpoint(data)


def test_fields_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    data = model(*[(1, b"")] * 1000)
    assert open_checkpoint(data).metadata["nodes"] == 1000
    monkeypatch.setattr(onnx, "MAX_FIELDS", 999)
    with pytest.raises(LimitExceeded, match="more than 999 fields"):
        open_checkpoint(data)


def test_initializers_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    data = model(*((5, tensor(str(n), (0,), FLOAT)) for n in range(10)))
    assert len(by_name(open_checkpoint(data))) == 10
    monkeypatch.setattr(onnx, "MAX_TENSORS", 9)
    with pytest.raises(LimitExceeded, match="more than 9 initializers"):
        open_checkpoint(data)


def test_nesting_without_end() -> None:
    kind = message((1, message((1, FLOAT))))
    body = b""
    for _ in range(2000):
        kind = message((4, message((1, kind))))  # a sequence of sequences
        body = message((5, message((6, message((1, body))))))  # a node's attribute is a graph of such a node
    checkpoint = open_checkpoint(model((1, body), (11, message((1, "x"), (2, kind)))))
    assert dict(checkpoint.metadata) == {"nodes": 1, "inputs": ("x",), "outputs": ()}


@pytest.mark.parametrize(
    "data",
    [
        message((1, 8), (2, "x")),  # no graph
        message((7, b"")),  # no version
        message((1, 1000), (7, b"")),  # no version that could be
        message((1, 8), (7, b""), (9, b"")),  # a field that models do not have
        message((1, "8"), (7, b"")),  # TensorFlow's graphs begin so
    ],
)
def test_other_protobufs_are_not_taken_for_models(data: bytes) -> None:
    with pytest.raises(CkptError) as caught:
        open_checkpoint(data)
    assert isinstance(caught.value, NotACheckpoint | UnsupportedFeature)


def test_cut_off_anywhere() -> None:
    data = with_tensor("w", (2,), FLOAT, (9, floats(1, 2)))
    # what follows the graph may be missing: then it is a shorter model
    graph_end = len(data) - len(message((8, message((2, 17)))))
    assert assert_only_ckpt_errors(data[:graph_end]) == 0
    assert only(data[:graph_end]).shape == (2,)


def test_damaged_anywhere() -> None:
    data = model((1, b""), (5, tensor("w", (2,), FLOAT, (9, floats(1, 2)))), (11, value_info("x", "n", 2)))
    assert assert_withstands_damage(data) > 0


# --- the onnx package


def test_what_the_package_writes(tmp_path: Path) -> None:
    package = pytest.importorskip("onnx")
    numpy = pytest.importorskip("numpy")
    helper, proto = package.helper, package.TensorProto
    random = numpy.random.default_rng(0)
    codes = ["f4", "f8", "f2", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?"]
    arrays = [random.integers(0, 2, (2, 3)).astype(code) for code in codes]
    initializers = [package.numpy_helper.from_array(array, f"raw.{array.dtype}") for array in arrays]
    initializers += [
        helper.make_tensor(
            f"list.{array.dtype}", helper.np_dtype_to_tensor_dtype(array.dtype), array.shape, array.ravel()
        )
        for array in arrays
    ]
    initializers.append(helper.make_tensor("bf16", proto.BFLOAT16, (4,), [1.0, -2.0, 0.5, 3.0]))
    initializers.append(helper.make_tensor("float8", proto.FLOAT8E4M3FN, (4,), [1.0, -2.0, 0.5, 3.0]))
    big = package.numpy_helper.from_array(random.standard_normal((64, 64)).astype("f4"), "big")
    node = helper.make_node("Add", ["x", "big"], ["y"])
    inputs = [helper.make_tensor_value_info("x", proto.FLOAT, ["n", 64])]
    outputs = [helper.make_tensor_value_info("y", proto.FLOAT16, [None, 64])]
    graph = helper.make_graph([node], "g", inputs, outputs, [*initializers, big])
    made = helper.make_model(graph, producer_name="test", opset_imports=[helper.make_opsetid("", 18)])
    helper.set_model_props(made, {"key": "value"})
    inline, outside = tmp_path / "inline.onnx", tmp_path / "outside.onnx"
    package.save(made, inline)
    package.save(made, outside, save_as_external_data=True, location="weights", size_threshold=1000)
    for path in (inline, outside):
        checkpoint = open_checkpoint(path)
        there = {t.name: t for t in package.load(path).graph.initializer}
        found = by_name(checkpoint)
        assert list(found) == list(there)
        for name, tensor in found.items():
            array = package.numpy_helper.to_array(there[name])
            assert tensor.shape == array.shape
            assert tensor.dtype.name == str(array.dtype)
            assert read_bytes(tensor) == array.tobytes(), name
        assert checkpoint.producer["ONNX IR version"] == str(made.ir_version)
        assert checkpoint.producer["opset"] == "ai.onnx 18"
        assert dict(checkpoint.metadata) == {
            "key": "value", "graph": "g", "nodes": 1,
            "inputs": ("x: float32[n, 64]",), "outputs": ("y: float16[?, 64]",),
        }  # fmt: skip
    storage = by_name(open_checkpoint(outside))["big"].storage
    assert storage is not None
    assert storage.source.name == str(tmp_path / "weights")
