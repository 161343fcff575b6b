"""Whose fault a difference is: the export's, the optimizer's of onnxruntime, or the provider's."""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from ckpt_tools.runtime.onnx import bisect, environment, stages, state  # noqa: E402
from ckpt_tools.runtime.onnx.compare import Tolerance  # noqa: E402
from ckpt_tools.runtime.onnx.sessions import LEVELS, Refused, Session, Target, open_session  # noqa: E402
from tests.runtime.onnx_models import done, saved  # noqa: E402


class Off:
    """A session on the CPU that passes for another, and whose results are off by a hundredth."""

    def __init__(self, session: Session, target: Target) -> None:
        self.session, self.target, self.outputs, self.raw = session, target, session.outputs, session.raw

    def run(self, tensors: Any) -> list[Any]:
        return [tensor * 1.01 for tensor in self.session.run(tensors)]


def stand_in(model: Any, where: Target, **options: Any) -> Any:
    """`open_session`, where WebGPU is a CPU that is off; its nodes cannot be told apart."""
    session = open_session(model, Target("cpu"), **{k: v for k, v in options.items() if k in ("level", "folder")})
    if where.provider != "cpu" and "profile" in options:
        raise Refused("provider-init", "the stand-in has no profile")
    return session if where.provider == "cpu" else Off(session, where)


def test_a_difference_of_the_provider(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "faults", lambda provider: [])
    monkeypatch.setattr(stages, "target", lambda provider, options, *, tf32: Target(provider))
    for module in (state, bisect):
        monkeypatch.setattr(module, "open_session", stand_in)
    options: dict[str, Any] = {"inputs": ["2,3,8,8"], "provider": "webgpu", "bisect": True, "seeds": 1}
    found = done(saved(tmp_path), "Net", tmp_path / "net.onnx", **options)
    assert found.reason == "numbers"
    messages = {problem.code: problem.message for problem in found["numbers"].problems}
    assert messages["provider-differs"].endswith(
        "On the CPU onnxruntime computes what torch does, so the difference is of webgpu"
    )
    assert " of Conv " in messages["first-diverging-node"]
    assert found["placement"].problems[0].message == "the stand-in has no profile"


def test_a_difference_of_the_optimizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def optimizing(model: Any, where: Target, *, level: str = LEVELS[-1], **options: Any) -> Any:
        session = open_session(model, where, level=level)
        return Off(session, where) if level == LEVELS[-1] else session

    monkeypatch.setattr(state, "open_session", optimizing)
    found = done(saved(tmp_path), "Net", tmp_path / "net.onnx", inputs=["2,3,8,8"], seeds=1)
    (problem,) = [p for p in found.problems if p.code == "export-differs"]
    assert problem.message.endswith(
        "With ORT_ENABLE_EXTENDED the numbers are torch's: onnxruntime's optimizer changes them, not the export"
    )


def test_bisect_finds_nothing_where_nothing_differs(tmp_path: Path) -> None:
    import tests.runtime.onnx_models as models

    target = tmp_path / "net.onnx"
    assert done(saved(tmp_path), "Net", target, inputs=["2,3,8,8"], seeds=1).passed
    model = models.Net().eval()
    model.load_state_dict(torch.load(tmp_path / "Net.pt"))
    from ckpt_tools.runtime.onnx.inputs import arguments

    made = arguments(["2,3,8,8"], (), (), (), model)
    tensors = {"x": torch.rand(2, 3, 8, 8)}
    allowed = Tolerance(1e-5, 1e-4)
    assert bisect.against_torch(str(target), model, made, tensors, allowed) is None
    assert bisect.against_cpu(str(target), tensors, Target("cpu"), allowed) is None
    with torch.no_grad():
        model.conv.weight[0, 0, 0, 0] += 1
    found = bisect.against_torch(str(target), model, made, tensors, allowed)
    assert found is not None
    assert found.operator == "Conv"
