"""The judgement of names, calls and whole pickles."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.audit import dangers
from ckpt_tools.audit.dangers import PickleVerdict, classify, judge
from ckpt_tools.audit.engine import judged
from ckpt_tools.audit.gadgets import (
    CLASS_MODULES,
    CODE_CARRIERS,
    HELD,
    INERT,
    INERT_LIBRARY,
    KNOWN_DANGERS,
    MAKERS,
    RESTORED,
    SAYS,
    STANDARD_LIBRARY,
    entry,
)
from ckpt_tools.audit.subject import Subject
from ckpt_tools.cli.output import expand
from ckpt_tools.errors import CkptError
from ckpt_tools.formats import open_checkpoint
from ckpt_tools.formats.unpickled import pickle_of
from ckpt_tools.pickles.machine import BLOB_BYTES, evaluate
from ckpt_tools.sources import MemorySource
from tests.hostile.assembler import Raw, call, name, new, push, stacked, stream, tensors

Judged = tuple[str, str | None]
FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"


def verdict(data: bytes) -> PickleVerdict:
    return judge(pickle_of(evaluate(data), "pickle", MemorySource(data, "model.pkl")))


@pytest.mark.parametrize(
    ("path", "called", "expected"),
    [
        ("torch._utils:_rebuild_tensor_v2", True, ("tensor", None)),
        ("collections:OrderedDict", True, ("tensor", None)),
        ("collections:deque", True, ("inert", None)),
        ("numpy:float64", True, ("inert", None)),
        ("numpy.core.multiarray:scalar", True, ("inert", None)),
        ("numpy._core.multiarray:_reconstruct", True, ("inert", None)),
        ("numpy.dtypes:Float32DType", True, ("inert", None)),
        ("datetime:datetime", True, ("inert", None)),
        ("zoneinfo:ZoneInfo._unpickle", True, ("inert", None)),
        ("operator:add", False, ("inert", None)),
        ("operator:add", True, ("dangerous", "reflection")),
        ("cloudpickle.cloudpickle:_make_function", True, ("code", None)),
        ("torch.nn.modules.linear:Linear", False, ("class", None)),
        ("torch.nn.modules.linear:Linear", True, ("dangerous", "library")),
        ("torch.fx.graph_module:PackageImporter", False, ("dangerous", "reflection")),
        ("torch.distributed.fsdp.api:ShardingStrategy", True, ("class", None)),
        ("torchvision.models.resnet:ResNet18_Weights", True, ("class", None)),
        ("torch.nn.functional:relu", False, ("class", None)),
        ("torch.nn.functional:relu", True, ("dangerous", "library")),
        ("torch.distributed.checkpoint.metadata:_MEM_FORMAT_ENCODING", True, ("class", None)),
        ("torch.distributed.checkpoint:Loader", True, ("dangerous", "loader")),
        ("torch.distributed.checkpoint:Loader", False, ("class", None)),
        ("torch.distributed.checkpoint:load", False, ("dangerous", "loader")),
        ("torchvision.models.resnet:ResNet", False, ("class", None)),
        ("torchvision.datasets.cifar:CIFAR10", False, ("class", None)),
        ("torchvision.datasets.cifar:CIFAR10", True, ("dangerous", "files")),
        ("sklearn.tree._tree:Tree", True, ("class", None)),
        ("sklearn.x:__pyx_unpickle_Thing", True, ("class", None)),
        ("__torch__.net:Net", True, ("class", None)),
        ("__main__:Net", False, ("unknown class", None)),
        ("mypackage:Net", True, ("unknown class", None)),
        ("mypackage:Net.Block", False, ("unknown class", None)),
        ("mypackage:Net._Block", False, ("unknown class", None)),
        ("mypackage:Net._build", False, ("unknown class", None)),
        ("mypackage:Net._build", True, ("dangerous", "reflection")),
        ("mypackage:Net.os", False, ("dangerous", "reflection")),
        ("mypackage:net.Net", False, ("dangerous", "reflection")),
        ("torch.optim.swa_utils:SWALR._cosine_anneal", False, ("class", None)),
        ("torch.optim.swa_utils:SWALR._cosine_anneal", True, ("dangerous", "reflection")),
        ("torch.optim.swa_utils:SWALR.torch", False, ("dangerous", "reflection")),
        ("torch.nothing.known:Thing.run", False, ("dangerous", "reflection")),
        ("torch.nn.modules.linear:Linear.Inner", True, ("dangerous", "library")),
        ("mypackage:Net.Popen", False, ("dangerous", "reflection")),
        ("mypackage:helper", False, ("unknown class", None)),
        ("mypackage:helper", True, ("unknown function", None)),
        ("lightning.pytorch:helper", True, ("unknown function", None)),
        ("mypackage:Net.build", False, ("unknown class", None)),
        ("mypackage:__dict__", False, ("dangerous", "reflection")),
        ("mypackage.__main__:Net", False, ("dangerous", "reflection")),
        ("mypackage:os", False, ("dangerous", "reflection")),
        ("mypackage:_os", False, ("dangerous", "reflection")),
        ("mypackage:check_output", False, ("dangerous", "reflection")),
        ("dask.array:Array", False, ("unknown class", None)),
        ("dask.array:Array", True, ("dangerous", "code")),
        ("copyreg:extension 7", False, ("dangerous", "extension")),
        ("os.path:join", False, ("dangerous", "code")),
        ("struct:Struct", False, ("dangerous", "library")),
        ("datetime:sys", False, ("dangerous", "reflection")),
        ("fractions:operator", False, ("dangerous", "reflection")),
    ],
)
def test_names(path: str, called: bool, expected: Judged) -> None:
    module, _, attribute = path.partition(":")
    assert classify(module, attribute, called)[:2] == expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("torch.nn.modules.linear:Linear", ("class", None)),
        ("torch.distributed.checkpoint.metadata:Metadata", ("class", None)),
        ("torch.distributed.checkpoint:Loader", ("dangerous", "loader")),
        ("torch.nothing.known:Thing", ("dangerous", "library")),
        ("torchvision.datasets.cifar:CIFAR10", ("class", None)),
        ("torchvision.datasets.utils:Thing", ("dangerous", "files")),
        ("numpy.lib._datasource:DataSource", ("dangerous", "files")),
        ("numpy.polynomial.polynomial:Polynomial", ("class", None)),
        ("jinja2.environment:Template", ("dangerous", "code")),
        ("filelock._soft:SoftFileLock", ("dangerous", "files")),
        ("xgboost.core:Booster", ("unknown class", None)),
        ("wandb.sdk.wandb_config:Config", ("unknown class", None)),
        ("mypackage:Net", ("unknown class", None)),
    ],
)
def test_classes_that_are_restored_without_a_call(path: str, expected: Judged) -> None:
    module, _, attribute = path.partition(":")
    assert classify(module, attribute, False, made=True)[:2] == expected


def test_the_tables_do_not_contradict_each_other() -> None:
    harmless = INERT | INERT_LIBRARY | CODE_CARRIERS | HELD | MAKERS
    assert harmless & set(KNOWN_DANGERS) == set()
    assert set(CLASS_MODULES) & set(KNOWN_DANGERS) == set()
    assert {path for path in RESTORED if not entry(path, KNOWN_DANGERS)} == set()
    assert set(KNOWN_DANGERS.values()) <= set(SAYS)
    for path in INERT:
        assert path.partition(".")[0] in STANDARD_LIBRARY


def test_no_module_is_inert_as_a_whole() -> None:
    """Else everything that the module imports would be: ``statistics.sys``."""
    assert all("." in path for path in INERT | INERT_LIBRARY)
    assert all(path.rpartition(".")[0] not in INERT for path in INERT if path != "zoneinfo.ZoneInfo._unpickle")


def test_entries_hold_for_what_lies_below() -> None:
    table = {"a": 1, "a.b": 2}
    assert [entry(path, table) for path in ("a", "a.b", "a.b.c", "a.x.y", "ab", "b.a", "")] == [
        *("a", "a.b", "a.b", "a", "", "", "")
    ]


def test_tensors_only() -> None:
    found = verdict(tensors())
    assert (found.answer, found.reasons, found.dangers, found.refusals, found.complete) == (
        "tensors only", (), (), (), True,
    )  # fmt: skip
    assert {(n.allowed, n.kind, n.purpose) for n in found.names} == {(True, "tensor", "a tensor")}
    assert [n.name for n in found.names] == [
        "torch._utils._rebuild_tensor_v2", "torch.FloatStorage", "collections.OrderedDict",
    ]  # fmt: skip


def test_needs_classes() -> None:
    found = verdict(pickle.dumps({"x": 1}, 4))
    assert found.answer == "needs classes"
    assert found.refusals == (
        "SHORT_BINUNICODE: the weights_only unpickler does not know this opcode",
        "MEMOIZE: the weights_only unpickler does not know this opcode",
        "FRAME: the weights_only unpickler does not know this opcode",
    )


def test_unknown() -> None:
    data = b"\x80\x02}(" + push("x") + b"K\x01"
    try:
        evaluate(data)
    except Exception as error:
        partial = error.partial  # type: ignore[attr-defined]
    found = judge(pickle_of(partial, "pickle"))
    assert (found.answer, found.complete) == ("unknown", False)
    assert found.reasons == ("a pickle in it cannot be evaluated to its end",)


def test_dangerous_wins_over_unknown() -> None:
    data = b"\x80\x02" + name("os:system").code
    try:
        evaluate(data)
    except Exception as error:
        partial = error.partial  # type: ignore[attr-defined]
    assert judge(pickle_of(partial, "pickle")).answer == "dangerous"


@pytest.mark.parametrize(
    ("value", "purpose"),
    [
        (new("mypackage:Net", state={"_modules": {}, "_parameters": {}}), "a nn.Module class"),
        (new("mypackage:Opt", state={"param_groups": [], "defaults": {}}), "an optimizer"),
        (call("numpy.core.multiarray:scalar", 1), "a numpy scalar"),
        (call("logging:getLogger", "x"), "a logger"),
        (stacked("torch.optim.sgd:SGD"), "an optimizer or a scheduler of torch"),
        (stacked("omegaconf.dictconfig:DictConfig"), "a configuration"),
        (stacked("nowhere:Thing"), ""),
        (call("builtins:getattr", stacked("nowhere:Thing"), "RED"), "a member of an enumeration, or a method"),
    ],
)
def test_purposes(value: Raw, purpose: str) -> None:
    assert verdict(stream(value)).names[-1 if "getattr" not in str(value) else 0].purpose == purpose


def test_a_class_wrapped_in_a_legacy_file_is_judged() -> None:
    """``('module', class, file, source)`` stands for the class in the persistent id of old files."""
    reference = Raw(push(("module", name("nowhere:Net"), "net.py", "class Net: pass")) + b"Q")
    found = verdict(
        stream(Raw(reference.code + b")\x81" + push({"_modules": {}, "_parameters": {}}) + b"b"), protocol=2)
    )
    assert [(n.name, n.kind, n.purpose) for n in found.names] == [("nowhere.Net", "unknown class", "a nn.Module class")]
    assert found.answer == "needs classes"


def test_pythons_2_names_are_translated() -> None:
    found = verdict(
        stream(call(name("copy_reg:_reconstructor"), name("nowhere:Net"), name("__builtin__:object"), None), protocol=2)
    )
    assert [(n.name, n.kind) for n in found.names] == [
        ("copyreg._reconstructor", "inert"), ("nowhere.Net", "unknown class"), ("builtins.object", "inert"),
    ]  # fmt: skip


def test_a_tensor_pickled_as_bytes_is_judged_by_its_bytes() -> None:
    torch = pytest.importorskip("torch")
    from ckpt_tools.formats import open_checkpoint

    for protocol in range(2, 6):
        for size in (4, 10_000):
            checkpoint = open_checkpoint(pickle.dumps({"x": torch.ones(size)}, protocol))
            answers = {judge(found).answer for found in checkpoint.pickles}
            assert answers <= {"needs classes", "tensors only"}


def test_pickles_in_bytes_have_verdicts_of_their_own() -> None:
    inner = stream(call("collections:deque", []))
    found = verdict(stream({"x": inner}))
    assert [(one.member, one.answer) for one in found.nested] == [("pickle: a byte string", "needs classes")]
    assert found.answer == "needs classes"


def test_a_pickle_in_long_bytes_of_a_second_pickle_is_judged(tmp_path: Path) -> None:
    """Byte strings from 4 kB on stay in the file, so that a pickle has to know where it was read from."""
    inner = stream(call("os:system", "echo " + "x" * BLOB_BYTES))
    (tmp_path / "two.pkl").write_bytes(pickle.dumps({"a": 1}) + pickle.dumps({"a": inner}))
    first, second = map(judge, open_checkpoint(tmp_path / "two.pkl").pickles)
    assert first.nested == ()
    assert [nested.answer for nested in second.nested] == [second.answer] == ["dangerous"]


def test_every_pickle_can_be_read_again_where_it_says_that_it_stands() -> None:
    found: set[str] = set()
    for path in expand(str(FIXTURES)):
        try:
            checkpoint = open_checkpoint(path)
        except CkptError:
            continue
        for one in checkpoint.pickles:
            if checkpoint.format == "torch_tar" and one.member in ("storages", "tensors"):
                continue  # many short ones with numbers between them, told as one
            assert one.stream is not None, (path, one.member)
            again = evaluate(one.stream.read(0, one.stream.size), one.evaluation.start)
            assert [call.offset for call in again.calls] == [call.offset for call in one.evaluation.calls]
            found.add(checkpoint.format)
    assert found >= {"pickle", "distributed", "exported_program", "torchscript", "torch_tar", "archive", "deepspeed"}


def test_bytes_that_are_no_pickle_are_left_alone() -> None:
    for data in (b"\x80\x04rubbish", b"(((((((", b"abc", b"c", b"PK\x03\x04" + bytes(30), b"", b"]", b"\x80\x02N."):
        assert verdict(stream({"x": data})).nested == ()


def test_a_bomb_of_pickles_in_pickles_ends() -> None:
    data = stream(call("os:system", "true"))
    for _ in range(50):
        data = stream({"x": data})
    found = verdict(data)
    answers = [found.answer]
    while found.nested:
        found = found.nested[0]
        answers.append(found.answer)
    # what lies deeper is not looked at, and so is not said to be harmless
    assert answers == ["unknown"] * 5


def typed(*arguments: Any, fields: Any = None, base: Any = None, size: Any = 8) -> bytes:
    """A type of numpy's with one field, ``numpy.dtype(*arguments)`` at byte 0, or with a *base*."""
    inner = call("numpy:dtype", *arguments)
    state = (3, "|", base, ("f",), {"f": (inner, 0)} if fields is None else fields, size, 1, 16)
    return stream({"x": Raw(call("numpy:dtype", "V8", False, True).code + push(state) + b"b")})


HUGE = Raw(b"\x8b" + (5001).to_bytes(4, "little") + bytes(5000) + b"\1")
ODD_TYPES = {
    "named by a deep list": lambda: typed(Raw(b"]" * 20_000 + b"a" * 19_999)),
    "named by what doubles": lambda: typed(Raw(b"]" + b"2\x86" * 40)),
    "named by a number without end": lambda: typed(HUGE),
    "at a place without end": lambda: typed("f4", fields={"f": (call("numpy:dtype", "f4"), HUGE)}),
    "of a size without end": lambda: typed("f4", size=HUGE),
    "of a shape without end": lambda: typed("f4", base=(call("numpy:dtype", "f4"), (HUGE,) * 100)),
}


@pytest.mark.parametrize("make", ODD_TYPES.values(), ids=ODD_TYPES)
def test_types_of_numpys_that_are_none_cost_nothing(make: Callable[[], bytes]) -> None:
    (result,) = [judged(Subject.of(MemorySource(make(), "x.pkl"), "x.pkl"))]
    assert not result.failure


def test_a_text_that_is_encoded_often_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[object] = []
    kept = dangers._kept
    monkeypatch.setattr(dangers, "_kept", lambda *given: looked.append(given) or kept(*given))
    text = "(" + "N0" * 1000
    data = (
        b"\x80\x02c_codecs\nencode\nq\0X" + len(text).to_bytes(4, "little") + text.encode() + b"q\1X\x06\0\0\0latin1q\2"
        b"]q\3(" + b"h\0h\1h\2\x86R" * 50 + b"e."
    )
    Subject.of(MemorySource(data, "x.pkl"), "x.pkl").verdicts  # noqa: B018
    assert len(looked) <= 1
