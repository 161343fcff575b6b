"""Classes to export, right ones and such as exporters get wrong; and how the tests do what the worker does."""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from ckpt_tools.runtime.onnx import checks  # noqa: E402
from ckpt_tools.serving.job import Job  # noqa: E402
from ckpt_tools.serving.results import Export  # noqa: E402

HERE = str(Path(__file__).resolve())


class Net(nn.Module):
    """A convolution with BatchNorm, which exporters fold into it, and a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Any) -> Any:
        return self.fc(torch.relu(self.bn(self.conv(x))).mean((2, 3)))


class Loop(Net):
    """Goes through the batch in Python, so that its size becomes a constant."""

    def forward(self, x: Any) -> Any:
        return torch.stack([super(Loop, self).forward(x[i : i + 1])[0] for i in range(x.shape[0])])


class Branch(Net):
    """Does something else with large batches."""

    def forward(self, x: Any) -> Any:
        y = super().forward(x)
        return y if x.shape[0] < 4 else y * 1.5


class AlwaysDrops(Net):
    """Forgot ``training=self.training``."""

    def forward(self, x: Any) -> Any:
        return functional.dropout(super().forward(x))


class Named(Net):
    """Takes a keyword, returns a dict in a dict."""

    def forward(self, x: Any, *, mask: Any) -> Any:
        y = super().forward(x)
        return {"logits": y * mask, "aux": {"mean": y.mean(1, keepdim=True)}, "more": y + 1}


class Counting(Net):
    """Writes to buffers of its own in every pass, in place and by another tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.register_buffer("last", torch.ones(1))

    def forward(self, x: Any) -> Any:
        self.calls += 1
        self.last = self.last * 2
        return super().forward(x) * self.calls * self.last


class Listed(Net):
    """Takes images in a list and returns a dict for each, as detection models do."""

    def forward(self, images: Any) -> Any:
        return [{"boxes": super(Listed, self).forward(image[None]), "scores": image.mean(0)} for image in images]


class Tied(nn.Module):
    """Embedding and head are one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(50, 8)
        self.fc = nn.Linear(8, 8)
        self.head = nn.Linear(8, 50, bias=False)
        self.head.weight = self.emb.weight

    def forward(self, ids: Any) -> Any:
        return self.head(torch.tanh(self.fc(self.emb(ids))))


def saved(folder: Path, model: str = "Net") -> Path:
    """The state_dict of a seeded *model*, its BatchNorm with statistics of its own."""
    torch.manual_seed(0)
    made = globals()[model]()
    if isinstance(made, Net):
        made.bn.running_mean.uniform_(-0.1, 0.1)
        made.bn.running_var.uniform_(0.5, 1.5)
    path = folder / f"{model}.pt"
    torch.save(made.state_dict(), path)
    return path


def done(path: Path, model: str, onnx: Path, **options: Any) -> Export:
    """What the worker answers, in this process."""
    job = Job(str(path), f"{HERE}:{model}", str(onnx), **options)
    return Export(job.path, job.model, job.onnx, job.write, list(checks(job)))


class Determinant(nn.Module):
    """Uses an operator that GPU providers have no kernel for."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Any) -> Any:
        return torch.linalg.det(self.fc(x))
