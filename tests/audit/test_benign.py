"""Nothing that programs really write is called dangerous."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckpt_tools.audit.engine import audit
from ckpt_tools.audit.results import Audited
from ckpt_tools.audit.subject import Subject
from ckpt_tools.sources import MemorySource
from tests.audit.cases import FIXTURES

CORPUS = os.environ.get("CKPT_TOOLS_CORPUS")


def answer(data: bytes, name: str) -> str:
    subject = Subject.of(MemorySource(data, name), name)
    assert subject.error is None
    return Audited(name, verdicts=subject.verdicts).answer


def check(found: str, name: str, data: bytes) -> None:
    if found in ("dangerous", "unknown"):
        subject = Subject.of(MemorySource(data, name), name)
        pytest.fail(f"{name} is called {found}: {[verdict.reasons for verdict in subject.verdicts if verdict.reasons]}")


@pytest.mark.filterwarnings("ignore")
def test_what_training_scripts_save() -> None:
    pytest.importorskip("torch")
    from tests.audit.benign import files

    seen = 0
    for name, data in files():
        check(answer(data, name), name, data)
        seen += 1
    assert seen > 300


@pytest.mark.filterwarnings("ignore")
def test_states_of_modules_and_optimizers_are_tensors_only() -> None:
    pytest.importorskip("torch")
    from tests.audit.benign import modules, optimizers, saved

    for name, module in modules().items():
        if name in ("quantized", "lazy"):  # a pair of weight and bias; a parameter that has no size yet
            continue
        state = getattr(module, "state_dict", lambda module=module: module)()
        assert answer(saved(state), name) == "tensors only", name
    for name, optimizer in optimizers():
        assert answer(saved(optimizer.state_dict()), name) == "tensors only", name  # type: ignore[attr-defined]


def torchvision_answers(names: list[str] | None) -> dict[str, tuple[str, str]]:
    pytest.importorskip("torchvision")
    from tests.audit.benign import saved, torchvision_models

    return {
        name: (answer(saved(model.state_dict()), name), answer(saved(model), name))
        for name, make in torchvision_models(names)
        for model in [make()]
    }


@pytest.mark.filterwarnings("ignore")
def test_some_torchvision_models() -> None:
    names = ["resnet18", "vit_b_16", "swin_t", "fasterrcnn_mobilenet_v3_large_320_fpn", "raft_small", "r3d_18"]
    names += ["efficientnet_b0", "lraspp_mobilenet_v3_large", "convnext_tiny", "googlenet"]
    found = torchvision_answers(names)
    assert found == dict.fromkeys(names, ("tensors only", "needs classes"))


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
def test_all_torchvision_models() -> None:
    found = torchvision_answers(None)
    assert len(found) > 100
    assert {name: both for name, both in found.items() if both != ("tensors only", "needs classes")} == {}


def test_the_fixtures() -> None:
    paths = [path for path in FIXTURES.glob("*/*") if path.parent.name != "refused"]
    results = [result for result in audit([str(path) for path in paths]) if result.verdicts]
    dangerous = {Path(result.path).name for result in results if result.answer in ("dangerous", "unknown")}
    assert dangerous == set()
    assert len(results) > 60


@pytest.mark.skipif(CORPUS is None, reason="CKPT_TOOLS_CORPUS is not set")
def test_the_corpus() -> None:
    assert CORPUS is not None
    results = [result for result in audit([CORPUS]) if result.verdicts]
    assert results
    assert {result.path: result.answer for result in results if result.answer in ("dangerous", "unknown")} == {}
    assert not [f for result in results for f in result.findings if f.code.startswith("S") and f.severity == "error"]
