"""safetensors files against the library itself."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tools.checkpoint import Checkpoint
from ckpt_tools.errors import CkptError, CorruptFile, UnsupportedFeature
from ckpt_tools.formats.safetensors import FORMAT, detect, read
from ckpt_tools.sources import MemorySource, Source


def container(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A file of *header* (bytes, text, or anything JSON can hold) and *data*."""
    if not isinstance(header, bytes):
        header = (header if isinstance(header, str) else json.dumps(header)).encode("utf-8")
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def tensor(dtype: str, shape: list[int], begin: int, end: int, **more: object) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end], **more}


def describe(data: bytes) -> Checkpoint:
    return read(MemorySource(data, "x.safetensors"))


def refusal(data: bytes) -> CorruptFile:
    with pytest.raises(CorruptFile) as caught:
        describe(data)
    assert caught.value.path == "x.safetensors"
    return caught.value


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], dict[str, list[int]] | None]:
    """The names and shapes that the library finds in a file, or None where it refuses it."""
    path = tmp_path_factory.mktemp("safetensors") / "x.safetensors"

    def library(data: bytes) -> dict[str, list[int]] | None:
        path.write_bytes(data)
        try:
            with safetensors.safe_open(path, "np") as file:
                return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        except safetensors.SafetensorError:
            return None

    return library


def found(data: bytes) -> dict[str, list[int]] | str | None:
    """The same as we find them; the problem, where torch has no such tensor."""
    try:
        checkpoint = describe(data)
    except UnsupportedFeature as error:
        return error.problem
    except CorruptFile:
        return None
    (state_dict,) = checkpoint.state_dicts
    doubled = {t.name for t in state_dict.tensors if t.dtype.name == "float4_e2m1fn_x2"}
    return {
        t.name: [*t.shape[:-1], t.shape[-1] * 2] if t.name in doubled else list(t.shape) for t in state_dict.tensors
    }


# --- what is read


def test_tensors_and_metadata(tmp_path: Path) -> None:
    arrays = {
        "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "scalar": np.array(7, dtype=np.int64),
        "empty": np.zeros((0, 3), dtype=np.uint8),
        "mask": np.array([True, False, True]),
    }
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(arrays, path, {"format": "pt", "step": "3"})
    checkpoint = read(source := MemorySource(path.read_bytes(), "model.safetensors"))
    assert (checkpoint.format, checkpoint.kind, checkpoint.size) == ("safetensors", "state_dict", source.size)
    assert checkpoint.metadata == {"format": "pt", "step": "3"}
    assert checkpoint.producer == {"framework": "PyTorch"}
    assert (checkpoint.anomalies, checkpoint.refusals, checkpoint.pickles) == ((), None, ())
    (state_dict,) = checkpoint.state_dicts
    assert (state_dict.path, state_dict.role, state_dict.metadata) == ((), "model", None)
    described = {t.name: t for t in state_dict.tensors}
    assert described.keys() == arrays.keys()
    for name, array in arrays.items():
        info = described[name]
        assert (info.dtype.name, info.shape) == (array.dtype.name, array.shape)
        assert (info.requires_grad, info.is_parameter) == (None, None)
        assert info.storage is not None
        assert info.storage.read(0, info.storage.nbytes) == array.tobytes()
    assert described["weight"].stride == (3, 1)
    assert described["scalar"].stride == ()
    assert described["empty"].stride == (3, 1)


def test_every_dtype_of_torch(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import save

    names = [
        "float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz",
        "float8_e5m2fnuz", "float8_e8m0fnu", "complex64", "int64", "int32", "int16", "int8", "uint64", "uint32",
        "uint16", "uint8", "bool",
    ]  # fmt: skip
    raw = torch.arange(48, dtype=torch.uint8) % 2
    tensors = {name: raw.clone().view(getattr(torch, name)).reshape(2, -1) for name in names}
    tensors["float4_e2m1fn_x2"] = raw.clone().view(torch.float4_e2m1fn_x2).reshape(6, 8)
    (state_dict,) = describe(save(tensors)).state_dicts
    assert {t.name for t in state_dict.tensors} == tensors.keys()
    for info in state_dict.tensors:
        expected = tensors[info.name]
        assert info.dtype.name == info.name
        assert (info.shape, info.stride) == (tuple(expected.shape), expected.stride())
        assert info.storage is not None
        assert info.storage.read(0, info.storage.nbytes) == bytes(raw.tolist())
        assert info.nbytes == info.storage.nbytes == 48


def test_the_order_is_the_headers() -> None:
    header = {"late": tensor("U8", [2], 1, 3), "early": tensor("U8", [1], 0, 1)}
    (state_dict,) = describe(container(header, b"abc")).state_dicts
    assert [(t.name, t.storage.read(0, t.nbytes)) for t in state_dict.tensors if t.storage] == [
        ("late", b"bc"),
        ("early", b"a"),
    ]


def test_only_the_header_is_read() -> None:
    class Watched(MemorySource):
        highest = 0

        def peek(self, offset: int, count: int) -> bytes:
            self.highest = max(self.highest, offset + count)
            return super().peek(offset, count)

    data = container({"a": tensor("U8", [100_000], 0, 100_000)}, bytes(100_000))
    source = Watched(data, "x")
    read(source)
    assert source.highest == len(data) - 100_000


def test_tensors_know_their_place_in_the_file(tmp_path: Path) -> None:
    from ckpt_tools.sources import FileSource

    path = tmp_path / "x.safetensors"
    path.write_bytes(data := container({"a": tensor("U8", [2], 0, 2), "b": tensor("U8", [3], 2, 5)}, b"abcde"))
    (state_dict,) = read(FileSource(path)).state_dicts
    storage = state_dict["b"].storage
    assert storage is not None
    assert storage.source.locate(storage.offset) == (str(path), len(data) - 3)


@pytest.mark.parametrize(
    ("names", "role", "kind"),
    [
        (["fc.weight", "fc.bias"], "model", "state_dict"),
        (["fc.weight.exp_avg", "fc.weight.exp_avg_sq", "fc.weight.step"], "optimizer", "optimizer"),
        (["0.momentum_buffer", "1.momentum_buffer", "lr"], "optimizer", "optimizer"),
        (["conv.step", "conv.weight"], "model", "state_dict"),
        ([], "model", "state_dict"),
    ],
)
def test_roles(names: list[str], role: str, kind: str) -> None:
    checkpoint = describe(container({name: tensor("U8", [0], 0, 0) for name in names}))
    assert (checkpoint.state_dicts[0].role, checkpoint.kind) == (role, kind)


@pytest.mark.parametrize(
    ("metadata", "producer"),
    [
        ({"format": "mlx"}, {"framework": "MLX"}),
        ({"format": "other"}, {"framework": "other"}),
        ({"ss_network_dim": "8"}, {"writer": "sd-scripts"}),
        ({"DCP_SHARDING_INFO": "{}"}, {"writer": "torch.distributed.checkpoint"}),
        (None, {}),
    ],
)
def test_producers(metadata: dict[str, str] | None, producer: dict[str, str]) -> None:
    assert describe(container({"__metadata__": metadata})).producer == producer


# --- what the library accepts and refuses

T = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
FIELDS = '"dtype":"F32","shape":[1],"data_offsets":[0,4]'
E = '"e":{"dtype":"F32","shape":%s,"data_offsets":[4,4]}'

PAIR = ",".join(['"%s":{"dtype":"U8","shape":[%d],"data_offsets":[%d,%d]}'] * 2).join("{}")

HEADERS = {
    "plain": f'{{"a":{T}}}',
    "padded": f'{{"a":{T}}}     ',
    "leading space": f' {{"a":{T}}}',
    "leading newline": f'\n{{"a":{T}}}\r\t',
    "byte order mark": f'\ufeff{{"a":{T}}}',
    "trailing NUL": f'{{"a":{T}}}\0',
    "trailing text": f'{{"a":{T}}}x',
    "trailing comma": f'{{"a":{T},}}',
    "two objects": f'{{"a":{T}}}{{}}',
    "list as tensor": '{"a":["F32",[1],[0,4]]}',
    "list of four": '{"a":["F32",[1],[0,4],0]}',
    "list of two": '{"a":["F32",[1]]}',
    "dtype as object": '{"a":{"dtype":{"F32":null},"shape":[1],"data_offsets":[0,4]}}',
    "dtype as full object": '{"a":{"dtype":{"F32":1},"shape":[1],"data_offsets":[0,4]}}',
    "dtype in lower case": '{"a":{"dtype":"f32","shape":[1],"data_offsets":[0,4]}}',
    "dtype as number": '{"a":{"dtype":17,"shape":[1],"data_offsets":[0,4]}}',
    "no dtype": '{"a":{"shape":[1],"data_offsets":[0,4]}}',
    "no shape": '{"a":{"dtype":"F32","data_offsets":[0,4]}}',
    "no offsets": '{"a":{"dtype":"F32","shape":[1]}}',
    "minus zero": '{"a":{"dtype":"F32","shape":[1],"data_offsets":[-0,4]}}',
    "negative size": '{"a":{"dtype":"F32","shape":[-1,-1],"data_offsets":[0,4]}}',
    "negative offset": '{"a":{"dtype":"F32","shape":[1],"data_offsets":[-4,0]}}',
    "float size": '{"a":{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}}',
    "boolean size": '{"a":{"dtype":"F32","shape":[true],"data_offsets":[0,4]}}',
    "null shape": '{"a":{"dtype":"F32","shape":null,"data_offsets":[0,4]}}',
    "number as shape": '{"a":{"dtype":"F32","shape":1,"data_offsets":[0,4]}}',
    "one offset": '{"a":{"dtype":"F32","shape":[1],"data_offsets":[4]}}',
    "three offsets": '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4,4]}}',
    "object as offsets": '{"a":{"dtype":"F32","shape":[1],"data_offsets":{"0":0,"1":4}}}',
    "backward offsets": '{"a":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}}',
    "wrong size": '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}',
    "null tensor": '{"a":null}',
    "text tensor": '{"a":"F32"}',
    "unknown field": f'{{"a":{{{FIELDS},"x":{{"y":[1.5,"z"]}}}}}}',
    "NaN": f'{{"a":{{{FIELDS},"x":NaN}}}}',
    "Infinity": f'{{"a":{{{FIELDS},"x":-Infinity}}}}',
    "float out of range": f'{{"a":{{{FIELDS},"x":1e999}}}}',
    "zero with any exponent": f'{{"a":{{{FIELDS},"x":0e999}}}}',
    "long integer": f'{{"a":{{{FIELDS},"x":{"9" * 300}}}}}',
    "integer out of range": f'{{"a":{{{FIELDS},"x":{"9" * 400}}}}}',
    "integer Python will not read": f'{{"a":{{{FIELDS},"x":{"9" * 5000}}}}}',
    "leading zero": f'{{"a":{{{FIELDS},"x":01}}}}',
    "half a surrogate pair": f'{{"\\ud800":{T}}}',
    "the other half": f'{{"\\udfff":{T}}}',
    "half a pair as value": f'{{"a":{{{FIELDS},"x":"\\udc00"}}}}',
    "surrogate pair": f'{{"\\ud83d\\ude00":{T}}}',
    "escaped backslash": f'{{"\\\\ud800":{T}}}',
    "control character": f'{{"a\x01":{T}}}',
    "delete character": f'{{"a\x7f":{T}}}',
    "escaped NUL": f'{{"a\\u0000":{T}}}',
    "single quotes": f"{{'a':{T}}}",
    "comment": f'{{/**/"a":{T}}}',
    "depth 127": f'{{"a":{{{FIELDS},"x":{"[" * 125}{"]" * 125}}}}}',
    "depth 128": f'{{"a":{{{FIELDS},"x":{"[" * 126}{"]" * 126}}}}}',
    "depth 128 of objects": f'{{"a":{{{FIELDS},"x":{chr(123) + chr(34) * 2 + ":"}{"[" * 125}{"]" * 125}}}}}}}',
    "depth 100,000": f'{{"a":{{{FIELDS},"x":{"[" * 100_000}{"]" * 100_000}}}}}',
    "deep dtype": f'{{"a":{{"dtype":{"[" * 120}{"]" * 120},"shape":[1],"data_offsets":[0,4]}}}}',
    "null metadata": f'{{"__metadata__":null,"a":{T}}}',
    "empty metadata": f'{{"__metadata__":{{}},"a":{T}}}',
    "escaped metadata": f'{{"\\u005f_metadata__":{{"k":"v"}},"a":{T}}}',
    "number in metadata": f'{{"__metadata__":{{"k":1}},"a":{T}}}',
    "null in metadata": f'{{"__metadata__":{{"k":null}},"a":{T}}}',
    "object in metadata": f'{{"__metadata__":{{"k":{{}}}},"a":{T}}}',
    "list as metadata": f'{{"__metadata__":[],"a":{T}}}',
    "tensor as metadata": f'{{"__metadata__":{T}}}',
    "array": "[]",
    "null": "null",
    "number": "1",
    "nothing": "",
    "space": "   ",
    "empty object": "{}",
    "cut": f'{{"a":{T}',
    "not UTF-8": b'{"\xff":' + T.encode() + b"}",
    "surrogate in UTF-8": b'{"\xed\xa0\x80":' + T.encode() + b"}",
    "hole at the start": '{"a":{"dtype":"U8","shape":[3],"data_offsets":[1,4]}}',
    "hole": PAIR % ("a", 1, 0, 1, "b", 2, 2, 4),
    "overlap": PAIR % ("a", 3, 0, 3, "b", 2, 2, 4),
    "shared bytes": f'{{"a":{T},"b":{T}}}',
    "any order": PAIR % ("b", 2, 2, 4, "a", 2, 0, 2),
    "too short": '{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}',
    "too long": '{"a":{"dtype":"U8","shape":[5],"data_offsets":[0,5]}}',
    "empty at the start": f'{{"a":{T},"e":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}}}',
    "empty at the end": f'{{"a":{T},{E % "[0]"}}}',
    "empty within": f'{{"a":{T},"e":{{"dtype":"F32","shape":[0],"data_offsets":[2,2]}}}}',
    "two empty": f'{{"a":{T},{E % "[0]"},"f":{{"dtype":"F32","shape":[3,0],"data_offsets":[4,4]}}}}',
    "overflow": f'{{"a":{T},{E % "[9223372036854775808,2]"}}}',
    "overflow before zero": f'{{"a":{T},{E % "[9223372036854775808,2,0]"}}}',
    "zero before overflow": f'{{"a":{T},{E % "[0,4611686018427387904]"}}}',
    "zero with a size beyond 64 bits": f'{{"a":{T},{E % "[0,18446744073709551616]"}}}',
    "offsets beyond 64 bits": f'{{"a":{{"dtype":"U8","shape":[4],"data_offsets":[{2**64},{2**64 + 4}]}}}}',
    "half a byte": '{"a":{"dtype":"F4","shape":[7],"data_offsets":[0,4]}}',
    "4-bit scalar": '{"a":{"dtype":"F4","shape":[],"data_offsets":[0,0]}}',
    "4-bit": '{"a":{"dtype":"F4","shape":[2,4],"data_offsets":[0,4]}}',
    "empty 4-bit": f'{{"a":{T},"e":{{"dtype":"F4","shape":[3,0],"data_offsets":[4,4]}}}}',
}  # fmt: skip


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS)
def test_headers_as_the_library_takes_them(
    header: str | bytes, library: Callable[[bytes], dict[str, list[int]] | None]
) -> None:
    data = container(header, b"\0" * 4)
    assert found(data) == library(data)


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        (
            '{"a":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]}}',
            "tensor 'a' is of dtype F6_E2M3, for which torch has no type",
        ),
        (
            '{"a":{"dtype":"F4","shape":[2,3],"data_offsets":[0,3]}}',
            "tensor 'a' has rows of 3 4-bit values; torch wants an even number",
        ),
        (
            '{"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},'
            '"e":{"dtype":"U8","shape":[0,9223372036854775808],"data_offsets":[3,3]}}',
            "tensor 'e' is empty, but too large for torch otherwise",
        ),
    ],
)
def test_what_the_library_lists_and_torch_cannot_have(
    header: str, problem: str, library: Callable[[bytes], dict[str, list[int]] | None]
) -> None:
    data = container(header, b"\0" * 3)
    assert library(data) is not None
    assert found(data) == problem


@pytest.mark.parametrize(
    ("header", "key"),
    [
        (f'{{"a":{T},"a":{T}}}', "'a'"),
        (f'{{"b":{T},"a":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}},"a":{T}}}', "'a'"),
        (f'{{"__metadata__":{{"k":"1","k":"2"}},"a":{T}}}', "'k'"),
        (f'{{"__metadata__":{{}},"__metadata__":{{}},"a":{T}}}', "'__metadata__'"),
        (f'{{"a":{{{FIELDS},"x":1,"x":1}}}}', "'x'"),
        (f'{{"a":{{{FIELDS},"\\u0064type":"F32"}}}}', "'dtype'"),
    ],
)
def test_a_key_that_occurs_twice_is_refused_whatever_the_library_does(header: str, key: str) -> None:
    error = refusal(container(header, b"\0" * 4))
    assert error.problem == f"the header has the key {key} twice, so that readers may differ"


@pytest.mark.parametrize(
    ("header", "what", "where"),
    [
        (HEADERS["leading space"], "the header begins with white space, where the format wants {", "header"),
        (HEADERS["list as tensor"], "the tensor is described by a list, where the format wants an object", "a"),
        (HEADERS["dtype as object"], "the dtype is an object, where the format wants text", "a"),
        (HEADERS["unknown field"], "the tensor has a field that the format does not know: x", "a"),
    ],
)
def test_what_only_the_library_tolerates_is_reported(header: str, what: str, where: str) -> None:
    (anomaly,) = describe(container(header, b"\0" * 4)).anomalies
    assert (anomaly.what, anomaly.where) == (what, where)


# --- what is wrong, in words


@pytest.mark.parametrize(
    ("data", "problem", "offset"),
    [
        (b"", "holds 0 of the 8 bytes that give the header's length: truncated", None),
        (b"1234567", "holds 7 of the 8 bytes that give the header's length: truncated", None),
        (container("{}", length=100), "holds 10 of the 108 bytes up to the header's end: truncated", None),
        (
            container("{}", length=100_000_001),
            "declares a header of 100,000,001 bytes; the format allows 100,000,000",
            0,
        ),
        (container(b'{"\xff'), "the header is not UTF-8", 10),
        (container('{"é": nul'), "the header is not valid JSON: Expecting value", 15),
        (container('{"a": NaN}'), "the header is not valid JSON: NaN is no number in JSON", None),
        (container('{"\\ud800":1}'), "the header is not valid JSON: it escapes half of a surrogate pair", None),
        (container("[" * 100_000), "the header is nested too deeply", None),
        (container("[]"), "the header is valid JSON, but not an object", 8),
        (container({"__metadata__": 1}), "__metadata__ is not an object", None),
        (
            container({"__metadata__": {"k": 1}}),
            "__metadata__ has 1 under 'k'; it may hold only text",
            None,
        ),
        (container({"a": 1}), "the header's entry 'a' is not an object that describes a tensor", None),
        (container({"a": {"dtype": "F32"}}), "tensor 'a' has no shape", None),
        (container({"a": tensor("F33", [1], 0, 4)}), "tensor 'a' has the unknown dtype 'F33'", None),
        (
            container({"a": {**tensor("U8", [], 0, 1), "shape": 3}}),
            "tensor 'a' has the shape 3, which is no list",
            None,
        ),
        (container({"a": tensor("U8", [-1], 0, 1)}), "tensor 'a' has a shape with -1.0 in it", None),
        (
            container({"a": tensor("U8", [1 << 40, 1 << 40], 0, 1)}),
            "tensor 'a' has more elements than 64 bits can count",
            None,
        ),
        (
            container({"a": {**tensor("U8", [1], 0, 1), "data_offsets": [0]}}),
            "tensor 'a' has the data_offsets [0], not the two byte offsets wanted",
            None,
        ),
        (container({"a": tensor("U8", [1], 5, 4)}), "tensor 'a' would begin at byte 5 and end at byte 4", None),
        (
            container({"a": tensor("F32", [2, 3], 0, 20)}, bytes(20)),
            "tensor 'a' has 20 bytes, but F32 of shape [2, 3] takes 24",
            None,
        ),
        (
            container({"a": tensor("F4", [3], 0, 2)}, bytes(2)),
            "tensor 'a' has 2 bytes, but F4 of shape [3] takes no whole number of them",
            None,
        ),
        (
            container({"a": tensor("U8", [1], 0, 1), "b": tensor("U8", [1], 3, 4)}, bytes(4)),
            "the 2 bytes before tensor 'b' belong to no tensor",
            8 + 120 + 1,
        ),
        (
            container({"a": tensor("U8", [3], 0, 3), "b": tensor("U8", [2], 2, 4)}, bytes(4)),
            "tensor 'b' begins within tensor 'a', which ends at byte 131",
            8 + 120 + 2,
        ),
        (
            container({"a": tensor("U8", [3], 0, 3), "b": tensor("U8", [2], 3, 5)}, bytes(4)),
            "holds 132 of 133 bytes: truncated; 1 of 2 tensors are whole",
            None,
        ),
        (
            container({"a": tensor("U8", [3], 0, 3)}, bytes(10)),
            "7 bytes that belong to no tensor stand at the end",
            8 + 60 + 3,
        ),
    ],
)
def test_problems_are_named(data: bytes, problem: str, offset: int | None) -> None:
    error = refusal(data)
    assert (error.problem, error.offset) == (problem, offset)


def test_names_in_messages_are_bounded() -> None:
    name = "n" * 1_000_000
    assert len(str(refusal(container({name: tensor("F33", [1] * 100_000, 0, 4)})))) < 300
    deep: Any = []
    for _ in range(500):
        deep = [deep]
    assert len(str(refusal(container({"a": {**tensor("U8", [1], 0, 1), "dtype": deep}})))) < 300


def test_shapes_that_would_multiply_to_giants() -> None:
    shape = ",".join(["0"] + ["18446744073709551615"] * 50_000)
    with pytest.raises(UnsupportedFeature, match="is empty, but too large"):
        describe(container(f'{{"a":{{"dtype":"U8","shape":[{shape}],"data_offsets":[0,0]}}}}'))


# --- hostile files


def small() -> bytes:
    header = {
        "__metadata__": {"format": "pt", "é": "ü"},
        "fc.weight": tensor("F32", [2, 1], 0, 8),
        "fc.bias": tensor("BF16", [2], 8, 12),
        "step": tensor("I64", [], 12, 20),
    }
    return container(header, bytes(range(20)))


def test_every_truncation_is_refused() -> None:
    data = small()
    describe(data)
    for size in range(len(data)):
        assert "truncated" in refusal(data[:size]).problem


@given(
    st.lists(
        st.tuples(
            st.integers(0, len(small()) - 1), st.one_of(st.integers(0, 255), st.sampled_from(b'0123456789{}[]",:-'))
        ),
        min_size=1,
        max_size=4,
    )
)
def test_changed_bytes_as_the_library_takes_them(
    library: Callable[[bytes], dict[str, list[int]] | None], changes: list[tuple[int, int]]
) -> None:
    data = bytearray(small())
    for position, byte in changes:
        data[position] = byte
    ours, theirs = found(bytes(data)), library(bytes(data))
    assert ours == theirs or (ours is None and b'"' in data and _has_twin(bytes(data)))


def _has_twin(data: bytes) -> bool:
    try:
        describe(data)
    except CkptError as error:
        return "twice" in error.problem
    return False


sizes = st.one_of(st.integers(0, 5), st.sampled_from([-1, 1.0, None, "1", 2**32, 2**63, 2**64 - 1, 2**64, True]))
codes = st.sampled_from(["F32", "U8", "I64", "F4", "F6_E3M2", "C64", "BOOL", "F8_E8M0", "C128", "f32", None, 3])


@st.composite
def headers(draw: st.DrawFn) -> tuple[dict[str, object], int]:
    """A header that is right but for a few changes, and the size of its data."""
    header: dict[str, Any] = {}
    position = 0
    for name in draw(st.lists(st.text(max_size=3), unique=True, max_size=4)):
        shape = draw(st.lists(st.integers(0, 4), max_size=3))
        code, bits = draw(st.sampled_from([("F32", 32), ("U8", 8), ("F4", 4), ("BF16", 16), ("C64", 64)]))
        count = bits
        for size in shape:
            count *= size
        header[name] = tensor(code, shape, position, position + count // 8)
        position += count // 8
    if draw(st.booleans()):
        header["__metadata__"] = draw(
            st.one_of(st.dictionaries(st.text(max_size=2), st.one_of(st.text(max_size=2), st.integers()), max_size=2))
        )
    for name in draw(st.lists(st.sampled_from(sorted(header)), max_size=2)) if header else ():
        entry = header[name]
        if name == "__metadata__" or not isinstance(entry, dict) or not entry:
            continue
        match draw(st.integers(0, 6)):
            case 0:
                entry["dtype"] = draw(codes)
            case 1:
                entry["shape"] = draw(st.lists(sizes, max_size=3))
            case 2:
                entry["data_offsets"] = draw(st.lists(sizes, min_size=1, max_size=3))
            case 3:
                entry["extra"] = draw(st.recursive(st.none() | st.integers() | st.text(), st.lists, max_leaves=5))
            case 4:
                header[name] = draw(st.sampled_from([list(entry.values()), None, [], {}]))
            case 5:
                entry.pop(draw(st.sampled_from(sorted(entry))))
            case _:
                header[name] = dict(reversed(entry.items()))
    return header, position + draw(st.sampled_from([0, 0, 0, 1, -1]))


@given(headers())
def test_changed_headers_as_the_library_takes_them(
    library: Callable[[bytes], dict[str, list[int]] | None], case: tuple[dict[str, object], int]
) -> None:
    header, size = case
    data = container(header, bytes(max(size, 0)))
    ours, theirs = found(data), library(data)
    if isinstance(ours, str):  # torch cannot have it
        assert theirs is not None
    else:
        assert ours == theirs


@given(st.binary(max_size=40), st.booleans())
def test_any_bytes_at_all(junk: bytes, framed: bool) -> None:
    data = container(junk) if framed else junk
    detect(MemorySource(data, "x"), data)
    try:
        assert describe(data).state_dicts[0].tensors == ()
    except CkptError as error:
        assert error.path == "x.safetensors"


# --- recognition


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (small(), True),
        (small()[:9], True),
        (small()[:8], False),
        (b"", False),
        (container(" \n{}"), True),
        (container("\ufeff{}"), True),
        (container("{}", length=2**40), False),
        (container('{"a":1}', length=2**40), True),  # a damaged length
        (container("[]"), False),
        (b'{"a": 1,{"b"', False),
        (b"PK\x03\x04\x14\0\0\0{}", False),
        (b"\x80\x02}q\0(X\x01{\0\0\0", False),
        (b"\x89HDF\r\n\x1a\n{}", False),
    ],
)
def test_detection(data: bytes, expected: bool) -> None:
    source: Source = MemorySource(data, "x")
    assert FORMAT.detect is detect
    assert detect(source, data[:4096]) is expected
