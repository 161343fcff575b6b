"""Models of torchvision and timm, exported and checked: one, and with ``-m full`` the table of docs/export.md."""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from torch import nn  # noqa: E402

from ckpt_tools.runtime.locate import locate  # noqa: E402
from ckpt_tools.runtime.onnx import checks  # noqa: E402
from ckpt_tools.serving.job import Job  # noqa: E402
from ckpt_tools.serving.results import Export  # noqa: E402

HERE = str(Path(__file__).resolve())
SIZES = "1,3,224,224"
FULL: list[tuple[str, str]] = [
    ("torchvision:resnet18", SIZES),
    ("torchvision:resnet50", SIZES),
    ("torchvision:vgg19", SIZES),
    ("torchvision:mobilenet_v3_small", SIZES),
    ("torchvision:vit_b_16", SIZES),
    ("torchvision:lraspp_mobilenet_v3_large", SIZES),
    ("timm:resnet10t", "1,3,176,176"),
    ("timm:vit_tiny_patch16_224", SIZES),
    (f"{HERE}:TransferVGG19", SIZES),
]


class TransferVGG19(nn.Module):
    """The backbone frozen, a new layer behind it."""

    def __init__(self) -> None:
        super().__init__()
        from torchvision import models

        self.backbone = models.vgg19(weights=None)
        self.dense = nn.Linear(1000, 1)
        self.backbone.requires_grad_(False)

    def forward(self, x: Any) -> Any:
        return self.dense(self.backbone(x))


def exported(folder: Path, model: str, sizes: str, **options: Any) -> Export:
    """The answer for a *model* with weights as it makes them, and statistics of BatchNorm that are not trivial."""
    torch.manual_seed(0)
    made = locate(model, empty=False)
    for parameter in made.parameters():
        if parameter.dim() == 1:  # what is all zeros or ones is left out by exporters
            parameter.data.normal_(0.5, 0.1)
        elif not parameter.any():  # a head that is made so
            parameter.data.normal_(0, 0.1)
    for module in made.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    path = folder / "model.pt"
    torch.save(made.state_dict(), path)
    job = Job(str(path), model, str(folder / "model.onnx"), inputs=[sizes], seeds=2, **options)
    return Export(job.path, job.model, job.onnx, True, list(checks(job)))


def test_a_small_one(tmp_path: Path) -> None:
    found = exported(tmp_path, "torchvision:squeezenet1_1", "1,3,64,64", dynamic=["batch"])
    assert found.passed, found.codes
    assert "constant-output" not in found.codes
    facts: Any = found["weights"].facts
    assert len(facts["equal"]) == 52
    assert (facts["folded"], facts["absorbed"], facts["altered"]) == ([], [], {})


@pytest.mark.full
@pytest.mark.parametrize("model, sizes", FULL, ids=[model.rpartition(":")[2] for model, _ in FULL])
def test_the_table(tmp_path: Path, model: str, sizes: str) -> None:
    if model.startswith("timm:"):
        pytest.importorskip("timm")
    found = exported(tmp_path, model, sizes, dynamic=["batch"])
    assert found.passed, found.codes
    assert "constant-output" not in found.codes


class Large(nn.Module):
    """2.4 GB in one matrix, more than protobuf holds."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(24_500, 24_500, bias=False)

    def forward(self, x: Any) -> Any:
        return self.fc(x)


@pytest.mark.full
def test_more_than_two_gigabytes(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.rand(24_500, 24_500)}, tmp_path / "large.pt")
    job = Job(str(tmp_path / "large.pt"), f"{HERE}:Large", str(tmp_path / "large.onnx"), inputs=["1,24500"], seeds=1)
    found = Export(job.path, job.model, job.onnx, True, list(checks(job)))
    assert found.passed, found.codes
    assert (tmp_path / "large.onnx").stat().st_size < 1_000_000
    assert (tmp_path / "large.onnx.data").stat().st_size == 24_500 * 24_500 * 4
    never = Job(job.path, job.model, str(tmp_path / "x.onnx"), inputs=["1,24500"], external_data="never")
    found = Export(never.path, never.model, never.onnx, True, list(checks(never)))
    assert (found.reason, found.codes) == ("export", ["export-failed"])
    assert found.problems[0].message.endswith("do not fit into one file, which protobuf limits to 2 GiB")
