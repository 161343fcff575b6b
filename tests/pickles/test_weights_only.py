"""The weights_only verdict, against torch's own unpickler."""

from __future__ import annotations

import io
import json
import pickle
import random
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_tools import open_checkpoint
from ckpt_tools.errors import CorruptFile
from ckpt_tools.pickles import weights_only
from ckpt_tools.pickles.machine import evaluate
from ckpt_tools.pickles.weights_only import ALLOWED_GLOBALS, refusals

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of protocols and of features in beta
FIXTURES = Path(__file__).resolve().parent.parent.parent / "fixtures"
ENTRIES = [e for e in json.loads((FIXTURES / "MANIFEST.json").read_text("utf-8"))["fixtures"] if "weights_only" in e]


NO_VERDICT = ("safetensors", "npz")
"""Formats that hold no pickle for torch.load to judge."""


@pytest.fixture(scope="module")
def unpickler() -> ModuleType:
    """torch's own."""
    import torch._weights_only_unpickler as module

    return module


def saved(value: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def takes(data: bytes | Path) -> bool:
    """Whether torch loads it with weights_only."""
    try:
        torch.load(io.BytesIO(data) if isinstance(data, bytes) else data, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError):
        return False
    return True


def test_allowed_globals(unpickler: ModuleType) -> None:
    assert set(unpickler._get_allowed_globals()) == ALLOWED_GLOBALS


def test_blocked_modules(unpickler: ModuleType) -> None:
    assert set(unpickler._blocklisted_modules) == weights_only.BLOCKED_MODULES


def test_opcodes(unpickler: ModuleType) -> None:
    def known(code: int) -> bool:
        try:
            unpickler.load(io.BytesIO(bytes([code])))
        except pickle.UnpicklingError as error:
            return not str(error).startswith("Unsupported operand")
        except (AttributeError, EOFError, IndexError, LookupError, ValueError):
            return True
        except Exception as error:
            return "unpack" in str(error)
        return True

    assert {code for code in range(256) if known(code)} == weights_only._OPCODES


def test_python_2_names_are_translated_as_torch_does(unpickler: ModuleType) -> None:
    """torch has mappings of its own."""
    modules = [*unpickler.IMPORT_MAPPING, "torch", "collections"]
    names = [*unpickler.NAME_MAPPING, *((module, "x") for module in modules)]
    for module, name in names:
        for header in (b"", b"\x80\x04"):  # whatever the protocol
            line = f"c{module}\n{name}\n".encode()
            expected = ".".join(unpickler._read_global_instruction(io.BytesIO(line[1:]).readline))
            (found,) = evaluate(header + line + b".").globals.values()
            assert weights_only._full_path(found) == expected


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: str(entry["file"]))
def test_fixture(entry: dict[str, Any]) -> None:
    path = FIXTURES / entry["file"]
    checkpoint = open_checkpoint(path)
    assert takes(path) == entry["weights_only"]
    if entry["format"] in NO_VERDICT:
        assert checkpoint.refusals is None
        return
    assert checkpoint.refusals is not None
    assert (not checkpoint.refusals) == entry["weights_only"]
    if entry.get("unsafe_globals") is not None:
        found = [refusal.subject for refusal in checkpoint.refusals if refusal.is_global]
        assert sorted(found) == sorted(entry["unsafe_globals"])


class Custom:
    """A class of a training script."""

    def __init__(self, value: object = None) -> None:
        self.value = value


class Slotted:
    """One without a __dict__."""

    __slots__ = ("value",)

    def __init__(self, value: object = None) -> None:
        self.value = value


def tensors() -> list[Any]:
    base = torch.arange(12.0)
    return [
        base,
        base.reshape(3, 4).t(),
        torch.nn.Parameter(base.clone()),
        torch.zeros(2, dtype=torch.bfloat16),
        torch.zeros(2, dtype=torch.float8_e4m3fn),
        torch.zeros(2, dtype=torch.uint16),
        torch.eye(2).to_sparse(),
        torch.zeros(2, device="meta"),
        torch.zeros(2, dtype=torch.complex64).conj(),
        torch.UntypedStorage(4),
    ]


plain = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.complex_numbers()
    | st.text(max_size=4)
    | st.binary(max_size=4)
    | st.binary(max_size=4).map(bytearray)
    | st.sampled_from([torch.Size([1, 2]), torch.device("cpu"), torch.float16, torch.per_tensor_affine, torch.strided])
    | st.sampled_from(tensors())
)
odd = st.sampled_from(
    [
        *(Custom, Custom(1), Slotted(2), frozenset({1}), range(3), slice(1, 2), PurePosixPath("a/b"), len, print),
        *(defaultdict(list, a=[1]), Exception("x"), OrderedDict, dict, int, torch.nn.ReLU(), torch.Generator),
    ]
)


def nested(values: st.SearchStrategy[object]) -> st.SearchStrategy[object]:
    names = st.text("abc", min_size=1, max_size=2)
    return (
        st.lists(values, max_size=3)
        | st.lists(values, max_size=3).map(tuple)
        | st.dictionaries(names, values, max_size=3)
        | st.dictionaries(names, values, max_size=3).map(OrderedDict)
        | st.dictionaries(names, st.integers(0, 9), max_size=3).map(Counter)
        | st.sets(st.integers() | names, max_size=3)
    )


harmless = st.recursive(plain, nested, max_leaves=6)
anything = st.recursive(plain | odd, nested, max_leaves=6)


@settings(max_examples=150)
@given(value=harmless | anything, protocol=st.sampled_from([2, 2, 2, 3, 4, 5]))
def test_generated_objects(value: object, protocol: int) -> None:
    data = saved(value, pickle_protocol=protocol)
    refused = open_checkpoint(data).refusals
    assert refused is not None
    assert (not refused) == takes(data)
    if protocol == 2:
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(data))
        assert sorted(r.subject for r in refused if r.is_global) == sorted(unsafe)


def test_all_reasons_are_given_at_once() -> None:
    value = {"a": {"b": [Custom({"c": PurePosixPath("x")})]}, "d": Custom(print)}
    data = saved(value)
    refused = open_checkpoint(data).refusals
    assert refused is not None
    assert [(r.subject, r.reason, r.path, r.is_global) for r in refused] == [
        (f"{__name__}.Custom", "not among the allowed globals", ("d",), True),
        ("pathlib.PurePosixPath", "not among the allowed globals", ("a", "b", 0, "value", "c"), True),
        ("builtins.print", "not among the allowed globals", ("d", "value"), True),
    ]


def test_key_paths_of_modules_are_their_names() -> None:
    model = torch.nn.Sequential(OrderedDict(body=torch.nn.Sequential(torch.nn.Linear(1, 1)), act=torch.nn.ReLU()))
    refused = open_checkpoint(saved({"net": model})).refusals
    assert refused is not None
    assert [(r.subject, r.path) for r in refused] == [
        ("torch.nn.modules.container.Sequential", ("net",)),
        ("torch.nn.modules.linear.Linear", ("net", "body", "0")),
        ("torch.nn.modules.activation.ReLU", ("net", "act")),
    ]


def test_what_is_refused_can_be_allowed() -> None:
    """The names given are just those that add_safe_globals wants."""
    model = torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.ReLU())
    data = saved({"model": model, "custom": Custom(3), "frozen": frozenset({1})})
    refused = open_checkpoint(data).refusals
    assert refused is not None
    allowed = [torch.nn.Sequential, torch.nn.Linear, torch.nn.ReLU, Custom, frozenset]
    assert {r.subject for r in refused} == {f"{c.__module__}.{c.__qualname__}" for c in allowed}
    assert not takes(data)
    with torch.serialization.safe_globals(allowed):
        assert takes(data)


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"cos\nsystem\n.", [("os.system", "torch takes nothing from this module", True)]),
        (b"csys\nexit\n.", [("sys.exit", "torch takes nothing from this module", True)]),
        (b"cos.path\njoin\n.", [("os.path.join", "not among the allowed globals", True)]),
        (b"c__builtin__\neval\n.", [("builtins.eval", "not among the allowed globals", True)]),
        (b"N0N.", [("POP", "the weights_only unpickler does not know this opcode", False)]),
        (
            b"\x80\x04\x8c\x05torch\x8c\x04Size\x93)R.",
            [
                ("SHORT_BINUNICODE", "the weights_only unpickler does not know this opcode", False),
                ("STACK_GLOBAL", "the weights_only unpickler does not know this opcode", False),
            ],
        ),
        (b"ctorch\nSize\n)R)R.", [("REDUCE", "the result of a call is called", False)]),
        (b"ctorch\nSize\n)R)\x81.", [("NEWOBJ", "the result of a call is taken for a class", False)]),
        (
            b"ctorch\nSize\n)RK\x01a.",
            [("APPENDS", "a torch.Size is appended to, which is no list", False)],
        ),
        (
            b"ctorch\nSize\n)RK\x01K\x02s.",
            [("SETITEMS", "items are set on a torch.Size, which is no dict", False)],
        ),
        (b"](NeK\x00Ns.", [("SETITEM", "SETITEM on a list", False)]),
        (b"}Nb.", [("BUILD", "BUILD on a dict", False)]),
        (
            b"ctorch\nSize\n}b.",
            [("BUILD", "attributes are set on what a name refers to, not on an instance of it", False)],
        ),
        (
            b"U\x01\xff.",
            [
                (
                    "SHORT_BINSTRING",
                    "a Python 2 string that is not UTF-8: torch.load takes it with encoding='latin1'",
                    False,
                )
            ],
        ),
        (b"X\x01\x00\x00\x00aQ.", [("persistent id", "only storages may be loaded by persistent id", False)]),
        (b"X\x01\x00\x00\x00a\x85Q.", [("persistent id", "only storages may be loaded by persistent id", False)]),
    ],
)
def test_reasons(stream: bytes, expected: list[tuple[str, str, bool]], unpickler: ModuleType) -> None:
    assert [(r.subject, r.reason, r.is_global) for r in refusals(evaluate(stream))] == expected
    with pytest.raises((pickle.UnpicklingError, UnicodeDecodeError)):
        unpickler.load(io.BytesIO(stream), encoding="utf-8")


FRAGMENTS = [
    *(b"N", b"\x88", b"\x89", b"K\x00", b"K\x01", b"J\xff\xff\xff\xff", b"\x8a\x01\x03", b"M\x01\x02"),
    *(b"X\x01\x00\x00\x00a", b"X\x01\x00\x00\x00b", b"U\x01d", b"U\x01\xff", b"G" + bytes(8)),
    *(b"]", b"}", b")", b"\x8f", b"(", b"(", b"(", b"t", b"\x85", b"\x86", b"\x87"),
    *(b"a", b"a", b"e", b"s", b"s", b"u", b"b", b"\x81", b"R", b"R", b"\x80\x02", b"\x80\x09"),
    *(b"q\x00", b"q\x01", b"h\x00", b"h\x01", b"r\x02\x00\x00\x00", b"j\x02\x00\x00\x00"),
    *(b"ccollections\nOrderedDict\n", b"ccollections\nCounter\n", b"c__builtin__\nset\n", b"ctorch\nSize\n"),
    *(b"ccollections\nOrderedDict\n)R", b"ccollections\nCounter\n)R", b"ctorch\nfloat32\n", b"cos\nsystem\n"),
    *(b"ctorch.nn.parameter\nParameter\n)\x81", b"ctorch\nTensor\n)\x81", b"0", b"2", b"I1\n", b"\x8c\x01a"),
]


def outcome(load: Callable[[], object]) -> str:
    try:
        load()
    except pickle.UnpicklingError:
        return "refused"
    except Exception:
        return "failed"
    return "taken"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_random_streams(unpickler: ModuleType) -> None:
    """What torch takes has no refusals, and what it refuses has some, or cannot be evaluated at all."""
    chance = random.Random(11)
    counts: Counter[str] = Counter()
    for _ in range(20_000):
        stream = b"".join(chance.choices(FRAGMENTS, k=chance.randrange(1, 12))) + b"."
        truth = outcome(lambda stream=stream: unpickler.load(io.BytesIO(stream), encoding="utf-8"))  # type: ignore[misc]
        try:
            refused: object = refusals(evaluate(stream))
        except CorruptFile as error:
            refused = error
        if truth == "taken":
            assert refused == (), stream
        elif truth == "refused":
            assert refused, stream
        counts[truth] += 1
    assert counts["taken"] > 1000
    assert counts["refused"] > 1000


def test_a_name_many_levels_down_is_found() -> None:
    """Deep nesting costs no time in proportion to its square."""
    deep = 200_000
    stream = b"]" * deep + b"cm\nf\n" + b"a" * deep + b"."
    (refusal,) = refusals(evaluate(stream))
    assert refusal.subject == "m.f"


def test_a_large_value_met_often_is_walked_once() -> None:
    stream = b"](}q\x00(" + b"".join(b"J" + i.to_bytes(4, "little") + b"N" for i in range(20_000)) + b"u"
    stream += b"h\x00" * 49_999 + b"cm\nf\ne."
    (refusal,) = refusals(evaluate(stream))
    assert refusal.path == (50_000,)
