"""The worked example verifies in each form it is saved in; each of twenty faults gets its own diagnosis."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ckpt_tools.verification.job import Job
from ckpt_tools.verification.results import CHECKS, Verification

torch = pytest.importorskip("torch")
checks = pytest.importorskip("ckpt_tools.runtime.verify").checks

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
NETS, GONE = f"{FIXTURES}/nets.py:", f"{FIXTURES}/classes_gone.py:"


def verified(path, model, **options):
    """The result of a file of fixtures/, in this process: the pipe is tested in tests/cli/test_verify.py."""
    options.setdefault("inputs", ["3,8,8"])
    job = Job(str(FIXTURES / path), model, **options)
    json.dumps(job.as_json())
    return Verification(job.path, job.model, list(checks(job)))


def told(found):
    """What is wrong, without the notes."""
    return [(problem.code, problem.severity) for problem in found.problems if problem.severity != "note"]


EXAMPLE = {"inputs": ["3,8,8"], "frozen": ["backbone.*"], "trainable": ["dense.*"]}


@pytest.mark.parametrize(
    ("file", "model", "notes"),
    [
        ("verify/state_dict.pt", NETS + "Transfer", []),
        ("verify/model.pt", NETS + "Transfer", ["outputs-equal"]),
        ("verify/model.pt", "pickle", []),
        ("verify/checkpoint.pt", NETS + "Transfer", ["weights-not-at-root", "optimizer-filtered"]),
    ],
)
def test_worked_example_verifies(file, model, notes):
    found = verified(file, model, trust=True, **EXAMPLE)
    assert told(found) == []
    assert sorted(found.codes) == sorted([*notes, "training-mode"])
    assert found.passed
    assert [check.name for check in found.checks] == list(CHECKS)
    verdicts = {check.name: check.verdict for check in found.checks}
    resume = "passed" if "checkpoint" in file else "skipped"
    assert verdicts == {**dict.fromkeys(CHECKS, "passed"), "resume": resume}
    assert found["keys"].message == "loaded 10 of 10 tensors, 100 % of parameter elements"
    assert found["transfer"].message == "head `dense` with 1 output; 8 of 10 parameter tensors frozen"
    assert found["runs"].facts["outputs"] == [{"path": "", "shape": [1, 1], "dtype": "float32"}]


@dataclass
class Fault:
    """A file and a class that do not go together; *told* are the problems in order, *words* stand in the first."""

    name: str
    file: str
    model: str
    told: list
    words: list
    options: dict = field(default_factory=dict)
    note: str = ""


ERROR, WARNING = "error", "warning"
TWO = {"kwargs": {"num_classes": 2}}

FAULTS = [
    Fault(
        "misspelt freeze",
        "verify/misspelt_freeze.pt",
        NETS + "Transfer",
        [("misspelt-freeze", ERROR)],
        ["requires_grd = False in the file on backbone.features.0.weight", "5 more", "leaves requires_grad=True"],
    ),
    Fault(
        "misspelt freeze | in the class",
        "verify/state_dict.pt",
        NETS + "MisspeltFreeze",
        [("misspelt-freeze", ERROR)],
        ["require_grad = False in the class on backbone.features.0.weight", "5 more", "leaves requires_grad=True"],
    ),
    Fault(
        "no-op module freeze",
        "verify/module_freeze.pt",
        NETS + "Transfer",
        [("module-freeze", ERROR)],
        ["requires_grad = False in the file on the module backbone changes nothing"],
    ),
    Fault(
        "no-op module freeze | in the class",
        "verify/state_dict.pt",
        NETS + "ModuleFreeze",
        [("module-freeze", ERROR)],
        ["requires_grad = False in the class on the module backbone changes nothing"],
    ),
    Fault(
        "head of 1000 onto 2 classes",
        "verify/head_1000.pt",
        NETS + "Classifier",
        [("head-classes", ERROR)],
        ["the head `fc` has 1,000 outputs in the file and 2 in the class", "--kwargs num_classes=1000"],
        TWO,
    ),
    Fault(
        "module. on all keys",
        "verify/data_parallel.pt",
        NETS + "Transfer",
        [("wrapped-names", ERROR)],
        ["names begin with module. (DataParallel", "would load 0 of 10 tensors", "removeprefix('module.')"],
    ),
    Fault(
        "bare keys for a wrapped class",
        "verify/state_dict.pt",
        NETS + "wrapped",
        [("bare-names", ERROR)],
        ["names are bare, in the class they begin with module.", "{'module.' + k: v for"],
    ),
    Fault(
        "module._orig_mod. stacked",
        "verify/compiled_parallel.pt",
        NETS + "Transfer",
        [("stacked-wrappers", ERROR)],
        ["names begin with module._orig_mod.", "AveragedModel around torch.compile", "then 10 of 10 tensors load"],
    ),
    Fault(
        "Lightning model. prefix",
        "verify/lightning.ckpt",
        NETS + "Transfer",
        [("lightning-names", ERROR)],
        ["names begin with model. (a Lightning module", "then 10 of 10 tensors load"],
        note="weights-not-at-root",
    ),
    Fault(
        "training dict passed whole",
        "verify/checkpoint.pt",
        NETS + "Transfer",
        [],
        ["with strict=False it would load nothing and say nothing", "torch.load(…)['model_satate_dict']"],
        note="weights-not-at-root",
    ),
    Fault(
        "densenet old names",
        "verify/densenet_old.pt",
        NETS + "densenet",
        # the file's head is as it was made, which is so and is told too
        [("densenet-names", ERROR), ("head-untrained", WARNING)],
        ["norm.1 for norm1", "denselayer1.norm.1.weight to features.denseblock1.denselayer1.norm1.weight", "37 of 37"],
        {"inputs": ["3,64,64"]},
    ),
    Fault(
        "inception without aux",
        "verify/inception_without_aux.pt",
        NETS + "Inception",
        [("auxiliary-heads", ERROR)],
        ["the class has an auxiliary head that the file lacks (2 tensors", "--kwargs aux_logits=false"],
    ),
    Fault(
        "BN counters missing | old metadata",
        "verify/no_counters_old.pt",
        NETS + "Classifier",
        [],
        ["from before BatchNorm counted batches", "torch sets 1 counter to 0"],
        TWO,
        note="batchnorm-counters-supplied",
    ),
    Fault(
        "BN counters missing | new metadata",
        "verify/no_counters_new.pt",
        NETS + "Classifier",
        [("batchnorm-counters-missing", ERROR)],
        ["lacks 1 counter of BatchNorm (bn.num_batches_tracked)", "load_state_dict does not supply them"],
        TWO,
    ),
    Fault(
        "backbone drifted in BN only",
        "transfer/tuned.pt",
        GONE + "SmallCNN",
        [("batchnorm-drift", WARNING)],
        ["1 layer whose parameters stayed as in the base has other statistics: features.1"],
        {"kwargs": {"classes": 2}, "base": str(FIXTURES / "transfer/base.pt")},
    ),
    Fault(
        "head never trained",
        "verify/untrained_head.pt",
        NETS + "Classifier",
        [("head-untrained", WARNING)],
        ["the head `fc` looks as it was made: its weights are spread evenly within ±0.5"],
        {"kwargs": {"num_classes": 20}},
    ),
    Fault(
        "optimizer bound before the head was replaced",
        "training/head_replaced.pt",
        GONE + "SmallCNN",
        [("optimizer-bound-too-early", ERROR), ("optimizer-misfit", ERROR)],
        ["bound before part of the model was replaced", "The head `head` was put in later and never trained"],
        {"kwargs": {"classes": 2}},
    ),
    Fault(
        "optimizer bound before the head was replaced | before the first step",
        "training/head_replaced_at_once.pt",
        GONE + "SmallCNN",
        [("optimizer-without-head", ERROR)],
        ["the optimizer trained other layers but not the head `head`", "without state"],
        {"kwargs": {"classes": 2}},
    ),
    Fault(
        "optimizer for filtered parameters",
        "training/frozen_filtered.pt",
        GONE + "SmallCNN",
        [("optimizer-filtered", WARNING)],
        ["holds 2 of 5 parameters: the head alone (head.weight, head.bias)", "model.head.parameters()"],
    ),
    Fault(
        "NaN weights",
        "verify/nan.pt",
        NETS + "Classifier",
        [("not-finite", ERROR), ("output-not-finite", ERROR)],
        ["conv.weight (2 NaN of 108), fc.bias (1 infinite of 2)"],
        TWO,
    ),
    Fault(
        "float16 file into float32 class",
        "verify/half.pt",
        NETS + "Classifier",
        [("dtype-converted", WARNING)],
        ["7 tensors are float16 in the file, float32 in the class"],
        TWO,
    ),
    Fault(
        "wrong class altogether",
        "verify/state_dict.pt",
        GONE + "SmallCNN",
        [("wrong-class", ERROR)],
        ["this is no file of SmallCNN: 0 % of parameter elements"],
    ),
    Fault(
        "file truncated",
        "refused/truncated_zip.pt",
        NETS + "Transfer",
        [("damaged-file", ERROR)],
        ["a truncated PyTorch zip archive: 1,458 bytes are there of at least 1,516"],
    ),
    Fault(
        "constructor arguments missing",
        "verify/head_1000.pt",
        NETS + "Classifier",
        [("arguments-missing", ERROR)],
        ["needs arguments: num_classes", "The file suggests --kwargs num_classes=1000, with which it can be built"],
    ),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault_is_told(fault):
    found = verified(fault.file, fault.model, **fault.options)
    assert told(found) == fault.told
    assert found.passed is all(severity == WARNING for _, severity in fault.told)
    if fault.note:
        assert fault.note in found.codes
    code = fault.told[0][0] if fault.told else fault.note
    problem = next(problem for problem in found.problems if problem.code == code)
    said = f"{problem.message} → {problem.remedy}"
    assert [words for words in fault.words if words not in said] == []


def test_diagnoses_are_each_their_own():
    """No two of the twenty faults are told alike; the variants of one, after the stroke, may be."""
    codes = {}
    for fault in FAULTS:
        codes.setdefault(fault.name.partition(" | ")[0], fault.told[0][0] if fault.told else fault.note)
    assert len(codes) == 20
    assert len(set(codes.values())) == 20


def test_drift_of_what_should_be_frozen_is_an_error():
    options = {"base": str(FIXTURES / "transfer/base.pt"), "frozen": ["features.*"]}
    found = verified("transfer/model.pt", GONE + "SmallCNN", kwargs={"classes": 2}, **options)
    assert told(found) == [("batchnorm-drift", ERROR)]


MENDED = [fault for fault in FAULTS if fault.told and fault.told[0][0].endswith(("-names", "-wrappers"))]


@pytest.mark.parametrize("fault", MENDED, ids=lambda fault: fault.name)
def test_mended_names_load_strictly(fault, tmp_path):
    """--write-fixed and --write-key-map: torch itself takes the result."""
    fixed, key_map = tmp_path / "fixed.pt", tmp_path / "names.json"
    found = verified(
        fault.file, fault.model, **{**fault.options, "write_fixed": str(fixed), "write_key_map": str(key_map)}
    )
    assert "mended" in found.codes
    again = verified(fixed, fault.model, **fault.options)
    assert told(again) == [problem for problem in fault.told if problem[0] == "head-untrained"]
    locate = pytest.importorskip("ckpt_tools.runtime.locate").locate
    model = locate(fault.model, empty=False)
    assert str(model.load_state_dict(torch.load(fixed))) == "<All keys matched successfully>"
    names = json.loads(key_map.read_text())
    source = torch.load(FIXTURES / fault.file)
    source = source.get("state_dict", source)
    assert set(names) <= set(source)
    assert {names.get(name, name) for name in source} == set(model.state_dict())
    assert found["round-trip"].facts["sha256"] == again["round-trip"].facts["sha256"]
