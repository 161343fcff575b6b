"""The pickle machine, opcode by opcode, and against Python's own unpickler."""

from __future__ import annotations

import collections
import math
import pickle
import pickletools
import random
import re
import struct
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_tools.errors import CorruptFile, LimitExceeded
from ckpt_tools.pickles import machine
from ckpt_tools.pickles.machine import Evaluation, Truncated, evaluate
from ckpt_tools.pickles.values import Blob, Call, Global, OrderedDict, PersistentId

U16, U32, U64 = struct.Struct("<H").pack, struct.Struct("<I").pack, struct.Struct("<Q").pack


def told(value: object) -> object:
    """An inert value as nested tuples of plain ones, to be compared."""
    match value:
        case Global():
            return "global", value.path
        case PersistentId():
            return "persistent", told(value.pid)
        case Blob():
            return "blob", value.offset, value.size, value.text
        case OrderedDict():
            return "ordered", [(told(k), told(v)) for k, v in value.items()], told(value.state)
        case Call():
            rest = {
                "kwargs": told(value.kwargs),
                "state": told(value.state),
                "items": told(value.items),
                "entries": told(value.entries),
            }
            kind = "new" if value.new else "call"
            return kind, told(value.func), told(value.args), {k: v for k, v in rest.items() if v is not None}
        case tuple() | list():
            return type(value)(map(told, value))
        case dict():
            return {told(k): told(v) for k, v in value.items()}
    return value


def call(path: str, *args: object, **rest: object) -> object:
    return "call", ("global", path), args, rest


def new(path: str, *args: object, **rest: object) -> object:
    return "new", ("global", path), args, rest


SET = b"cbuiltins\nset\n"
TEXT = b"\xc3\xa9\xed\xa0\x80"  # an accent, and a lone surrogate
CASES: dict[str, list[tuple[bytes, object]]] = {
    "INT": [
        (b"I42\n.", 42),
        (b"I-7\n.", -7),
        (b"I00\n.", False),
        (b"I01\n.", True),
        (b"I0\n.", 0),
        (b"I1\n.", 1),
        (b"I99999999999999999999\n.", 99999999999999999999),
    ],
    "BININT": [(b"J\xff\xff\xff\x7f.", 2**31 - 1), (b"J\x00\x00\x00\x80.", -(2**31))],
    "BININT1": [(b"K\xff.", 255)],
    "BININT2": [(b"M\x01\xff.", 0xFF01)],
    "LONG": [(b"L12L\n.", 12), (b"L-12\n.", -12), (b"L0\n.", 0)],
    "LONG1": [(b"\x8a\x00.", 0), (b"\x8a\x02\x00\xff.", -256), (b"\x8a\x02\xff\x00.", 255)],
    "LONG4": [(b"\x8b\x09\x00\x00\x00" + bytes(8) + b"\x01.", 1 << 64), (b"\x8b\x00\x00\x00\x00.", 0)],
    "STRING": [
        (b"S'abc'\n.", "abc"),
        (b'S"it\'s"\n.', "it's"),
        (b"S'\\x41\\n\\\\\\'\\101\\t'\n.", "A\n\\'A\t"),
        (b"S''\n.", ""),
    ],
    "BINSTRING": [(b"T\x03\x00\x00\x00abc.", "abc"), (b"T\x01\x00\x00\x00\xff.", b"\xff")],
    "SHORT_BINSTRING": [(b"U\x02\xc3\xa9.", "é"), (b"U\x02\xff\xfe.", b"\xff\xfe"), (b"U\x00.", "")],
    "BINBYTES": [(b"B\x02\x00\x00\x00\xff\x00.", b"\xff\x00")],
    "SHORT_BINBYTES": [(b"C\x02\xff\x00.", b"\xff\x00"), (b"C\x00.", b"")],
    "BINBYTES8": [(b"\x8e" + U64(2) + b"\xff\x00.", b"\xff\x00")],
    "BYTEARRAY8": [(b"\x96" + U64(2) + b"\xff\x00.", b"\xff\x00")],
    "READONLY_BUFFER": [(b"C\x01a\x98.", b"a")],
    "NONE": [(b"N.", None)],
    "NEWTRUE": [(b"\x88.", True)],
    "NEWFALSE": [(b"\x89.", False)],
    "UNICODE": [(b"Vabc\\u20ac\xe9\\ud800\n.", "abc€é\ud800"), (b"V\n.", "")],
    "SHORT_BINUNICODE": [(b"\x8c\x05" + TEXT + b".", "é\ud800"), (b"\x8c\x00.", "")],
    "BINUNICODE": [(b"X\x05\x00\x00\x00" + TEXT + b".", "é\ud800")],
    "BINUNICODE8": [(b"\x8d" + U64(5) + TEXT + b".", "é\ud800")],
    "FLOAT": [(b"F1.5\n.", 1.5), (b"F-inf\n.", -math.inf), (b"F+1e-3\n.", 0.001), (b"F.5\n.", 0.5)],
    "BINFLOAT": [(b"G" + struct.pack(">d", -2.5) + b".", -2.5)],
    "EMPTY_LIST": [(b"].", [])],
    "APPEND": [(b"]K\x01a.", [1]), (b"\x8f" + b"0" + SET + b")RK\x01a.", call("builtins.set", items=[1]))],
    "APPENDS": [
        (b"](K\x01K\x02e.", [1, 2]),
        (b"](e.", []),
        (b"K\x01(e.", 1),  # nothing is appended, so nothing fails
        (b"cm\nDeque\n)\x81(K\x01K\x02eK\x03a.", new("m.Deque", items=[1, 2, 3])),
    ],
    "LIST": [(b"(K\x01K\x02l.", [1, 2]), (b"(l.", [])],
    "EMPTY_TUPLE": [(b").", ())],
    "TUPLE": [(b"(K\x01K\x02K\x03K\x04t.", (1, 2, 3, 4)), (b"(t.", ())],
    "TUPLE1": [(b"K\x01\x85.", (1,))],
    "TUPLE2": [(b"K\x01K\x02\x86.", (1, 2))],
    "TUPLE3": [(b"K\x01K\x02K\x03\x87.", (1, 2, 3))],
    "EMPTY_DICT": [(b"}.", {})],
    "DICT": [(b"(K\x01K\x02K\x03K\x04d.", {1: 2, 3: 4}), (b"(d.", {})],
    "SETITEM": [
        (b"}K\x01K\x02s.", {1: 2}),
        (b"](K\x05eK\x00K\x06s.", [6]),
        (b"ccollections\nCounter\n)R\x8c\x01aK\x02s.", call("collections.Counter", entries=[("a", 2)])),
    ],
    "SETITEMS": [
        (b"}(K\x01K\x02K\x03K\x04u.", {1: 2, 3: 4}),
        (b"N(u.", None),
        (b"ccollections\nOrderedDict\n)R(K\x01K\x02u.", ("ordered", [(1, 2)], None)),
    ],
    "EMPTY_SET": [(b"\x8f.", set())],
    "ADDITEMS": [
        (b"\x8f(K\x01K\x02\x90.", {1, 2}),
        (b"\x8f(\x90.", set()),
        (b"cm\nBag\n)\x81(K\x01\x90.", new("m.Bag", items=[1])),
    ],
    "FROZENSET": [(b"(K\x01K\x02\x91.", frozenset({1, 2})), (b"(\x91.", frozenset())],
    "POP": [(b"K\x01K\x020.", 1), (b"K\x01(0.", 1)],
    "DUP": [(b"K\x012\x86.", (1, 1))],
    "MARK": [(b"((K\x01tK\x02t.", ((1,), 2))],
    "POP_MARK": [(b"K\x01(K\x02K\x031.", 1)],
    "GET": [(b"K\x01p7\n0g7\n.", 1)],
    "BINGET": [(b"K\x01q\x070h\x07.", 1)],
    "LONG_BINGET": [(b"K\x01q\x070j" + U32(7) + b".", 1)],
    "PUT": [(b"K\x01p70000\n0j" + U32(70000) + b".", 1)],
    "BINPUT": [(b"]q\x00(h\x00e0h\x00.", None)],  # replaced below: it contains itself
    "LONG_BINPUT": [(b"K\x01r" + U32(2**32 - 1) + b"0j" + U32(2**32 - 1) + b".", 1)],
    "MEMOIZE": [(b"\x80\x04K\x01\x94K\x02\x94h\x00h\x01\x860h\x01h\x00\x86.", (2, 1))],
    "EXT1": [(b"\x82\x05.", ("global", "copyreg.extension 5"))],
    "EXT2": [(b"\x83\x05\x01.", ("global", "copyreg.extension 261"))],
    "EXT4": [(b"\x84\x05\x00\x01\x00.", ("global", "copyreg.extension 65541"))],
    "GLOBAL": [
        (b"ctorch._utils\n_rebuild_tensor_v2\n.", ("global", "torch._utils._rebuild_tensor_v2")),
        (b"c__builtin__\nxrange\n.", ("global", "builtins.range")),
        (b"ccPickle\nloads\n.", ("global", "pickle.loads")),
        (b"\x80\x03c__builtin__\nxrange\n.", ("global", "__builtin__.xrange")),
    ],
    "STACK_GLOBAL": [
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", ("global", "os.system")),
        (b"\x8c\x0b__builtin__\x8c\x04eval\x93.", ("global", "builtins.eval")),
    ],
    "REDUCE": [
        (b"cos\nsystem\nX\x02\x00\x00\x00ls\x85R.", call("os.system", "ls")),
        (b"ccollections\nOrderedDict\n)R.", ("ordered", [], None)),
        (b"ccollections\nOrderedDict\n](]K\x01aK\x02ae\x85R.", ("ordered", [(1, 2)], None)),
        (b"ccollections\nOrderedDict\n}K\x01K\x02s\x85R.", ("ordered", [(1, 2)], None)),
        (b"cm\nf\n)R)R.", ("call", call("m.f"), (), {})),
    ],
    "BUILD": [
        (b"cm\nC\n)\x81}X\x01\x00\x00\x00aK\x01sb.", new("m.C", state={"a": 1})),
        (b"cm\nC\n)\x81}K\x01K\x02sb}K\x03K\x04sb.", new("m.C", state={1: 2, 3: 4})),
        (b"ccollections\nOrderedDict\n)R}K\x01K\x02sb.", ("ordered", [], {1: 2})),
        (b"}Nb.", {}),
    ],
    "INST": [(b"(K\x01im\nC\n.", call("m.C", 1)), (b"(icollections\nOrderedDict\n.", ("ordered", [], None))],
    "OBJ": [(b"(cm\nC\nK\x01o.", call("m.C", 1))],
    "NEWOBJ": [
        (b"cm\nC\nK\x01\x85\x81.", new("m.C", 1)),
        (b"ccollections\nOrderedDict\n)\x81.", ("ordered", [], None)),
    ],
    "NEWOBJ_EX": [(b"\x80\x04cm\nC\nK\x01\x85}X\x01\x00\x00\x00aK\x02s\x92.", new("m.C", 1, kwargs={"a": 2}))],
    "PROTO": [(bytes([0x80, n]) + b"N.", None) for n in range(6)],
    "STOP": [(b"N.", None), (b"K\x01K\x02.", 2)],
    "FRAME": [(b"\x80\x04\x95" + U64(2) + b"N.", None), (b"\x95" + U64(0) + b"N.", None)],
    "PERSID": [(b"Pstorage 1\n.", ("persistent", "storage 1"))],
    "BINPERSID": [(b"K\x01K\x02\x86Q.", ("persistent", (1, 2)))],
    "NEXT_BUFFER": [],  # see test_a_buffer_outside_the_stream_is_refused
}
CASES["BINPUT"] = [(b"K\x01q\x070h\x07.", 1)]
STREAMS = [
    pytest.param(name, stream, value, id=f"{name} {number}")
    for name, cases in CASES.items()
    for number, (stream, value) in enumerate(cases)
]


def test_every_opcode_has_a_case() -> None:
    assert set(CASES) == {opcode.name for opcode in pickletools.opcodes}


@pytest.mark.parametrize(("name", "stream", "value"), STREAMS)
def test_opcode(name: str, stream: bytes, value: object) -> None:
    evaluation = evaluate(stream)
    assert told(evaluation.root) == value
    assert type(told(evaluation.root)) is type(value)
    assert (evaluation.start, evaluation.end) == (0, len(stream))
    codes = {ord(opcode.code) for opcode, _, _ in pickletools.genops(stream)}
    assert evaluation.opcodes == codes
    assert name in {opcode.name for opcode, _, _ in pickletools.genops(stream)}


@pytest.mark.parametrize(("name", "stream", "value"), STREAMS)
def test_a_stream_may_begin_anywhere_and_be_followed_by_anything(name: str, stream: bytes, value: object) -> None:
    evaluation = evaluate(b"\xff" * 7 + stream + b"\xff" * 9, 7)
    assert told(evaluation.root) == value
    assert (evaluation.start, evaluation.end) == (7, 7 + len(stream))


def test_names_and_python_2_strings_may_be_utf8() -> None:
    """Which is where pickletools stops."""
    assert told(evaluate("cmö\nx\n.".encode()).root) == ("global", "mö.x")
    assert evaluate(b"S'\\xc3\\xa9'\n.").root == "é"


def test_a_buffer_outside_the_stream_is_refused() -> None:
    with pytest.raises(CorruptFile, match="pickled apart from it"):
        evaluate(b"\x80\x05\x97.")


# --- against Python's unpickler


def hashable(value: object, stream: bytes) -> Any:
    """A key or element of a set as Python would have made it."""
    value = made(value, stream)
    if isinstance(value, tuple | frozenset):
        return type(value)(hashable(item, stream) for item in value)
    return value


def made(value: object, stream: bytes) -> object:
    """What an unpickler would have made of *value*: calls of built-in containers made, nothing below them."""
    if isinstance(value, Blob):
        raw = stream[value.offset : value.offset + value.size]
        return raw.decode("utf-8", "surrogatepass") if value.text else raw
    if not isinstance(value, Call):
        return value
    args = [made(argument, stream) for argument in value.arguments]
    match value.target:
        case "_codecs.encode":
            return args[0].encode(args[1])  # type: ignore[attr-defined]
        case "builtins.bytes" | "builtins.bytearray" | "builtins.complex":
            return getattr(__import__("builtins"), value.target.removeprefix("builtins."))(*args)
        case "builtins.set" | "builtins.frozenset":
            kind = set if value.target.endswith(".set") else frozenset
            return kind(hashable(item, stream) for item in args[0])  # type: ignore[attr-defined]
    raise AssertionError(f"no such call is expected: {value.target}")


def assert_same(expected: object, found: object, stream: bytes) -> None:
    """*found*, evaluated, is what *expected* is: equal values of equal types, wired in the same way."""
    paired: dict[int, int] = {}
    keep: list[object] = []  # so that no id is used twice
    pending: list[tuple[object, object]] = [(expected, found)]
    while pending:
        want, raw = pending.pop()
        if isinstance(want, list | dict | set):
            if id(want) in paired:
                assert paired[id(want)] == id(raw)
                continue
            paired[id(want)] = id(raw)
        have = made(raw, stream)
        keep += [raw, have]
        if isinstance(want, bytearray):
            assert have == bytes(want)  # BYTEARRAY8 gives bytes, which suffice to describe
            continue
        assert type(want) is type(have)
        if isinstance(want, list | tuple):
            assert len(want) == len(have)  # type: ignore[arg-type]
            pending += zip(want, have, strict=True)  # type: ignore[call-overload]
        elif isinstance(want, dict):
            keys = [hashable(key, stream) for key in have]  # type: ignore[attr-defined]
            assert list(want) == keys
            assert [type(key) for key in want] == [type(key) for key in keys]
            pending += zip(want.values(), have.values(), strict=True)  # type: ignore[attr-defined]
        elif isinstance(want, set | frozenset):
            assert want == {hashable(item, stream) for item in have}  # type: ignore[attr-defined]
        elif isinstance(want, float):
            assert struct.pack("d", want) == struct.pack("d", have)
        else:
            assert want == have
    assert len(set(paired.values())) == len(paired)


texts = st.text(st.characters(exclude_categories=()), max_size=8)
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**80), 2**80)
    | st.sampled_from([2**31, -(2**31) - 1, 2**63, 255, 256, 65535, 65536, -1, 1 << 2040, -(1 << 2039)])
    | texts
    | st.binary(max_size=8)
)
keys = scalars | st.floats(allow_nan=False)
keys = keys | st.tuples(keys, keys) | st.frozensets(keys, max_size=3)
leaves = scalars | st.floats() | st.binary(max_size=8).map(bytearray) | st.frozensets(keys, max_size=3)


@st.composite
def graphs(draw: st.DrawFn) -> object:
    """Nested lists, dicts, sets and tuples that refer to each other at will, also in cycles."""
    kinds = draw(st.lists(st.sampled_from([list, dict, set]), min_size=1, max_size=6))
    nodes: list[Any] = [kind() for kind in kinds]
    value = leaves | st.sampled_from(nodes)
    value |= st.tuples(value) | st.tuples(value, value, value) | st.lists(value, min_size=4, max_size=5).map(tuple)
    for node in nodes:
        if isinstance(node, list):
            node.extend(draw(st.lists(value, max_size=4)))
        elif isinstance(node, dict):
            node.update(draw(st.lists(st.tuples(keys, value), max_size=4)))
        else:
            node.update(draw(st.lists(keys, max_size=4)))
    return draw(value) if draw(st.booleans()) else nodes


@pytest.mark.parametrize("protocol", range(6))
@settings(max_examples=200)
@given(value=graphs())
def test_evaluates_to_what_pickle_loads(protocol: int, value: object) -> None:
    stream = pickle.dumps(value, protocol)
    evaluation = evaluate(stream)
    assert_same(pickle.loads(stream), evaluation.root, stream)
    assert evaluation.anomalies == []
    assert evaluation.protocol == (0 if protocol == 0 else protocol if protocol > 1 else 0)


@pytest.mark.parametrize("protocol", range(6))
def test_long_strings_are_left_in_the_stream(protocol: int) -> None:
    value = {"bytes": bytes(range(256)) * 40, "text": "é" * 70_000, "short": "é" * 3_000}
    stream = pickle.dumps(value, protocol)
    root = evaluate(stream).root
    assert isinstance(root, dict)
    if protocol:
        assert isinstance(root["text"], Blob)
    if protocol >= 3:
        assert isinstance(root["bytes"], Blob)
    assert_same(value, root, stream)


FRAGMENTS = [
    *(b"N", b"\x88", b"\x89", b"K\x00", b"K\x01", b"I1\n", b"J\xff\xff\xff\xff", b"L2L\n", b"\x8a\x01\x03"),
    *(b"X\x01\x00\x00\x00a", b"\x8c\x01b", b"C\x01c", b"U\x01d", b"S'e'\n", b"Vf\n", b"F0.5\n"),
    *(b"]", b"}", b")", b"\x8f", b"(", b"(", b"(", b"t", b"l", b"d", b"\x85", b"\x86", b"\x87", b"\x91"),
    *(b"a", b"a", b"e", b"s", b"s", b"u", b"\x90", b"0", b"1", b"2", b"b", b"\x81", b"R", b"\x92", b"\x98"),
    *(b"q\x00", b"q\x01", b"h\x00", b"h\x01", b"\x94", b"p1\n", b"g1\n", b"\x80\x02", b"\x80\x05"),
    *(b"\x95" + U64(0), b"o", b"\x82\x00", b"."),
]


@pytest.mark.parametrize("protocol", range(6))
def test_a_key_stays_a_key_however_long_it_is(protocol: int) -> None:
    long, other = "é" * 70_000, "x" * 70_000
    value = [{long: 1, other: long}, {long: 2}, collections.defaultdict(int, {long: 3})]
    root = evaluate(pickle.dumps(value, protocol)).root
    assert isinstance(root, list)
    assert list(root[0]) == [long, other]
    assert root[0][long] == 1
    assert root[1] == {long: 2}
    assert root[2].entries == [(long, 3)]


def test_two_long_keys_that_are_equal_are_one() -> None:
    long = b"X" + U32(70_000) + b"x" * 70_000
    found = evaluate(b"}(" + long + b"K\x01" + long + b"K\x02u.")
    assert found.root == {"x" * 70_000: 2}
    assert [what for what, _ in found.anomalies] == ["a mapping sets a key twice"]


def test_a_long_key_that_is_no_text_is_refused() -> None:
    with pytest.raises(CorruptFile):
        evaluate(b"}X" + U32(70_000) + b"\xff" * 70_000 + b"K\x01s.")


def test_accepts_and_refuses_just_what_pickle_does() -> None:
    """On random streams of opcodes that name nothing."""
    chance = random.Random(7)
    accepted = 0
    for _ in range(40_000):
        stream = b"".join(chance.choices(FRAGMENTS, k=chance.randrange(1, 14))) + b"."
        try:
            expected, refused = pickle.loads(stream), False
        except Exception:
            expected, refused = None, True
        try:
            evaluation = evaluate(stream)
        except CorruptFile:
            assert refused, stream
        else:
            assert not refused, stream
            assert_same(expected, evaluation.root, stream)
            accepted += 1
    assert accepted > 1000


# --- literals


def by_pickle(stream: bytes) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # odd escapes
            return pickle.loads(stream, encoding="latin-1")
    except (ValueError, OverflowError, pickle.UnpicklingError):
        return ValueError


def by_machine(stream: bytes) -> object:
    try:
        value = evaluate(stream).root
    except CorruptFile:
        return ValueError
    return value.decode("latin-1") if isinstance(value, bytes) else value


INTEGERS = [
    *(b"00", b"01", b"0", b"1", b"-1", b"+1", b"-0", b" 1", b"1 ", b"\x0b1", b"12\r", b"000", b"00000", b"-00"),
    *(b"010", b"-010", b" 010", b"010 ", b"08", b"0777", b"0" + b"7" * 20, b"0" + b"7" * 25, b"0_7", b"0_0"),
    *(b"0x1f", b"0X1F", b"-0x1f", b"0o17", b"0b101", b"1_000", b"0x_f", b"1__0", b"_1", b"0x", b"+-1", b""),
    *(b"1\x00", b"0\x00", b"1\x00x", b"010\x00", b"12L", b"12LL", b"1e5", b"0777L", b"\xb2", b"\xd9\xa1", b"01\r"),
    *(b"9" * 4300, b"9" * 4301, b"-" + b"9" * 4300, b"0x" + b"f" * 5000, b"0" * 4301, b"9" * 10**5),
]


@pytest.mark.parametrize("literal", INTEGERS, ids=lambda literal: repr(literal[:12]))
@pytest.mark.parametrize("opcode", [b"I", b"L"])
def test_integer_literals(opcode: bytes, literal: bytes) -> None:
    stream = opcode + literal + b"\n."
    expected, found = by_pickle(stream), by_machine(stream)
    assert type(found) is type(expected)
    assert found == expected


@given(st.text("0123456789xXoObBaAfF_+-L \t\x00", max_size=8), st.sampled_from("IL"))
def test_any_integer_literal(literal: str, opcode: str) -> None:
    stream = f"{opcode}{literal}\n.".encode()
    expected, found = by_pickle(stream), by_machine(stream)
    assert (type(found), found) == (type(expected), expected)


@given(st.text("0123456789.eEinfatyINF_+- \x00x", max_size=9))
def test_any_float_literal(literal: str) -> None:
    stream = f"F{literal}\n.".encode()
    expected, found = by_pickle(stream), by_machine(stream)
    assert repr(found) == repr(expected)


@given(st.text("'\"\\abnrtvfx0123789gé\x00", max_size=10), st.sampled_from(["'", '"', ""]))
def test_any_string_literal(body: str, quote: str) -> None:
    stream = f"S{quote}{body}{quote}\n.".encode("latin-1")
    expected, found = by_pickle(stream), by_machine(stream)
    if isinstance(found, str) and found != expected:  # UTF-8, which the machine makes text of
        found = found.encode("utf-8").decode("latin-1")
    assert found == expected


@given(st.text("\\uUx0189dDfFé\x00", max_size=12))
def test_any_unicode_literal(body: str) -> None:
    stream = f"V{body}\n.".encode("latin-1")
    assert by_machine(stream) == by_pickle(stream)


@pytest.mark.parametrize(
    ("stream", "oddity"),
    [
        (b"I010\n.", "an integer literal with a leading zero, which only some unpicklers take"),
        (b"I0x1f\n.", "an integer literal that is not plain decimal"),
        (b"L1_000L\n.", "an integer literal that is not plain decimal"),
        (b"U\x01\xff.", "a Python 2 string that is not UTF-8: torch.load takes it with encoding='latin1'"),
    ],
)
def test_odd_literals_are_reported(stream: bytes, oddity: str) -> None:
    assert evaluate(stream).anomalies == [(oddity, 0)]


def test_too_many_digits() -> None:
    with pytest.raises(LimitExceeded, match=r"an integer literal has 100,000 digits"):
        evaluate(b"I" + b"9" * 10**5 + b"\n.")


# --- what is recorded


def test_globals_are_recorded_in_order_with_place_and_use() -> None:
    stream = (
        b"\x80\x04"
        b"cm\nheld\n"  # 2
        b"cm\ncalled\n)R"  # 10
        b"cm\nC\n)\x81"  # 22
        b"cm\nC\n}b"  # 29
        b"cm\nlisted\nK\x01a"  # 36
        b"cm\nmapped\nK\x01K\x02s"  # 49
        b"(im\nclassic\n"  # 64
        b"(cm\nmade\no"  # 76
        b"\x8c\x01m\x8c\x06pushed\x93"  # 86
        b"cm\nnamed\n)}\x92"  # 98
        b"\x82\x01"  # 110
        b"ccollections\nOrderedDict\n)R"  # 112
        b"(t."
    )
    found = evaluate(stream)
    assert [(g.path, g.opcode, g.offset, sorted(g.uses)) for g in found.globals.values()] == [
        ("m.held", "GLOBAL", 2, []),
        ("m.called", "GLOBAL", 10, ["call"]),
        ("m.C", "GLOBAL", 22, ["build", "new"]),
        ("m.listed", "GLOBAL", 36, ["append"]),
        ("m.mapped", "GLOBAL", 49, ["set item"]),
        ("m.classic", "INST", 65, ["call"]),
        ("m.made", "GLOBAL", 77, ["call"]),
        ("m.pushed", "STACK_GLOBAL", 97, []),
        ("m.named", "GLOBAL", 98, ["new"]),
        ("copyreg.extension 1", "EXT", 110, []),
        ("collections.OrderedDict", "GLOBAL", 112, ["call"]),
    ]
    assert [(c.target, c.new, c.offset) for c in found.calls] == [
        ("m.called", False, 21),
        ("m.C", True, 28),
        ("m.classic", False, 65),
        ("m.made", False, 85),
        ("m.named", True, 109),
    ]


def test_the_same_name_is_one_global() -> None:
    found = evaluate(b"cm\nf\ncm\nf\n\x86.")
    assert len(found.globals) == 1
    first, second = found.root  # type: ignore[misc]
    assert first is second


def test_the_protocol_counts_where_it_stands() -> None:
    """As unpicklers go by the last PROTO, names may mean another thing before and after it."""
    found = evaluate(b"\x80\x04c__builtin__\neval\n\x80\x02c__builtin__\neval\n\x86.")
    assert [g.path for g in found.globals.values()] == ["__builtin__.eval", "builtins.eval"]
    assert found.protocol == 4


def test_a_class_in_a_persistent_id_is_seen_to_be_used() -> None:
    """Legacy files wrap the classes of modules so."""
    stream = b"(X\x06\x00\x00\x00modulecm\nNet\nX\x01\x00\x00\x00fX\x01\x00\x00\x00stQ)\x81."
    found = evaluate(stream)
    assert [(g.path, g.uses) for g in found.globals.values()] == [("m.Net", {"new"})]
    assert found.calls[0].class_name == "m.Net"


def test_persistent_ids_are_recorded() -> None:
    found = evaluate(b"Pone\nK\x02Q\x86.")
    assert [p.pid for p in found.persistent] == ["one", 2]


@pytest.mark.parametrize(
    ("stream", "anomalies"),
    [
        (b"K\x01K\x02.", [("values are left on the stack at STOP", 4)]),
        (b"(N.", [("values are left on the stack at STOP", 2)]),
        (b"N\x80\x02.", [("PROTO in the middle of the stream", 1)]),
        (b"\x80\x06N.", [("pickle protocol 6, which only torch's weights_only unpickler takes", 0)]),
        (b"](NeK\x00Ns.", [("SETITEM on a list", 7)]),
        (b"}(K\x01NK\x01Nu.", [("a mapping sets a key twice", 8)]),
        (b"}K\x01NsK\x01Ns.", [("a mapping sets a key twice", 8)]),
        (b"(K\x01NK\x01Nd.", [("a mapping sets a key twice", 7)]),
        (b"cm\nC\n}b.", [("attributes are set on what a name refers to, not on an instance of it", 6)]),
        (b"cm\nC\n)\x81NbK\x01bK\x02b.", [("an object's state is set twice", 14)]),
        (b"]Nb.", [("BUILD on a list", 2)]),
        (b"cm\nC\nK\x01a.", [("an opcode calls a method (append) of what is no container", 7)]),
        (b"cm\nf\n]NaR.", [("arguments are given as a list, which only torch's weights_only unpickler takes", 8)]),
    ],
)
def test_anomalies(stream: bytes, anomalies: list[tuple[str, int]]) -> None:
    assert evaluate(stream).anomalies == anomalies


def test_anomalies_are_kept_within_bounds() -> None:
    assert len(evaluate(b"N" + b"\x80\x02" * 5000 + b".").anomalies) == 1000


def test_states_are_merged_without_changing_the_first() -> None:
    stream = b"}q\x00K\x01K\x02s0cm\nC\n)\x81h\x00b}K\x03K\x04sb}K\x05K\x06sbh\x00\x86."
    built, first = evaluate(stream).root  # type: ignore[misc]
    assert built.state == {1: 2, 3: 4, 5: 6}
    assert first == {1: 2}


# --- what cannot be evaluated


@pytest.mark.parametrize(
    ("stream", "cause", "offset"),
    [
        (b".", "an opcode finds too few values on the stack", 0),
        (b"N\x86.", "an opcode finds too few values on the stack", 1),
        (b"N\x86", "an opcode finds too few values on the stack", 1),  # not for want of bytes
        (b"N(\x85.", "an opcode finds too few values on the stack", 2),
        (b"Nt.", "an opcode finds too few values on the stack", 1),
        (b"(o.", "an opcode finds too few values on the stack", 1),
        (b"q\x00.", "an opcode finds too few values on the stack", 0),
        (b"Nh\x07.", "memo entry 7 is fetched before anything was stored there", 1),
        (b"Ng8\n.", "memo entry 8 is fetched before anything was stored there", 1),
        (b"Np-1\n.", "a negative memo index", 1),
        (b"Npx\n.", "b'x' is no integer", 1),
        (b"X\x01\x00\x00\x00\xff.", "a string or name is not validly encoded", 0),
        (b"V\\u12\n.", "a string or name is not validly encoded", 0),
        (b"c\xff\nx\n.", "a string or name is not validly encoded", 0),
        (b"P\xc3\xa9\n.", "a string or name is not validly encoded", 0),
        (b"c\nx\n.", "GLOBAL has an empty name", 0),
        (b"NN\x93.", "STACK_GLOBAL names something by what is no string", 2),
        (b"N\xff.", "0xff is no pickle opcode", 1),
        (b"N\x00.", "0x00 is no pickle opcode", 1),
        (b"\x8b\xff\xff\xff\xff.", "an integer of negative size", 0),
        (b"T\xff\xff\xff\xff.", "a string of negative size", 0),
        (b"Sabc\n.", "a string without its quotes", 0),
        (b"S'a\\x4'\n.", r"a string has a malformed \x escape", 0),
        (b"S'a\\'\n.", "a string ends within an escape", 0),
        (b"Fabc\n.", "b'abc' is no number", 0),
        (b"F1e999\n.", "b'1e999' is too large for a number", 0),
        (b"}]Ns.", "a list is used as a key", 3),
        (b"(]\x91.", "a list is used as a key", 2),
        (b"}}\x85Ns.", "a dict is used in a key", 4),
        (b"(K\x01d.", "a key without its value", 3),
        (b"]K\x00Ns.", "SETITEM on a list, beyond its end", 4),
        (b"NK\x01a.", "append on a NoneType", 3),
        (b"\x8fK\x01a.", "append on a set", 3),
        (b"](N\x90.", "add on a list", 3),
        (b"NK\x01K\x02s.", "set item on a NoneType", 5),
        (b"K\x01)R.", "a int is called", 3),
        (b"cm\nf\nNR.", "a NoneType is given as arguments", 6),
        (b"K\x01)\x81.", "a int is taken for a class", 3),
        (b"cm\nC\nN\x81.", "a NoneType is given as arguments", 6),
        (b"cm\nC\n)]\x92.", "NEWOBJ_EX takes its keyword arguments from what is no dict", 7),
        (b"\x82\x00.", "0 is no extension code", 0),
        (b"\x84\xff\xff\xff\xff.", "-1 is no extension code", 0),
        (b"}}b.", "attributes are set on a dict, which has none", 2),
        (b"N\x98.", "a NoneType is taken for a buffer", 1),
        (b"ccollections\nOrderedDict\n]Na\x85R.", "an OrderedDict is made from what are no pairs", 29),
    ],
)
def test_what_cannot_be_evaluated(stream: bytes, cause: str, offset: int) -> None:
    with pytest.raises(CorruptFile) as caught:
        evaluate(b"\xff\xff" + stream, 2)
    assert caught.value.problem == cause
    assert caught.value.offset == offset + 2
    assert not isinstance(caught.value, Truncated)
    assert isinstance(caught.value.partial, Evaluation)  # type: ignore[attr-defined]


RICH = {"a": [1, 2.5, 300, 70000, -1, 1 << 70], "b": (b"x" * 300, "é" * 300, bytearray(3)), "c": {1, None}}


@pytest.mark.parametrize(
    "stream",
    [pytest.param(pickle.dumps(RICH, protocol), id=f"protocol {protocol}") for protocol in range(6)]
    + [pytest.param(stream, id=name) for name, cases in CASES.items() for stream, _ in cases[:1]],
)
def test_truncated_anywhere(stream: bytes) -> None:
    """The error tells the opcode that is cut, and what came before it is kept."""
    starts = [position for _, _, position in pickletools.genops(stream)]
    names = [(p, a) for o, a, p in pickletools.genops(stream) if o.name in ("GLOBAL", "INST")]
    for cut in range(len(stream)):
        with pytest.raises(Truncated) as caught:
            evaluate(stream[:cut])
        error = caught.value
        at = cut if cut in starts else max(start for start in starts if start <= cut)
        assert error.offset == at
        if error.problem != "the pickle breaks off":
            # a size is whole, and what it announces is not
            assert re.fullmatch(r"a (byte )?string of [\d,]+ bytes is declared where \d+ are left", error.problem)
        partial = error.partial  # type: ignore[attr-defined]
        assert [g.offset for g in partial.globals.values() if g.opcode != "EXT" and g.opcode != "STACK_GLOBAL"] == [
            position for position, _ in names if position < at
        ]


def test_a_cut_string_tells_how_much_is_missing() -> None:
    stream = pickle.dumps({"key": "x" * 1000}, 2)
    with pytest.raises(Truncated, match=r"a string of 1,000 bytes is declared where 500 are left"):
        evaluate(stream[: stream.index(b"x" * 1000) + 500])


# --- limits


@pytest.mark.parametrize(
    ("stream", "problem"),
    [
        (b"\x8d" + U64(2**63) + b"abc.", "a string of 9,223,372,036,854,775,808 bytes is declared where 4 are left"),
        (b"\x8d" + U64(2**64 - 1) + b"abc.", "a string of 18,446,744,073,709,551,615 bytes is declared where 4 are"),
        (b"\x8e" + U64(2**63) + b"abc.", "a byte string of 9,223,372,036,854,775,808 bytes is declared where 4 are"),
        (b"\x96" + U64(2**63) + b"abc.", "a byte string of 9,223,372,036,854,775,808 bytes is declared where 4 are"),
        (b"X" + U32(2**32 - 1) + b"abc.", "a string of 4,294,967,295 bytes is declared where 4 are left"),
        (b"B" + U32(2**32 - 1) + b"abc.", "a byte string of 4,294,967,295 bytes is declared where 4 are left"),
        (b"T" + U32(2**31 - 1) + b"abc.", "a byte string of 2,147,483,647 bytes is declared where 4 are left"),
        (b"\x8b" + U32(2**31 - 1) + b"abc.", "the pickle breaks off"),
        (b"\x8c\xffabc.", "the pickle breaks off"),
        (b"\x95" + U64(2**63) + b"N.", "a frame of 9,223,372,036,854,775,808 bytes is declared where 2 are left"),
    ],
    ids=lambda value: repr(value[:8]),
)
def test_giant_sizes_cost_nothing(stream: bytes, problem: str) -> None:
    with pytest.raises(Truncated) as caught:
        evaluate(stream)
    assert caught.value.problem.startswith(problem)
    assert caught.value.offset == 0


def test_huge_memo_indexes_cost_nothing() -> None:
    found = evaluate(b"K\x01r" + U32(2**32 - 1) + b"0K\x02p" + b"9" * 30 + b"\n0j" + U32(2**32 - 1) + b".")
    assert found.root == 1


DEEP = 10**6


@pytest.mark.parametrize(
    "stream",
    [
        b"]" * DEEP + b"a" * (DEEP - 1) + b".",
        b"N" + b"\x85" * DEEP + b".",
        b"(" * DEEP + b"l" * DEEP + b".",
        (b"}K\x00" * DEEP) + b"N" + b"s" * DEEP + b".",
        b"cm\nf\n" + b")R" * DEEP + b".",
        b"K\x00" + b"Q" * DEEP + b".",
    ],
    ids=["lists", "tuples", "marks", "dicts", "calls", "persistent ids"],
)
def test_deep_nesting(stream: bytes) -> None:
    assert evaluate(stream).end == len(stream)


def times(levels: int, step: bytes = b"2\x86") -> bytes:
    """``(t, t)`` of ``(t, t)`` and so on: two to the power of *levels* elements in a few bytes."""
    return b"K\x01" + step * levels


@pytest.mark.parametrize(
    ("stream", "problem"),
    [
        (b"}" + times(60) + b"Ns.", "a key has more than 4,096 elements"),
        (b"(" + times(60) + b"\x91.", "a key has more than 4,096 elements"),
        (b"\x8f(" + times(60) + b"\x90.", "a key has more than 4,096 elements"),
        (b"ccollections\nCounter\n)R" + times(60) + b"Ns.", "a key has more than 4,096 elements"),
        (b"}N" + b"\x85" * 10**5 + b"Ns.", "a key is nested more than 32 deep"),
        (b"}" + b"(" * 100 + b"\x91" * 100 + b"Ns.", "a key is nested more than 32 deep"),
        # equal frozensets are compared element by element, here two to the power of 40 times
        (b"\x8f(" + 2 * (b"(K\x01\x91" + b"q\x00(h\x00\x91q\x010(h\x00h\x01\x91" * 40) + b"\x90.", "a key "),
        (b"}\x8b" + U32(10**5) + b"\x01" * 10**5 + b"Ns.", "a key is an integer of 799,993 bits"),
    ],
    ids=lambda value: repr(value[:30]),
)
def test_keys_that_are_costly_to_hash(stream: bytes, problem: str) -> None:
    with pytest.raises(LimitExceeded) as caught:
        evaluate(stream)
    assert caught.value.problem.startswith(problem)


def collisions(count: int) -> Iterator[bytes]:
    for factor in range(count):
        number = factor * (2**61 - 1)
        yield b"\x8a\x10" + number.to_bytes(16, "little")


@pytest.mark.parametrize("wrap", [b"", b"\x85"], ids=["integers", "tuples"])
def test_keys_that_collide(wrap: bytes) -> None:
    few = b"}(" + b"".join(key + wrap + b"N" for key in collisions(100)) + b"u."
    assert len(evaluate(few).root) == 100  # type: ignore[arg-type]
    many = b"}(" + b"".join(key + wrap + b"N" for key in collisions(1000)) + b"u."
    with pytest.raises(LimitExceeded, match="keys are made to collide"):
        evaluate(many)


def test_wide_integers_may_be_keys() -> None:
    wide = {random.Random(1).getrandbits(64): None for _ in range(10)} | {(i, -i): i for i in range(5000)}
    assert evaluate(pickle.dumps(wide, 4)).root == wide


BIG = b"}q\x00(" + b"".join(b"M" + U16(i) + b"N" for i in range(50_000)) + b"u0"
PAIRS = b"]q\x00(" + b"".join(b"M" + U16(i) + b"N\x86" for i in range(50_000)) + b"e0"


@pytest.mark.parametrize(
    "stream",
    [
        BIG + b"cm\nC\n)\x81" + b"h\x00b" * 100_000 + b".",
        BIG + b"ccollections\nOrderedDict\nq\x01" + b"h\x01h\x00\x85R" * 100_000 + b".",
        PAIRS + b"ccollections\nOrderedDict\nq\x01" + b"h\x01h\x00\x85R" * 100_000 + b".",
        PAIRS + b"cm\nf\nq\x01" + b"h\x01h\x00R" * 100_000 + b".",
    ],
    ids=["states", "dicts", "pairs", "arguments"],
)
def test_copies_are_bounded(stream: bytes) -> None:
    with pytest.raises(LimitExceeded, match="copies what it shares"):
        evaluate(stream)


def test_many_small_states_on_one_object() -> None:
    stream = b"cm\nC\n)\x81" + b"".join(b"}M" + U16(i) + b"Nsb" for i in range(60_000)) + b"."
    assert len(evaluate(stream).root.state) == 60_000  # type: ignore[attr-defined]


def test_garbage_collection_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(machine.gc, "isenabled", lambda: True)
    monkeypatch.setattr(machine.gc, "disable", lambda: calls.append("disable"))
    monkeypatch.setattr(machine.gc, "enable", lambda: calls.append("enable"))
    with pytest.raises(CorruptFile):
        evaluate(b"N")
    assert calls == ["disable", "enable"]


@pytest.mark.parametrize("make", [bytes, bytearray], ids=["bytes", "like a mapping"])
def test_reads_any_buffer(make: Callable[[bytes], Any]) -> None:
    assert evaluate(make(pickle.dumps(["a", 1.5, b"b"], 4))).root == ["a", 1.5, b"b"]
