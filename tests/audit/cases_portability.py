"""The rules about portability: what each finds, and what it leaves alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

from ckpt_tools.audit.policy import Options, Policy
from ckpt_tools.audit.subject import Subject
from tests.audit.cases import Case, Cases, Make, fixture, made


def saved(build: Callable[[Any], object], torch_version: str | None = None) -> Make:
    """What *build* makes of torch, saved; the subject under a policy that names *torch_version*."""

    def make(folder: Path) -> Subject:
        torch = pytest.importorskip("torch")
        torch.manual_seed(0)
        torch.save(build(torch), folder / "model.pt")
        return Subject.open(str(folder / "model.pt"), Options(Policy(torch=torch_version)))

    return make


def named(*names: str) -> Make:
    return made(save({name: np.ones(2, np.float32) for name in names}), "model.safetensors")


def without(layer: Callable[[Any], Any], attribute: str) -> Callable[[Any], object]:
    def build(torch: Any) -> object:
        module = layer(torch.nn)
        del module.__dict__[attribute]
        return torch.nn.Sequential(module)

    return build


def _twice(torch: Any, tied: bool) -> object:
    weight = torch.randn(64, 64)
    return {"embed.weight": weight, "head.weight": weight if tied else weight.clone()}


CASES: Cases = {
    "F101": Case(
        fixture("model/cnn.pt"), fixture("zip/mlp.pt"), "a pickled gone.models.SmallCNN; it needs gone.models"
    ),
    "F102": Case(fixture("legacy/state_dict.pt"), fixture("zip/mlp.pt"), "PyTorch legacy file"),
    "F103": Case(fixture("zip/data_parallel.pt"), fixture("zip/mlp.pt"), "keys begin with module."),
    "F104": Case(fixture("zip/cuda.pt"), fixture("zip/mlp.pt"), "tensors are tagged for cuda:"),
    "F105": Case(fixture("zip/numpy.pt"), fixture("zip/numpy_1.pt"), "numpy._core.multiarray", member="numpy/data.pkl"),
    "F106": Case(
        saved(without(lambda nn: nn.GELU(), "approximate")),
        saved(without(lambda nn: nn.GELU(), "approximate"), "1.11.0"),
        "GELU lacks approximate: module 0",
    ),
    "F107": Case(fixture("training/adam.pt"), fixture("training/misspelt.pt"), "of Adam's state, at optimizer"),
    "F108": Case(
        saved(lambda torch: {"w": torch.zeros(100_000)[:10]}),
        saved(lambda torch: {"w": torch.zeros(100_000)[:10].clone()}),
        "400.0 kB of the tensors' storages belong to no tensor, 40 B do",
    ),
    "F109": Case(
        named("features.denseblock1.denselayer1.norm.1.weight", "x.conv.2.weight"),
        named("features.denseblock1.denselayer1.norm1.weight", "x.conv.2.weight"),
        "1 key in DenseNet's old form",
    ),
    "F110": Case(
        named("conv.weight_g", "conv.weight_v"),
        named("conv.weight", "bn.running_mean", "bn.num_batches_tracked"),
        "1 layer with weight_norm's old pairs",
    ),
    "F111": Case(
        made(save({"a": np.ones(2, np.float32), "b": np.ones(2, np.float16), "c": np.ones(2, np.float32)})),
        made(save({"a": np.ones(2, np.float32), "b": np.ones(2, np.int64), "n.running_var": np.ones(2)})),
        "parameters are float32 (2 tensors), float16 (1 tensor)",
        tensor="b",
    ),
    "F112": Case(
        saved(lambda torch: _twice(torch, tied=False)),
        saved(lambda torch: _twice(torch, tied=True)),
        "equals embed.weight, bit for bit",
        tensor="head.weight",
    ),
}
