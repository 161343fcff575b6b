"""The security rules beyond their first cases: what they say, where, and in which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt_tools.audit.rules import BY_CODE
from ckpt_tools.audit.subject import Subject
from ckpt_tools.sources import MemorySource
from tests.audit.cases import FIXTURES, Case
from tests.audit.cases_security import ATTACKS, MORE
from tests.hostile.assembler import SYSTEM, ZEROS, call, checkpoint, name, new, stacked, stream, tensors
from tests.hostile.second_search import field, node

FURTHER = [pytest.param(code, case, id=f"{code}-{i}") for code, cases in MORE.items() for i, case in enumerate(cases)]


@pytest.mark.parametrize(("code", "case"), FURTHER)
def test_further_cases(code: str, case: Case, tmp_path: Path) -> None:
    found = list(BY_CODE[code].findings(case.firing(tmp_path)))
    assert any(case.says in finding.message and case.member == finding.location.member for finding in found)
    assert [finding.message for finding in BY_CODE[code].findings(case.clean(tmp_path))] == []


def subject(data: bytes, path: str = "model.pkl") -> Subject:
    return Subject.of(MemorySource(data, path), path)


def test_a_finding_names_the_opcode_and_its_place() -> None:
    data = b"\x80\x04N0" + SYSTEM.code + b"."
    (found,) = BY_CODE["S101"].findings(subject(data))
    assert (found.location.member, found.location.offset) == ("pickle", data.index(b"\x93"))
    expected = {"global": "os.system", "opcode": "STACK_GLOBAL", "called": True, "payload": found.payload}
    assert dict(found.evidence) == expected


def test_what_is_only_held_is_said_to_be() -> None:
    (found,) = BY_CODE["S101"].findings(subject(stream([name("os:system")], protocol=2)))
    expected = {"global": "os.system", "opcode": "GLOBAL", "called": False, "payload": found.payload}
    assert dict(found.evidence) == expected


def test_the_names_of_a_pickle_that_breaks_off_are_in_the_evidence() -> None:
    (found,) = BY_CODE["S115"].findings(subject(ATTACKS["broken by no STOP"].data))
    assert dict(found.evidence) == {"names": ["os.system"], "payload": found.payload}


def test_classes_are_listed_with_what_they_are_for() -> None:
    state = {"_modules": {}, "_parameters": {}}
    data = stream([new("torch.nn.modules.linear:Identity", state=state), call("collections:deque", [])])
    (found,) = BY_CODE["S113"].findings(subject(data))
    assert found.message == "torch.nn.modules.linear.Identity (a nn.Module class), collections.deque (a plain value)"
    assert dict(found.evidence) == {"globals": ["torch.nn.modules.linear.Identity", "collections.deque"]}


def test_many_classes_are_cut_short() -> None:
    names = ["AdaptiveAvgPool2d", "Linear", "Conv2d", "ReLU", "Sequential", "Dropout"]
    data = stream([stacked(f"torch.nn.modules.x:{one}") for one in names])
    (found,) = BY_CODE["S113"].findings(subject(data))
    assert found.message.endswith("torch.nn.modules.x.ReLU (a layer of torch) and 2 more")


def test_dangers_in_bytes_say_in_which_bytes() -> None:
    inner = stream(SYSTEM)
    (found,) = BY_CODE["S101"].findings(subject(stream({"x": inner})))
    assert found.location.member == "pickle: a byte string"
    long = stream({"x": b"x" * 10, "y": stream("pad" * 2000, SYSTEM)})
    (found,) = BY_CODE["S101"].findings(subject(long))
    assert found.location.member == f"pickle: a byte string at byte {long.index(b'pad') - 7}"


def test_storages_are_no_programs() -> None:
    data = checkpoint(tensors(numel=32), ("archive/data/0", b"\x7fELF" + bytes(124)))
    assert list(BY_CODE["S124"].findings(subject(data, "model.pt"))) == []


def test_odd_integers_and_strings_of_python_2_are_usual() -> None:
    assert list(BY_CODE["S116"].findings(subject(b"(dp0\nS'a'\nI01\nsS'\\xff'\nI007\ns."))) == []
    assert list(BY_CODE["S116"].findings(subject(b"\x80\x04NN."))) != []


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ("Symbol('s0', positive=True, integer=True)", False),
        ("Add(Mul(Integer(2), Symbol('s0')), Integer(-1))", False),
        ("FloorDiv(s0 + 1, 2)", False),
        ("Max(1, s0)", False),
        ("Float('1.5')", True),
        ("__import__('os')", True),
        ("s0.__class__", True),
        ("().mro", True),
        ("[x for x in s0]", True),
        ("lambda: 0", True),
        ("eval(s0)", True),
        ("Symbol('x', cls=open('y'))", True),
    ],
)
def test_expressions(expression: str, found: bool) -> None:
    from tests.hostile.assembler import exported

    data = exported({"sizes": [{"as_expr": {"expr_str": expression}}]})
    assert bool(list(BY_CODE["S122"].findings(subject(data, "model.pt2")))) is found


def test_a_torch_zip_is_no_keras_model() -> None:
    data = checkpoint(tensors(), ZEROS, ("config.json", b'{"class_name": "Lambda"}'))
    assert list(BY_CODE["S127"].findings(subject(data, "model.pt"))) == []


@pytest.mark.parametrize(
    ("operator", "domain", "defined", "found"),
    [
        (b"PyOp", b"ai.onnx.contrib", b"", ["ai.onnx.contrib::PyOp"]),
        (b"Relu", b"", b"", []),
        (b"Gelu", b"com.microsoft", b"", []),
        (b"F", b"own", b"F", []),
        (b"F", b"own", b"G", ["own::F"]),
    ],
)
def test_operators_of_onnx_that_are_not_its_own(
    operator: bytes, domain: bytes, defined: bytes, found: list[str]
) -> None:
    model = (
        field(1, 8) + field(7, node(operator, domain), node(operator, domain), field(2, b"g")) + field(8, field(2, 17))
    )
    model += field(25, field(1, defined), field(10, b"own")) if defined else b""
    assert [finding.about for finding in BY_CODE["S121"].findings(subject(model, "model.onnx"))] == found


def test_a_template_beside_weights_is_looked_at_and_none_beside_a_file_in_memory(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{{ x.__class__ }}"}')
    for file, found in (("model.safetensors", ["tokenizer_config.json"]), ("other.safetensors", [])):
        (tmp_path / file).write_bytes(b"\x02\0\0\0\0\0\0\0{}")
        told = BY_CODE["S126"].findings(Subject.open(str(tmp_path / file)))
        assert [finding.location.member for finding in told] == found
    assert [*BY_CODE["S126"].findings(subject(b"\x02\0\0\0\0\0\0\0{}", "model.safetensors"))] == []


def test_a_scripts_tables_of_source_lines_need_no_classes() -> None:
    path = FIXTURES / "torchscript/perceptron.pt"
    found = BY_CODE["S113"].findings(Subject.open(str(path)))
    assert [finding.location.member for finding in found] == ["perceptron/data.pkl"]
    assert not list(BY_CODE["F101"].findings(Subject.open(str(path))))  # it brings the code of its classes


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_what_a_traced_script_keeps_is_part_of_it(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    path = str(tmp_path / "traced.pt")
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(path)
    found = list(BY_CODE["S117"].findings(Subject.open(path)))
    assert not found, found
