"""Would ``torch.load(weights_only=True)`` take this pickle, and if not, all the reasons at once.

torch stops at the first thing it refuses; here every opcode, name and call is judged. The rules are those of
torch/_weights_only_unpickler.py in torch 2.14.
"""

from __future__ import annotations

from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterable

from ckpt_tools.checkpoint import KeyPath, Refusal
from ckpt_tools.dtypes import BY_NAME, BY_STORAGE
from ckpt_tools.pickles.machine import Evaluation
from ckpt_tools.pickles.values import Call, Global, OrderedDict, PersistentId, as_global

MAX_PATH = 64
"""The most keys of a path that `locate` keeps track of."""
_LEAVES = (str, int, float, bytes)
_REGISTRIES = ("_modules", "_parameters", "_buffers")

BLOCKED_MODULES = frozenset({"sys", "os", "posix", "nt"})
"""Modules from which torch takes nothing, even where the user allows it."""

# PROTO STOP MARK GLOBAL REDUCE NEWOBJ BUILD, APPEND(S) SETITEM(S), TUPLE and its short forms, NONE, booleans,
# empty containers, BININT* BINFLOAT LONG1 BINUNICODE SHORT_BINSTRING, BINPERSID, BINGET BINPUT and long forms
_OPCODES = frozenset(b"\x80.(cR\x81baesut\x85\x86\x87N\x88\x89)]}\x8fJKMG\x8aXUQhjqr")

_CPU_AND_CUDA = ("torch.", "torch.cuda.")
_ELEMENTS = ("Double", "Float", "Half", "Long", "Int", "Short", "Char", "Byte", "Bool", "BFloat16")

ALLOWED_GLOBALS = frozenset(
    [
        "_codecs.encode",
        *(f"builtins.{name}" for name in ("bytearray", "complex", "set")),
        *(f"collections.{name}" for name in ("Counter", "OrderedDict")),
        *(f"torch.{name}" for name in ("Size", "Tensor", "device")),
        "torch.nn.parameter.Parameter",
        "torch.serialization._get_layout",
        "torch.storage.TypedStorage",
        "torch.storage.UntypedStorage",
        "torch._tensor._rebuild_from_type_v2",
        *(
            f"torch._utils._rebuild_{name}"
            for name in (
                "device_tensor_from_cpu_tensor",
                "device_tensor_from_numpy",
                "meta_tensor_no_storage",
                "nested_tensor",
                "parameter",
                "parameter_with_state",
                "qtensor",
                "sparse_tensor",
                "tensor",
                "tensor_v2",
                "tensor_v3",
                "wrapper_subclass",
            )
        ),
        *(f"{where}{name}Tensor" for where in _CPU_AND_CUDA for name in _ELEMENTS),
        *(f"{where}sparse.{name}Tensor" for where in _CPU_AND_CUDA for name in _ELEMENTS if name != "Bool"),
        *(f"torch.{storage}" for storage in BY_STORAGE),
        *(f"torch.cuda.{storage}" for storage in BY_STORAGE if not storage.startswith("Q")),
        *(f"torch.{dtype.name}" for dtype in BY_NAME.values() if dtype.name != "bit"),
        *(
            f"torch.{scheme}"
            for scheme in (
                "per_channel_affine",
                "per_channel_affine_float_qparams",
                "per_channel_symmetric",
                "per_tensor_affine",
                "per_tensor_symmetric",
            )
        ),
    ]
)
"""What torch 2.14 takes without being told to."""

SINCE: dict[str, str] = {
    **dict.fromkeys(("_codecs.encode", "builtins.bytearray", "torch._utils._rebuild_device_tensor_from_numpy"), "2.5"),
    **dict.fromkeys(
        ("builtins.set", "builtins.complex", "torch._utils._rebuild_device_tensor_from_cpu_tensor"),
        "2.6",
    ),
    **dict.fromkeys(
        (
            *("collections.Counter", "torch.device", "torch._utils._rebuild_parameter_with_state"),
            *("torch._utils._rebuild_qtensor", "torch._utils._rebuild_wrapper_subclass"),
        ),
        "2.4",
    ),
}
"""The torch from which on weights_only takes a name for sure, where not all that have weights_only (1.13) do.

From the lists in torch/_weights_only_unpickler.py: 2.0 has none of these, 2.4 the last five, 2.5 also the first
three (pytorch issue 133163).
"""


def refusals(evaluation: Evaluation) -> tuple[Refusal, ...]:
    """Every reason why torch would refuse the pickle, opcodes first, then names in the order of the file."""
    if evaluation.refusals is None:
        evaluation.refusals = _refusals(evaluation)
    return evaluation.refusals


def _refusals(evaluation: Evaluation) -> tuple[Refusal, ...]:
    found = [
        Refusal(name, "the weights_only unpickler does not know this opcode", is_global=False)
        for name in _opcode_names(evaluation.opcodes - _OPCODES)
    ]
    refused = [g for g in evaluation.globals.values() if _full_path(g) not in ALLOWED_GLOBALS]
    where = locate(evaluation.root, refused)
    for name in refused:
        path = _full_path(name)
        blocked = path.rpartition(".")[0] in BLOCKED_MODULES
        reason = "torch takes nothing from this module" if blocked else "not among the allowed globals"
        found.append(Refusal(path, reason, where.get(name, ())))
    ids = (reference.pid for reference in evaluation.persistent)
    if any(_refused_id(pid) for pid in ids if type(pid) is not tuple or pid[:1] != ("storage",)):
        reason = "only storages may be loaded by persistent id"
        found.append(Refusal("persistent id", reason, is_global=False))
    if not found:
        found += _refused_calls(evaluation.calls)
        for what, code in evaluation.misuses.items():
            found.append(Refusal(_opcode_names([code])[0], what, is_global=False))
    return tuple(found)


def _refused_id(pid: object) -> bool:
    if type(pid) is tuple:
        return pid[:1] not in ((), ("storage",), (b"storage",))
    return type(pid) is not int


def _full_path(name: Global) -> str:
    # torch translates Python 2's names whatever the protocol
    mapped = NAME_MAPPING.get((name.module, name.name))
    if mapped is not None:
        return ".".join(mapped)
    return f"{IMPORT_MAPPING.get(name.module, name.module)}.{name.name}"


def _opcode_names(codes: Iterable[int]) -> list[str]:
    codes = frozenset(codes)
    if not codes:
        return []
    from pickletools import opcodes  # slow to import, and rarely needed

    return [opcode.name for opcode in opcodes if ord(opcode.code) in codes]


def _refused_calls(calls: list[Call]) -> list[Refusal]:
    """What torch refuses although every name in the file is allowed."""
    found: dict[str, Refusal] = {}
    for call in calls:
        if type(call.func) is Global and call.items is call.entries is call.state is None:
            continue  # as nearly all are
        if as_global(call.func) is None:
            subject = "NEWOBJ" if call.new else "REDUCE"
            reason = f"the result of a call is {'taken for a class' if call.new else 'called'}"
        elif call.items is not None:
            subject, reason = "APPENDS", f"a {call.target} is appended to, which is no list"
        elif call.entries is not None and call.target != "collections.Counter":
            subject, reason = "SETITEMS", f"items are set on a {call.target}, which is no dict"
        elif call.state is not None and call.target in ("_codecs.encode", "torch.serialization._get_layout"):
            subject, reason = "BUILD", f"attributes are set on what {call.target} returns"
        else:
            continue
        found.setdefault(reason, Refusal(subject, reason, is_global=False))
    return list(found.values())


def locate(root: object, wanted: Iterable[Global | Call]) -> dict[Global | Call, KeyPath]:
    """The first key path at which each of *wanted* stands, by a breadth-first walk of the values.

    Of paths with more than 64 keys, the first 64.
    """
    missing = set(wanted)
    found: dict[Global | Call, KeyPath] = {}
    seen: set[int] = set()
    level: list[tuple[object, KeyPath]] = [(root, ())]
    while level and missing:
        below: list[tuple[object, KeyPath]] = []
        for value, path in level:
            if id(value) in seen or value is None or isinstance(value, _LEAVES):
                continue
            seen.add(id(value))
            if isinstance(value, Global | Call) and value in missing:
                missing.discard(value)
                found[value] = path
            for key, child in _children(value):
                below.append((child, path if key is None or len(path) >= MAX_PATH else (*path, key)))
        level = below
    return found


def _children(value: object) -> list[tuple[object, object]]:
    """The values directly inside *value*, each with the key to add to the path; None adds nothing."""
    if isinstance(value, dict):
        # modules, parameters and buffers go by their own names
        hidden = _REGISTRIES if "_modules" in value and "_parameters" in value else ()
        children: list[tuple[object, object]] = [
            (key if isinstance(key, str | int) and key not in hidden else None, child) for key, child in value.items()
        ]
        children += [(None, key) for key in value if not isinstance(key, str | int)]
        if isinstance(value, OrderedDict):
            children.append((None, value.state))
        return children
    if isinstance(value, list):
        return list(enumerate(value))
    if isinstance(value, tuple | set | frozenset):
        return [(None, child) for child in value]
    if type(value) is PersistentId:
        return [(None, value.pid)]
    if type(value) is Call:
        # the state as a whole, since many objects may share one
        children = [(None, value.func), (None, value.args), (None, value.kwargs), (None, value.state)]
        children += [(None, item) for item in value.items or ()]
        for key, child in value.entries or ():
            children += [(None, key), (key if isinstance(key, str | int) else None, child)]
        return children
    return []
