"""The policy rules: what each finds, and what it leaves alone."""

from __future__ import annotations

import datetime

import numpy
import safetensors.numpy

from ckpt_tools.audit.baseline import Baseline
from ckpt_tools.audit.policy import Options, Policy, Requirement, Waiver
from tests.audit.cases import FIXTURES, Case, Cases, Make, asked, fixture, made

MLP = "zip/mlp.pt"
MODEL = "model/cnn.pt"
TODAY = datetime.date(2026, 7, 1)
WAIVER = Waiver("I101", "until the mirror is mended", expires=datetime.date(2026, 6, 30))


def _on(today: datetime.date) -> Options:
    return Options(Policy(waivers=(WAIVER,)), today=today)


def _locked(*names: str) -> Options:
    return Options(baseline=Baseline({}, {str(FIXTURES / MLP): names}))


NAMES = ("torch._utils._rebuild_tensor_v2", "torch.FloatStorage", "collections.OrderedDict")


def _licensed(text: str) -> Make:
    data = safetensors.numpy.save({"weight": numpy.zeros(2, numpy.float32)}, {"license": text})
    return made(data, "model.safetensors", Options(Policy(requirements=(Requirement(licenses=("mit", "apache-*")),))))


CASES: Cases = {
    "P101": Case(
        fixture(MLP, _on(TODAY)),
        fixture(MLP, _on(datetime.date(2026, 6, 30))),
        "the waiver of I101 for * expired on 2026-06-30: until the mirror is mended",
    ),
    "P102": Case(
        fixture(MLP, _locked(*NAMES[:2])),
        fixture(MLP, _locked(*NAMES)),
        "collections.OrderedDict is new",
        member="mlp/data.pkl",
    ),
    "P103": Case(
        fixture(MLP, _locked(*NAMES, "argparse.Namespace")), fixture(MLP, _locked(*NAMES)), "argparse.Namespace is gone"
    ),
    "P201": Case(
        asked(MLP, formats=("safetensors",)),
        asked("safetensors/library.safetensors", formats=("safetensors",)),
        "torch_zip (PyTorch zip archive (torch.save)), not safetensors",
    ),
    "P202": Case(
        asked(MODEL, kinds=("state_dict",)), asked(MLP, kinds=("state_dict",)), "its kind is model, not state_dict"
    ),
    "P203": Case(
        asked("zip/numpy.pt", globals=("numpy.*",)),
        asked("zip/numpy.pt", globals=("numpy.*", "builtins.bytes")),
        "is not among the globals that the policy allows",
        member="numpy/data.pkl",
    ),
    "P204": Case(asked(MLP, dtypes=("float16",)), asked(MLP, dtypes=("float32",)), "4 tensors of float32: "),
    "P205": Case(asked(MLP, max_size=1000), asked(MLP, max_size=10_000), "where 1.0 kB are allowed"),
    "P206": Case(
        asked(MLP, min_parameters=68), asked(MLP, min_parameters=67, max_parameters=67), "67 parameters, not 68 or more"
    ),
    "P207": Case(asked(MLP, keys=("fc9.*",)), asked(MLP, keys=("fc1.*",)), "no tensor is called fc9.*"),
    "P208": Case(
        asked(MLP, shapes={"fc2.bias": (10,)}),
        asked(MLP, shapes={"fc2.bias": (3,), "fc1.weight": (-1, 4)}),
        "its shape is [3], not [10]",
        tensor="fc2.bias",
    ),
    "P209": Case(
        asked("safetensors/metadata.safetensors", metadata={"revision": "*"}),
        asked("safetensors/metadata.safetensors", metadata={"format": "p?"}),
        "there is no metadata revision",
    ),
    "P210": Case(
        asked("model/cnn.pt", frozen=("*.weight",)),
        asked("model/frozen_backbone.pt", frozen=("features.*",)),
        "it is trainable: requires_grad=True in the file",
        tensor="features.0.weight",
    ),
    "P211": Case(
        _licensed("cc-by-nc-4.0"),
        _licensed("MIT"),
        "its licence is cc-by-nc-4.0",
    ),
    "P212": Case(
        asked(MLP, sha256="0" * 64),
        asked(MLP, digest="8ba2350548262e94a532e3ca13974e43809456e1c333abf1b87d2dd199cff0d9"),
        f"not {'0' * 64}",
    ),
}
