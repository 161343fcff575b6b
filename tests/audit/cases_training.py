"""The rules about training and transfer: what each finds, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.audit.policy import Options, Policy
from ckpt_tools.audit.subject import Subject
from tests.audit.cases import FIXTURES, Case, Cases, Make, fixture
from tests.audit.cases_portability import named, saved

BASED = Options(Policy(base=str(FIXTURES / "transfer/base.pt")))


def _frozen_head(torch: Any) -> object:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[1].requires_grad_(False)
    return model


def _head(steps: int) -> Any:
    def build(torch: Any) -> object:
        model = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.ReLU(), torch.nn.Linear(32, 8))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(16, 4)).square().sum().backward()
            optimizer.step()
        return model.state_dict()

    return build


def checkpoint(name: str, epoch: int, steps: int) -> Make:
    """A training checkpoint of *epoch*, whose scheduler was stepped so many times, in a file *name*."""

    def make(folder: Path) -> Subject:
        torch = pytest.importorskip("torch")
        model = torch.nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 10)
        optimizer.step()
        for _ in range(steps):
            scheduler.step()
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
        torch.save({"epoch": epoch, **state}, folder / name)
        return Subject.open(str(folder / name))

    return make


CASES: Cases = {
    "T101": Case(
        fixture("model/frozen_by_typo.pt"),
        fixture("model/frozen_backbone.pt"),
        "requres_grad = True sets a new attribute",
        tensor="head.weight",
    ),
    "T102": Case(
        fixture("model/module_requires_grad.pt"),
        fixture("model/frozen_by_typo.pt"),
        "requires_grad = False does nothing on a module; meant: .requires_grad_(False)",
        member="features",
    ),
    "T201": Case(
        fixture("model/frozen_by_typo.pt"), fixture("model/frozen_backbone.pt"), "all 5 parameters are frozen"
    ),
    "T202": Case(
        saved(_frozen_head),
        fixture("model/frozen_backbone.pt"),
        "1.weight, 1.bias are frozen, 2 parameters elsewhere not",
        tensor="1.weight",
    ),
    "T203": Case(
        fixture("transfer/model.pt"), fixture("transfer/contradicted.pt"), "1 BatchNorm layer with frozen parameters"
    ),
    "T204": Case(
        fixture("transfer/tuned.pt", BASED),
        fixture("transfer/checkpoint.pt", BASED),
        "3 buffers moved where no parameter did",
        tensor="features.1.running_mean",
    ),
    "T301": Case(
        fixture("training/head_replaced.pt"),
        fixture("transfer/checkpoint.pt"),
        "head.weight, head.bias: it is not in the optimizer; 3 other parameters were stepped",
        tensor="head.weight",
    ),
    "T302": Case(saved(_head(0)), saved(_head(20)), "as nn.Linear(32, 8) is initialised", tensor="2.weight"),
    "T303": Case(
        fixture("training/head_replaced.pt"),
        fixture("training/adam.pt"),
        "state of shapes that no parameter has, or not as often: 3 (4×24), 4 (4)",
    ),
    "T401": Case(fixture("model/cnn.pt"), fixture("model/eval_mode.pt"), "in train mode"),
    "T402": Case(
        named("fc.weight_orig", "fc.weight_mask"),
        named("fc.weight", "attention_mask"),
        "1 tensor with a mask: fc.weight_orig",
        tensor="fc.weight_orig",
    ),
    "T403": Case(
        checkpoint("run_epoch=12.pt", 3, 3), checkpoint("run_epoch=4.pt", 3, 3), "the name says epoch 12, the file 3"
    ),
}
