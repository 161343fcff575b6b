"""What pickled calls stand for, beyond what the fixtures have: malformed, old, cyclic and odd."""

from __future__ import annotations

import importlib
import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_tools import Checkpoint, Module, TensorInfo, open_checkpoint
from ckpt_tools.contents import read_bytes
from ckpt_tools.errors import CkptError, CorruptFile, LimitExceeded
from ckpt_tools.pickles.torch_objects import _VERSIONS, MAX_MODULE_DEPTH, MAX_PARTS
from ckpt_tools.pickles.values import Blob, Call


class Raw(bytes):
    """Opcodes, to be put into a pickle as they are."""


class Name(str):
    """A global, ``module name``."""


def push(value: object) -> bytes:
    """The opcodes of protocol 2 that put *value* on the stack."""
    match value:
        case Raw():
            return bytes(value)
        case Name():
            module, _, name = value.partition(" ")
            return f"c{module}\n{name}\n".encode()
        case bool() | None:
            return {True: b"\x88", False: b"\x89", None: b"N"}[value]
        case int():
            size = value.bit_length() // 8 + 1
            data = value.to_bytes(size, "little", signed=True)
            return b"\x8b" + struct.pack("<I", size) + data
        case float():
            return b"G" + struct.pack(">d", value)
        case str():
            data = value.encode("utf-8", "surrogatepass")
            return b"X" + struct.pack("<I", len(data)) + data
        case bytes():
            return b"B" + struct.pack("<I", len(value)) + value
        case tuple():
            return b"(" + b"".join(map(push, value)) + b"t"
        case list():
            return b"](" + b"".join(map(push, value)) + b"e"
        case dict():
            return b"}(" + b"".join(push(k) + push(v) for k, v in value.items()) + b"u"
    raise AssertionError(value)


def call(name: str, *args: object) -> Raw:
    return Raw(push(Name(name)) + push(args) + b"R")


def new(name: str, state: object) -> Raw:
    return Raw(push(Name(name)) + b")\x81" + push(state) + b"b")


def storage(key: str = "0", kind: str = "FloatStorage", numel: int = 8) -> Raw:
    return Raw(push(("storage", Name(f"torch {kind}"), key, "cpu", numel)) + b"Q")


def hooks() -> Raw:
    return call("collections OrderedDict")


def tensor(offset: int = 0, size: tuple[int, ...] = (2,), stride: tuple[int, ...] = (1,), **rest: Any) -> Raw:
    return call("torch._utils _rebuild_tensor_v2", storage(**rest), offset, size, stride, False, hooks())


def module(class_name: str = "m Net", **attributes: object) -> Raw:
    """An ``nn.Module``; *attributes* replace or add to the usual ones."""
    usual: dict[str, object] = {"training": True, "_parameters": {}, "_buffers": {}, "_modules": {}}
    return new(class_name, usual | attributes)


def packed(value: object, storages: dict[str, bytes] | None = None) -> bytes:
    """A torch zip whose data.pkl is *value*."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + push(value) + b".")
        archive.writestr("archive/version", "3\n")
        for key, data in (storages or {"0": bytes(range(32))}).items():
            archive.writestr(f"archive/data/{key}", data)
    return buffer.getvalue()


def opened(value: object, **options: Any) -> Checkpoint:
    return open_checkpoint(packed(value, **options))


def only(value: object, **options: Any) -> TensorInfo:
    ((_, found),) = opened([value], **options).loose
    return found


def plain_module(value: object) -> Module:
    found = opened(value).module
    assert found is not None
    return found


# --- malformed rebuild calls

TENSOR = tensor()
FLOAT, CPU = Name("torch float32"), call("torch device", "cpu")
SIZES = tensor(kind="LongStorage", numel=4, size=(1, 2), stride=(2, 1))
REBUILD: dict[str, tuple[object, ...]] = {
    "torch._utils _rebuild_tensor": (storage(), 1, (2, 3), (3, 1)),
    "torch._utils _rebuild_tensor_v2": (storage(), 1, (2, 3), (3, 1), False, hooks(), {"conj": True}),
    "torch._utils _rebuild_tensor_v3": (storage(), 1, (2, 3), (3, 1), False, hooks(), FLOAT, {}),
    "torch._utils _rebuild_parameter": (TENSOR, True, hooks()),
    "torch._utils _rebuild_parameter_with_state": (TENSOR, True, hooks(), {"note": 1}),
    "torch._utils _rebuild_qtensor": (
        *(storage(kind="QInt8Storage"), 0, (2,), (1,)),
        *((Name("torch per_channel_affine"), TENSOR, TENSOR, 0), False, hooks()),
    ),
    "torch._utils _rebuild_sparse_tensor": (Name("torch sparse_csr"), (TENSOR, TENSOR, TENSOR, (2, 2))),
    "torch._utils _rebuild_nested_tensor": (TENSOR, SIZES, SIZES, SIZES),
    "torch.nested._internal.nested_tensor _rebuild_njt": ({"values": TENSOR, "offsets": SIZES, "lengths": None},),
    "torch._utils _rebuild_meta_tensor_no_storage": (FLOAT, (2, 3), (3, 1), False),
    "torch._utils _rebuild_wrapper_subclass": (
        *(Name("m Wrapper"), FLOAT, (2, 3), (3, 1), 0, Name("torch strided"), CPU, False),
    ),
    "torch._utils _rebuild_device_tensor_from_cpu_tensor": (TENSOR, FLOAT, "xla:0", False),
    "torch._utils _rebuild_xla_tensor": (TENSOR, FLOAT, "xla:0", False),
    "torch._tensor _rebuild_from_type_v2": (
        *(Name("torch._utils _rebuild_tensor_v2"), Name("m Sub")),
        *((storage(), 0, (2,), (1,), False, hooks()), {"tag": 1}),
    ),
    "torch.nn.parameter Parameter": (TENSOR, True),
    "torch Size": ([1, 2],),
    "torch device": ("cuda", 0),
    "torch.serialization _get_layout": ("torch.sparse_coo",),
    "numpy._core.multiarray scalar": (call("numpy dtype", "f4", False, True), b"\0\0\x80?"),
    "numpy._core.numeric _frombuffer": (b"\0\0\x80?", call("numpy dtype", "f4", False, True), (1,), "C"),
    "_codecs encode": ("\xe9", "latin1"),
    "builtins complex": (1.0, 2.0),
    "builtins set": ([1, 2],),
    "builtins bytearray": (b"abc",),
    "collections Counter": ({"a": 1},),
    "collections defaultdict": (Name("builtins list"), {}),
    "torch._dynamo.eval_frame OptimizedModule": (module(), None),
    "torch.fx.graph_module reduce_graph_module": ({"_modules": {}, "_parameters": {}}, "import torch"),
}


@pytest.mark.parametrize("name", REBUILD)
def test_well_formed_calls_are_read(name: str) -> None:
    checkpoint = opened({"x": call(name, *REBUILD[name])})
    assert isinstance(checkpoint.values, dict)
    found = checkpoint.values["x"]
    assert isinstance(found, Call)
    assert found.meaning is not None


@pytest.mark.parametrize("name", [name for name in REBUILD if "_rebuild_" in name])
def test_calls_with_too_few_arguments(name: str) -> None:
    with pytest.raises(CorruptFile, match="arguments where it takes"):
        opened({"x": call(name)})


junk = st.deferred(
    lambda: st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**70), 2**70),
        st.sampled_from([-1, 2**31, 2**62, 2**63, 2**64, 1 << 40_000]),
        st.floats(),
        st.text(st.characters(exclude_categories=()), max_size=3),
        st.binary(max_size=3),
        st.sampled_from([Name("torch float32"), Name("m f"), Name("torch.sparse_csr x"), call("m f"), hooks(), CPU]),
        st.sampled_from([TENSOR, storage(), storage("9"), storage(kind="Odd"), SIZES, module()]),
        st.lists(junk, max_size=3),
        st.lists(junk, max_size=4).map(tuple),
        st.dictionaries(st.text(max_size=2), junk, max_size=2),
    )
)


@pytest.mark.parametrize("name", REBUILD)
@settings(max_examples=60)
@given(data=st.data())
def test_malformed_calls(name: str, data: st.DataObject) -> None:
    """Anything in the place of any argument is a description or an error of ours, and its bytes likewise."""
    args = list(REBUILD[name])
    for index in data.draw(st.sets(st.integers(0, len(args) - 1), min_size=1, max_size=2)):
        args[index] = data.draw(junk)
    args = args[: data.draw(st.integers(0, len(args)))] if data.draw(st.booleans()) else args
    state = data.draw(st.none() | junk)
    value = call(name, *args) if state is None else Raw(call(name, *args) + push(state) + b"b")
    try:
        checkpoint = opened({"x": value, "net": module(_parameters={"p": value})})
    except CkptError as error:
        assert str(error)
        assert error.member == "archive/data.pkl"
        return
    for tensors in ((t for _, t in checkpoint.loose), *(s.tensors for s in checkpoint.state_dicts)):
        for found in tensors:
            try:
                assert len(read_bytes(found)) == found.nbytes
            except CkptError as error:
                assert str(error)
            assert found.extent[0] <= found.extent[1]
            repr(found)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (tensor(size=(9,)), "reaches byte 36 of storage '0', which has 32"),
        (tensor(offset=7), "reaches byte 36 of storage '0', which has 32"),
        (tensor(offset=-1), "has the stride (1,) and the offset -1"),
        (tensor(size=(2,), stride=(1, 1)), "a tensor of shape (2,) has the stride (1, 1)"),
        (tensor(size=(-1,)), "-1 is no size or stride"),
        (tensor(stride=(-1,)), "-1 is no size or stride"),
        (tensor(size=(2**63,)), "9223372036854775808 is no size or stride"),
        (tensor(size=(2**62,), stride=(2**62,)), "reaches byte"),
        (tensor(size=(1,) * 65, stride=(1,) * 65), "a tensor of 65 dimensions"),
        (tensor(key="7"), "storage '7' of 32 bytes has no member data/7"),
        (tensor(numel=9), "storage '0' takes 36 bytes, but the member archive/data/0 has 32"),
        (tensor(numel=1 << 40_000), "malformed persistent id"),
        (tensor(kind="OddStorage"), "torch.OddStorage is no storage class"),
        (call("torch._utils _rebuild_tensor_v2", 1, 0, (1,), (1,), False, None), "from what is no storage"),
        (call("torch._utils _rebuild_tensor_v3", storage(), 0, (1,), (1,), False, None, "f"), "something is no dtype"),
        (
            call("torch._utils _rebuild_tensor_v3", storage(), 0, (1,), (1,), False, None, Name("torch float3")),
            "float3 is no dtype",
        ),
        (call("torch._utils _rebuild_parameter", 1, True, None), "a tensor is wanted"),
        (
            call("torch._utils _rebuild_sparse_tensor", Name("torch sparse_odd"), (TENSOR, TENSOR, (1,))),
            "no sparse layout",
        ),
        (call("torch._utils _rebuild_sparse_tensor", Name("torch sparse_coo"), (TENSOR,)), "without its parts"),
        (call("torch._utils _rebuild_sparse_tensor", Name("torch sparse_bsc"), (TENSOR,) * 3), "without its size"),
        (
            call("torch._utils _rebuild_meta_tensor_no_storage", FLOAT, (1,), (1, 1), False),
            "a tensor of shape (1,) has the stride (1, 1)",
        ),
        (module(_parameters=1), "a module's _parameters is no mapping"),
        (module(_parameters={"w": 1}), "'w' in _parameters of a m.Net is no tensor"),
        (module(_modules={"w": 1}), "the submodule 'w' of a m.Net is no module"),
        (module(_modules={"w": TENSOR}), "the submodule 'w' of a m.Net is no module"),
        (Raw(push("pid") + b"Q"), "a persistent id is no reference to a storage: 'pid'"),
        (Raw(push(("storage", 1, "0", "cpu", 1)) + b"Q"), "malformed persistent id"),
    ],
)
def test_what_is_wrong_is_told(value: object, problem: str) -> None:
    with pytest.raises(CorruptFile) as caught:
        opened({"x": {"y": value}})
    assert problem in str(caught.value)
    assert caught.value.member == "archive/data.pkl"


def test_an_error_names_where_it_stands() -> None:
    with pytest.raises(CorruptFile, match=r"model\.w\b"):
        opened({"model": {"v": TENSOR, "w": tensor(size=(9,))}})


def doubled(levels: int) -> Raw:
    """A tuple of two to the power of *levels* elements."""
    return Raw(b"K\x01" + b"2\x86" * levels)


def deep(levels: int) -> Raw:
    return Raw(b"]" * levels + b"a" * (levels - 1))


@pytest.mark.parametrize("bomb", [doubled(60), deep(100_000)], ids=["doubled", "deep"])
@pytest.mark.parametrize(
    "place",
    [
        lambda bomb: Raw(push(bomb) + b"Q"),
        lambda bomb: Raw(push(("storage", Name("torch FloatStorage"), "0", bomb, 8)) + b"Q"),
        lambda bomb: Raw(push(("storage", Name("torch FloatStorage"), bomb, "cpu", 8)) + b"Q"),
        lambda bomb: call("torch device", bomb),
        lambda bomb: call("torch._utils _rebuild_tensor_v2", storage(), bomb, (1,), (1,), False, None),
        lambda bomb: call("torch._utils _rebuild_tensor_v2", storage(), 0, (bomb,), (1,), False, None),
        lambda bomb: call("torch._utils _rebuild_wrapper_subclass", bomb, FLOAT, (), (), 0, bomb, bomb, bomb),
        lambda bomb: call("torch._utils _rebuild_xla_tensor", TENSOR, FLOAT, bomb, False),
        lambda bomb: call("torch._utils _rebuild_sparse_tensor", bomb, (TENSOR, TENSOR, (1,))),
        lambda bomb: module(_non_persistent_buffers_set=bomb),
        lambda bomb: module(_non_persistent_buffers_set=[bomb]),
        lambda bomb: module(_state_dict_hooks={"a": bomb}),
        lambda bomb: {"state": {}, "param_groups": [{"params": [0], "param_names": [bomb], "lr": bomb}]},
        lambda bomb: call("numpy._core.numeric _frombuffer", b"", call("numpy dtype", "f4"), (bomb,), bomb),
        lambda bomb: bomb,
    ],
)
def test_values_that_are_small_in_the_file_only(place: Any, bomb: Raw) -> None:
    try:
        opened({"x": place(bomb)})
    except CkptError as error:
        assert len(str(error)) < 1000


def test_a_huge_storage_offset_or_number_is_told_in_brief() -> None:
    with pytest.raises(CkptError) as caught:
        opened(Raw(push(("storage", Name("torch FloatStorage"), "0", "cpu", 1 << 80_000)) + b"Q"))
    assert len(str(caught.value)) < 300


# --- sharing that would cost more than its bytes

MANY = 5_000


def repeated(value: object, use: bytes, count: int = MANY) -> Raw:
    """A list of *count* results of *use*, opcodes that find *value* in memo entry 7."""
    return Raw(push(value) + b"q\x070](" + use * count + b"e")


NUMBERS = list(range(5_000))
NAMES = {str(number): None for number in range(5_000)}


@pytest.mark.parametrize(
    "value",
    [
        repeated(NUMBERS, b"ctorch\nSize\nh\x07\x85R"),
        repeated(NAMES, b"ccollections\nCounter\nh\x07\x85R"),
        repeated(NAMES, b"cm\nC\n)\x81h\x07b"),
        repeated({"_modules": {}, "_parameters": NAMES}, b"cm\nC\n)\x81h\x07b"),
        repeated({"_modules": {}, "_parameters": {}, **NAMES}, b"cm\nC\n)\x81h\x07b"),
        repeated([{"params": NUMBERS}], b"}" + push("param_groups") + b"h\x07s" + push("state") + b"}s"),
        repeated({n: {} for n in NUMBERS}, b"}" + push("state") + b"h\x07s" + push("param_groups") + b"]s"),
    ],
    ids=["sizes", "counters", "objects", "parameters", "attributes", "groups", "states"],
)
def test_shared_containers_are_not_copied_without_bound(value: Raw) -> None:
    with pytest.raises(LimitExceeded, match="copies what it shares"):
        opened(value)


def test_shared_text_is_encoded_once() -> None:
    encode = b"c_codecs\nencode\nh\x07" + push("latin1") + b"\x86R"
    value = repeated("\xe9" * 30_000, encode, 2000)
    values = opened(value).values
    assert isinstance(values, list)
    meanings = {id(item.meaning) for item in values}
    assert len(meanings) == 1
    assert values[0].meaning == b"\xe9" * 30_000


def test_a_list_of_a_million_levels_is_described() -> None:
    checkpoint = opened({"deep": deep(1_000_000), "w": TENSOR})
    assert [t.name for s in checkpoint.state_dicts for t in s.tensors] + [p for p, _ in checkpoint.loose]
    assert any("nested more than" in anomaly.what for anomaly in checkpoint.anomalies)


# --- modules


def test_a_module_that_contains_itself() -> None:
    state = b"}(" + push("_parameters") + b"}" + push("_buffers") + b"}" + push("_modules")
    loop = Raw(push(Name("m Net")) + b")\x81q\x07" + state + b"}" + push("again") + b"h\x07su" + b"b")
    with pytest.raises(LimitExceeded, match="contain themselves"):
        opened(loop)


def test_a_module_that_knows_its_parent_is_fine() -> None:
    child = b"cm\nChild\n)\x81" + push({"_parameters": {}, "_modules": {}})[:-1] + push("parent") + b"h\x07ub"
    parent = b"}(" + push("_parameters") + b"}" + push("_modules") + b"}" + push("child") + child + b"su"
    found = plain_module(Raw(push(Name("m Net")) + b")\x81q\x07" + parent + b"b"))
    assert [name for name, _ in found.walk()] == ["", "child"]


def chain(levels: int, twice: bool) -> Raw:
    """Modules in modules, each registered once or twice in the next."""
    value = bytes(module())
    for _ in range(levels):
        children = push("a") + b"h\x07" + (push("b") + b"h\x07" if twice else b"")
        head = b"cm\nNet\n)\x81}(" + push("_parameters") + b"}" + push("_modules")
        value = value + b"q\x070" + head + b"}(" + children + b"uub"
    return Raw(value)


def test_modules_that_double_at_each_level() -> None:
    assert len(list(plain_module(chain(10, twice=True)).walk())) == 2**11 - 1
    with pytest.raises(LimitExceeded, match="the modules form a tree of 2,097,151 modules"):
        opened(chain(60, twice=True))


def nested(levels: int) -> Raw:
    """Modules in modules as pickle writes them: the outer ones begin first."""
    head = b"cm\nNet\n)\x81}(" + push("_parameters") + b"}" + push("_modules") + b"}" + push("a")
    return Raw(head * levels + bytes(module()) + b"sub" * levels)


def test_modules_in_modules() -> None:
    assert len(list(plain_module(nested(MAX_MODULE_DEPTH - 1)).walk())) == MAX_MODULE_DEPTH
    with pytest.raises(LimitExceeded, match="501 levels deep"):
        opened(nested(MAX_MODULE_DEPTH))
    with pytest.raises(LimitExceeded, match="levels deep"):
        opened(nested(100_000))


def test_a_tensor_under_ever_more_names() -> None:
    """Few modules and many parameters, but more names than could be listed."""
    wide = module(_parameters={str(n): None for n in range(2000)})
    children = b"".join(push(str(n)) + b"h\x07" for n in range(2000))
    value = bytes(wide) + b"q\x070cm\nNet\n)\x81}(" + push("_parameters") + b"}" + push("_modules")
    with pytest.raises(LimitExceeded, match=r"a tree of 4,002,001 modules and tensors"):
        opened(Raw(value + b"}(" + children + b"uub"))


def test_names_that_grow_without_end() -> None:
    name = "n" * 60_000
    head = b"cm\nNet\n)\x81}(" + push("_parameters") + b"}" + push("_modules") + b"}h\x07"
    value = push(name) + b"q\x070" + head * 400 + bytes(module(_parameters={"w": TENSOR})) + b"sub" * 400
    with pytest.raises(LimitExceeded, match="with names of"):
        opened(Raw(value))


def test_a_submodule_that_only_code_could_rebuild() -> None:
    odd = call("m rebuild", 1, TENSOR)
    net = plain_module(module(_modules={"odd": odd, "fine": module("m Fine", _parameters={"w": TENSOR})}))
    assert {name: child.class_name for name, child in net.walk()} == {"": "m.Net", "odd": "m.rebuild", "fine": "m.Fine"}
    assert list(net.state_dict().entries) == ["fine.w"]
    (hint,) = net.children["odd"].state_dict_hints  # type: ignore[union-attr]
    assert hint == "m.rebuild is rebuilt by code of its own, so that what it holds is unknown"


def test_a_parameter_that_cannot_be_read() -> None:
    net = plain_module(module(_parameters={"odd": call("m rebuild"), "w": TENSOR}))
    assert list(net.state_dict().entries) == ["w"]
    assert net.state_dict_hints == ("'odd' in _parameters is a m.rebuild, which cannot be read",)
    anomalies = opened(module(_parameters={"odd": call("m rebuild")})).anomalies
    assert [a.what for a in anomalies] == ["'odd' in _parameters is a m.rebuild, which cannot be read"]


def test_hyperparameters() -> None:
    settings = {
        "in_features": 3,
        "eps": 1e-5,
        "inplace": False,
        "padding_mode": "zeros",
        "bias": None,
        "kernel_size": (3, 3),
        "sizes": [1, 2],
    }
    others = {
        "_private": 1,
        "empty": (),
        "nested": ((1,),),
        "many": list(range(17)),
        "table": {"a": 1},
        "obj": call("m f"),
    }
    found = plain_module(module(**settings, **others))
    assert found.hyperparameters == settings
    assert set(found.attributes) == {*settings, *others}


def test_jagged_tensors_are_made_of_their_values_and_offsets() -> None:
    given = {"values": TENSOR, "offsets": SIZES, "lengths": None, "requires_grad": True}
    inner = Name("torch.nested._internal.nested_tensor _rebuild_njt")
    found = only(call("torch._tensor _rebuild_from_type_v2", inner, Name("m Jagged"), (given,), {}))
    values, offsets = (part for _, part in found.parts)
    assert [label for label, _ in found.parts] == ["values", "offsets"]
    assert (found.layout, found.shape, found.dtype) == ("jagged", values.shape, values.dtype)
    assert (found.details["items"], found.subclass, found.requires_grad) == (offsets.shape[0] - 1, "m.Jagged", True)


def test_a_subclass_that_is_rebuilt_by_a_function_of_its_own_is_no_tensor() -> None:
    value = call("torch._tensor _rebuild_from_type_v2", Name("m rebuild"), Name("m Sub"), (TENSOR,), {})
    assert opened({"x": value}).state_dicts == ()


def test_attributes_in_slots_and_copyreg() -> None:
    state = {"training": False, "_parameters": {}, "_buffers": {}, "_modules": {}}
    slots = new("m Net", (state, {"extra": 1}))
    assert plain_module(slots).training is False
    assert plain_module(slots).hyperparameters == {"extra": 1}
    old = Raw(call("copy_reg _reconstructor", Name("m Net"), Name("__builtin__ object"), None) + push(state) + b"b")
    assert plain_module(old).class_name == "m.Net"


def test_non_persistent_buffers_of_protocol_2() -> None:
    names = call("builtins set", ["b"])
    found = plain_module(module(_buffers={"a": TENSOR, "b": TENSOR}, _non_persistent_buffers_set=names))
    assert found.non_persistent == {"b"}
    assert list(found.state_dict().entries) == ["a"]


# --- tensors of tensors


def wrapper(state: object, size: tuple[int, ...] = (2,)) -> Raw:
    args = (Name("m Wrap"), FLOAT, size, (1,) * len(size), 0, Name("torch strided"), CPU, False)
    name = Name("torch._utils _rebuild_wrapper_subclass")
    return call("torch._tensor _rebuild_from_type_v2", name, Name("m Wrap"), args, state)


def test_wrappers_in_wrappers() -> None:
    found = only(wrapper({"outer": wrapper({"inner": TENSOR, "scale": TENSOR})}))
    assert [(label, [inner for inner, _ in part.parts]) for label, part in found.parts] == [
        ("outer", ["inner", "scale"])
    ]
    assert found.nbytes == 16
    assert len(list(found.storages())) == 2


def test_wrappers_that_double_at_each_level() -> None:
    value: object = TENSOR
    for _ in range(12):
        value = Raw(push(value) + b"q\x070" + wrapper({"a": Raw(b"h\x07"), "b": Raw(b"h\x07")}))
    with pytest.raises(LimitExceeded, match=f"more than {MAX_PARTS} tensors"):
        opened([value])


def test_wrappers_too_deep() -> None:
    value: object = TENSOR
    for _ in range(100):
        value = wrapper({"a": value})
    with pytest.raises(LimitExceeded, match="nested too deep"):
        opened([value])


def test_modules_and_wrappers_by_turns_too_deep() -> None:
    """Each kind alone is bounded by its own rule; together they must be, too."""
    value: object = TENSOR
    for _ in range(100):
        value = module(_parameters={"w": wrapper({"inner": Raw(push(value))})})
    with pytest.raises(LimitExceeded):
        opened([value])


def test_parts_are_plain_tensors() -> None:
    sparse = call("torch._utils _rebuild_sparse_tensor", Name("torch sparse_coo"), (TENSOR, TENSOR, (2,)))
    with pytest.raises(CorruptFile, match="themselves made of tensors"):
        opened([call("torch._utils _rebuild_sparse_tensor", Name("torch sparse_coo"), (TENSOR, sparse, (2,)))])


# --- old and rare ways


def test_parameters_and_variables_of_old() -> None:
    data = call("torch._utils _rebuild_tensor", storage(), 0, (2,), (1,))
    early = Raw(call("torch.nn.parameter Parameter", data) + push((False, False, hooks())) + b"b")
    found = only(early)
    assert (found.is_parameter, found.requires_grad, found.shape) == (True, False, (2,))
    variable = Raw(b"ctorch.autograd.variable\nVariable\n)\x81" + push((data, None, hooks(), True, False)) + b"b")
    found = only(variable)
    assert (found.is_parameter, found.requires_grad, found.shape) == (False, True, (2,))
    bare = only(call("torch.nn.parameter Parameter", data, False))
    assert (bare.is_parameter, bare.requires_grad) == (True, False)


def test_tensors_of_old() -> None:
    built = Raw(b"ctorch\nFloatTensor\n)\x81" + push((storage(), 2, (3,), (1,))) + b"b")
    found = only(built)
    assert (found.dtype.name, found.storage_offset, found.shape) == ("float32", 2, (3,))
    assert read_bytes(found) == bytes(range(8, 20))
    empty = only(Raw(b"ctorch\nLongTensor\n)R"))
    assert (empty.dtype.name, empty.shape, empty.storage) == ("int64", (0,), None)


def test_a_tensor_over_a_typed_storage_object() -> None:
    typed = call("torch.storage TypedStorage", storage(kind="UntypedStorage", numel=32))
    found = only(call("torch._utils _rebuild_tensor_v3", typed, 1, (2,), (1,), False, hooks(), Name("torch int16")))
    assert read_bytes(found) == bytes([2, 3, 4, 5])


def test_aliases_of_dtypes() -> None:
    args = (storage(kind="UntypedStorage", numel=32), 0, (2,), (1,), False, hooks())
    for alias, name in {"half": "float16", "double": "float64", "long": "int64", "cfloat": "complex64"}.items():
        found = only(call("torch._utils _rebuild_tensor_v3", *args, Name(f"torch {alias}")))
        assert found.dtype.name == name


def test_flags() -> None:
    found = only(call("torch._utils _rebuild_tensor_v2", storage(), 0, (2,), (1,), 1, hooks()))
    assert found.requires_grad is True
    found = only(call("torch._utils _rebuild_tensor_v2", storage(), 0, (2,), (1,), None, hooks()))
    assert found.requires_grad is None


def test_containers_in_their_own_words() -> None:
    value = {
        "counter": call("collections Counter", {"a": 2}),
        "default": Raw(call("collections defaultdict", Name("builtins list")) + push("k") + push([1]) + b"s"),
        "set": call("builtins set", [1, 2]),
        "complex": call("builtins complex", 1.0, -2.0),
        "bytes": call("_codecs encode", "\xe9a", "latin1"),
        "odd bytes": call("_codecs encode", "\u20ac", "latin1"),
        "device": call("torch device", "cuda", 1),
        "size": call("torch Size", [1, 2]),
        "scalar": call("numpy._core.multiarray scalar", call("numpy dtype", "f4", False, True), b"\0\0\x80?"),
    }
    values = opened(value).values
    assert isinstance(values, dict)
    assert {key: item.meaning for key, item in values.items()} == {
        "counter": {"a": 2},
        "default": {"k": [1]},
        "set": [1, 2],
        "complex": 1 - 2j,
        "bytes": b"\xe9a",
        "odd bytes": None,
        "device": "cuda:1",
        "size": (1, 2),
        "scalar": 1.0,
    }


# --- numpy arrays


def array(
    data: object, descr: str = "f4", order: str = "<", shape: tuple[int, ...] = (2,), fortran: bool = False
) -> Raw:
    dtype = Raw(call("numpy dtype", descr, False, True) + push((3, order, None, None, None, -1, -1, 0)) + b"b")
    made = call("numpy.core.multiarray _reconstruct", Name("numpy ndarray"), (0,), b"b")
    return Raw(made + push((1, shape, dtype, fortran, data)) + b"b")


def test_arrays() -> None:
    found = only(array(struct.pack("<6f", *range(6)), shape=(2, 3), fortran=True))
    assert (found.subclass, found.shape, found.stride) == ("numpy.ndarray", (2, 3), (1, 2))
    assert read_bytes(found) == struct.pack("<6f", 0, 2, 4, 1, 3, 5)
    assert read_bytes(only(array(struct.pack(">2i", 1, -2), "i4", ">"))) == struct.pack("<2i", 1, -2)
    assert read_bytes(only(array(call("_codecs encode", "\x01\xe9", "latin1"), "u1"))) == b"\x01\xe9"


@pytest.mark.parametrize("data", [b"\x01\x02", b"\xff\x01", "é".encode("latin-1") + b"\x01", "é".encode()])
def test_arrays_of_python_2(data: bytes) -> None:
    """Python 2 wrote the bytes as str, whether or not they happen to be text."""
    found = only(array(Raw(b"U" + bytes([len(data)]) + data), "u1"))
    assert read_bytes(found) == data


def test_an_array_shorter_than_its_shape() -> None:
    with pytest.raises(CorruptFile, match=r"an array of shape \(3,\) takes 12 bytes, but 8 are there"):
        opened([array(bytes(8), shape=(3,))])
    with pytest.raises(CorruptFile, match="a character beyond latin-1"):
        opened([array(call("_codecs encode", "\u20ac", "latin1"), "u1", shape=(1,))])


def test_a_long_array_as_text() -> None:
    """More than is kept in memory: protocol 2 writes each byte as a character, and the file keeps it."""
    data = bytes(range(256)) * 1000
    found = only(array(call("_codecs encode", data.decode("latin-1"), "latin1"), "u1", shape=(len(data),)))
    assert found.storage is not None
    assert read_bytes(found) == data
    assert found.storage.read(100_000, 300) == data[100_000:100_300]
    assert found.storage.read(7, 3) == data[7:10]


def test_arrays_of_objects_stay_calls() -> None:
    values = opened({"x": array([1, "a"], "O8", "|")}).values
    assert isinstance(values, dict)
    assert values["x"].meaning is None


def test_byte_strings_in_byte_strings() -> None:
    many = Raw(b"cbuiltins\nbytearray\n" * 50_000 + push(b"ab") + b"\x85R" * 50_000)
    assert isinstance(opened({"x": array(many, "u1")}).values, dict)


# --- against torch


def test_versions_are_those_of_the_classes() -> None:
    torch = pytest.importorskip("torch")
    torchvision = pytest.importorskip("torchvision")
    for name in ("models.detection", "models.quantization", "models.video", "models.optical_flow", "ops"):
        importlib.import_module(f"{torchvision.__name__}.{name}")
    seen: dict[str, int] = {}
    pending = list(torch.nn.Module.__subclasses__())
    while pending:
        cls = pending.pop()
        pending += cls.__subclasses__()
        # lazy modules become others before they are saved, bases without a public name are none
        hidden = "Lazy" in cls.__name__ or (cls.__module__.startswith("torch.") and cls.__name__.startswith("_"))
        if cls.__module__.startswith(("torch.nn.modules.", "torchvision.")) and not hidden:
            seen[f"{cls.__module__}.{cls.__name__}"] = cls._version
    assert len(seen) > 300
    assert {name: version for name, version in seen.items() if version != 1} == _VERSIONS


def test_versions_in_the_metadata() -> None:
    classes = {"b": "torch.nn.modules.batchnorm BatchNorm2d", "l": "torch.nn.modules.linear Linear", "m": "m Net"}
    net = plain_module(module(_modules={name: module(cls) for name, cls in classes.items()}, _version=7))
    assert {name: part.version for name, part in net.walk()} == {"": 7, "b": 2, "l": 1, "m": None}
    assert net.state_dict().metadata == {
        "": {"version": 7},
        "b": {"version": 2},
        "l": {"version": 1},
        "m": {"version": 1},
    }


def saved(value: object) -> bytes:
    torch = pytest.importorskip("torch")
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_graph_module() -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    traced = torch.fx.symbolic_trace(model)
    checkpoint = open_checkpoint(saved(traced))
    assert checkpoint.module is not None
    assert checkpoint.module.class_name == "torch.fx.graph_module.GraphModule"
    assert_state_dict(checkpoint.module, traced)


def test_nested_graph_modules() -> None:
    torch = pytest.importorskip("torch")
    inner = torch.fx.symbolic_trace(torch.nn.Sequential(torch.nn.Linear(2, 2)))
    model = torch.nn.Sequential(OrderedDict(a=inner, b=torch.nn.ReLU(), c=inner))
    checkpoint = open_checkpoint(saved(model))
    assert checkpoint.module is not None
    assert_state_dict(checkpoint.module, model)


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_uninitialized_parameters() -> None:
    torch = pytest.importorskip("torch")
    model = torch.nn.LazyLinear(3)
    found = open_checkpoint(saved(model)).module
    assert found is not None
    weight = found.parameters["weight"]
    assert weight is not None
    assert weight.details["uninitialized"] is True
    assert list(found.state_dict().entries) == list(model.state_dict())


def test_module_machinery() -> None:
    """What no fixture has: hooks, None entries, weight norm over a shared weight, nested containers."""
    torch = pytest.importorskip("torch")
    nn = torch.nn
    shared = nn.Linear(2, 2)
    model = nn.ModuleDict(
        {
            "list": nn.ModuleList([shared, nn.Dropout(0.5), nn.Sequential()]),
            "params": nn.ParameterList([nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(2))]),
            "dict": nn.ParameterDict({"b": nn.Parameter(torch.ones(1)), "a": nn.Parameter(torch.ones(2))}),
            "again": shared,
            "norm": nn.BatchNorm1d(2, affine=False),
            "untracked": nn.InstanceNorm2d(2),
            "lstm": nn.LSTM(2, 3, num_layers=2, bidirectional=True),
            "attention": nn.MultiheadAttention(4, 2, kdim=3, vdim=3),
            "transformer": nn.TransformerEncoderLayer(4, 2, 8),
            "embedding": nn.EmbeddingBag(3, 2, padding_idx=0),
        }
    )
    model["norm"].eval()
    model["list"][0].weight.requires_grad_(False)
    checkpoint = open_checkpoint(saved(model))
    assert checkpoint.module is not None
    assert_state_dict(checkpoint.module, model)
    assert [(n, m.training) for n, m in checkpoint.module.walk()] == [
        (n, m.training) for n, m in model.named_modules(remove_duplicate=False)
    ]


def assert_state_dict(found: Module, model: Any) -> None:
    """*found* has the state_dict that torch has, bytes, metadata and all."""
    expected = model.state_dict(keep_vars=True)
    state_dict = found.state_dict()
    assert list(state_dict.entries) == list(expected)
    assert state_dict.metadata == dict(expected._metadata)
    for tensor in state_dict.tensors:
        want = expected[tensor.name]
        assert (tensor.shape, tensor.stride) == (tuple(want.shape), want.stride())
        assert tensor.requires_grad == want.requires_grad
        assert read_bytes(tensor) == want.detach().contiguous().numpy().tobytes()


def test_pickle_and_push_agree() -> None:
    """The helper of these tests writes what pickle would read."""
    value = {"a": (1, -(2**70), 1.5, None, True), "b": ["x\udc80", b"y"]}
    assert pickle.loads(b"\x80\x02" + push(value) + b".") == value


def test_blobs_are_left_in_the_file() -> None:
    values = opened({"x": b"y" * 5000}).values
    assert isinstance(values, dict)
    assert isinstance(values["x"], Blob)
    assert values["x"].size == 5000
