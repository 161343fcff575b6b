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
DETECTION: list[tuple[str, int, dict[str, Any]]] = [
    ("ssdlite320_mobilenet_v3_large", 320, {}),
    ("retinanet_resnet50_fpn", 224, {"min_size": 224, "max_size": 224}),
    ("fcos_resnet50_fpn", 224, {"min_size": 224, "max_size": 224}),
    ("fasterrcnn_mobilenet_v3_large_320_fpn", 320, {"box_score_thresh": 0.0}),
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


def detector(name: str, size: int, options: dict[str, Any]) -> nn.Module:
    """A detection model that finds something: of random weights, its features of mean 0 and variance 1 as if trained.

    Without that, roundings grow from layer to layer, and scores are equal by the hundred.
    """
    torch.manual_seed(0)
    model = locate(f"torchvision:{name}", kwargs=options, empty=False)
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0, 0.1)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # the statistics are those of the one batch below
            module.reset_running_stats()
    model.train()
    with torch.no_grad():
        features = model.backbone(torch.rand(8, 3, size, size) * 4 - 2)
        if hasattr(model, "head"):
            model.head(list(features.values()))
    for part, parameter in model.named_parameters():
        if part.startswith(("head.", "roi_heads.", "rpn.head.")) and parameter.dim() > 1:
            parameter.data.mul_(0.1)
    return model


@pytest.mark.full
@pytest.mark.parametrize("name, size, options", DETECTION, ids=[name for name, _, _ in DETECTION])
def test_detection(tmp_path: Path, name: str, size: int, options: dict[str, Any]) -> None:
    options = {"num_classes": 5, **options}
    torch.save(detector(name, size, options).state_dict(), tmp_path / "model.pt")
    job = Job(
        str(tmp_path / "model.pt"),
        f"torchvision:{name}",
        str(tmp_path / "model.onnx"),
        kwargs=options,
        inputs=[f"[3,{size},{size}]"],
        seeds=6,
    )
    found = Export(job.path, job.model, job.onnx, True, list(checks(job)))
    assert found.passed, [problem.message for problem in found.problems]
    assert "empty-output" not in found.codes
    assert len(found["numbers"].facts["runs"]) == 18  # type: ignore[arg-type]


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
