"""Torchvision's detection: exported in other words, it finds the same."""

import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

from torch import nn  # noqa: E402
from torchvision.models.detection import FasterRCNN, MaskRCNN  # noqa: E402
from torchvision.models.detection import _utils as detection_utils  # noqa: E402
from torchvision.models.detection.anchor_utils import AnchorGenerator  # noqa: E402
from torchvision.ops import batched_nms, boxes, poolers  # noqa: E402

from ckpt_tools.runtime.onnx import checks, detection  # noqa: E402
from ckpt_tools.serving.job import Job  # noqa: E402
from ckpt_tools.serving.results import Export  # noqa: E402

HERE = str(Path(__file__).resolve())
THRESHOLD = 0.55


class Suppress(nn.Module):
    """The function alone, under the name by which this file has imported it."""

    def forward(self, found: Any, scores: Any, labels: Any) -> Any:
        return batched_nms(found, scores, labels, THRESHOLD)


def random_boxes(count: int, classes: int, seed: int) -> tuple[Any, Any, Any]:
    """Boxes that overlap, with scores of which many are equal."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 200
    found = torch.cat([corner, corner + 1 + torch.rand(count, 2, generator=generator) * 80], 1)
    scores = torch.randint(1, 100, (count,), generator=generator) / 100
    return found, scores, torch.randint(0, classes, (count,), generator=generator)


@pytest.fixture(scope="module")
def suppress() -> Any:
    """`Suppress` in onnxruntime, for any number of boxes."""
    count = torch.export.Dim("count")
    with warnings.catch_warnings(), detection.exportable() as (table, used):
        warnings.simplefilter("ignore")  # three axes are one size, and are called by one name
        program = torch.onnx.export(
            Suppress().eval(),
            random_boxes(50, 4, 0),
            dynamo=True,
            verbose=False,
            dynamic_shapes=({0: count}, {0: count}, {0: count}),
            custom_translation_table=dict(table),
        )
    assert used == {"torchvision.ops.batched_nms"}
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    return lambda *tensors: session.run(None, dict(zip(names, (t.numpy() for t in tensors), strict=True)))[0]


@pytest.mark.parametrize("count", [0, 1, 40, 900, 1500])  # above 1,000 torchvision goes another way
@pytest.mark.parametrize("classes", [1, 7])
def test_what_is_kept_is_what_torchvision_keeps(suppress: Any, count: int, classes: int) -> None:
    for seed in range(3):
        given = random_boxes(count, classes, seed)
        kept, wanted = suppress(*given).tolist(), batched_nms(*given, THRESHOLD).tolist()
        if count > 1000:  # torch leaves it open which of equal scores stands in front
            assert given[1][kept].tolist() == given[1][wanted].tolist()
            kept, wanted = sorted(kept), sorted(wanted)
        assert kept == wanted


def test_an_overlap_of_exactly_the_threshold(suppress: Any) -> None:
    # 11 of 20 is 0.55 in float32, which is more than 0.55 in float64
    found = torch.tensor([[0.0, 0.0, 20.0, 1.0], [0.0, 0.0, 11.0, 1.0]])
    given = (found, torch.tensor([0.9, 0.8]), torch.tensor([3, 3]))
    assert suppress(*given).tolist() == batched_nms(*given, THRESHOLD).tolist() == [0]


def test_boxes_are_decoded_to_the_same() -> None:
    coder = detection_utils.BoxCoder((10.0, 10.0, 5.0, 5.0))
    given = [random_boxes(count, 1, 0)[0] for count in (5, 0, 2)]
    codes = torch.rand(7, 12)
    wanted = coder.decode(codes, given)
    with detection.exportable():
        assert torch.equal(coder.decode(codes, given), wanted)
        assert coder.decode(codes[:0], given[1:2]).shape == (0, 3, 4)


def test_all_is_as_before_afterwards() -> None:
    before = (boxes.batched_nms, batched_nms, detection_utils.BoxCoder.decode)
    with pytest.raises(RuntimeError, match="no way"), detection.exportable():
        assert boxes.batched_nms is not before[0]
        raise RuntimeError("no way")
    assert (boxes.batched_nms, batched_nms, detection_utils.BoxCoder.decode) == before
    assert not hasattr(poolers, "len")


class Backbone(nn.Module):
    """Two levels of features."""

    out_channels = 8

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 4, stride=4)
        self.second = nn.Conv2d(8, 8, 2, stride=2)

    def forward(self, x: Any) -> Any:
        first = torch.relu(self.first(x))
        return OrderedDict([("0", first), ("1", torch.relu(self.second(first)))])


SMALL: dict[str, Any] = {"num_classes": 4, "min_size": 64, "max_size": 64}


class Detector(FasterRCNN):
    """The two stages of Faster R-CNN with hardly anything in them."""

    def __init__(self) -> None:
        anchors = AnchorGenerator(((8,), (24,)), ((0.5, 1.0, 2.0),) * 2)
        super().__init__(Backbone(), rpn_anchor_generator=anchors, box_score_thresh=0.1, **SMALL)


class Masks(MaskRCNN):
    """Pastes each mask into the image by a loop over the boxes."""

    def __init__(self) -> None:
        anchors = AnchorGenerator(((8,), (24,)), ((0.5, 1.0, 2.0),) * 2)
        super().__init__(Backbone(), rpn_anchor_generator=anchors, **SMALL)


def exported(folder: Path, kind: type[nn.Module], **options: Any) -> Export:
    torch.manual_seed(0)
    model = kind()
    for name, parameter in model.named_parameters():
        if name.startswith(("rpn.head", "roi_heads.box_predictor.cls")):
            nn.init.normal_(parameter, 0, 0.3)
    torch.save(model.state_dict(), folder / "model.pt")
    job = Job(
        str(folder / "model.pt"), f"{HERE}:{kind.__name__}", str(folder / "model.onnx"), inputs=["[3,64,64]"], **options
    )
    return Export(job.path, job.model, job.onnx, True, list(checks(job)))


def test_a_detector_of_two_stages(tmp_path: Path) -> None:
    found = exported(tmp_path, Detector, seeds=4)
    assert found.passed, [problem.message for problem in found.problems]
    ports = found["file"].facts["outputs"]
    assert [port["name"] for port in ports] == ["boxes", "labels", "scores"]  # type: ignore[attr-defined]
    runs: Any = found["numbers"].facts["runs"]
    assert len(runs) == 12
    assert {run["top1"] for run in runs} == {""}
    assert "empty-output" not in found.codes
    (note,) = [problem for problem in found["exports"].problems if problem.code == "rewritten"]
    assert note.severity == "note"
    assert note.message == (
        "torch.export does not follow torchvision.models.detection BoxCoder.decode, torchvision.ops.batched_nms: what "
        "is in the file computes the same"
    )


@pytest.mark.full
def test_masks_cannot_be_exported(tmp_path: Path) -> None:
    found = exported(tmp_path, Masks)
    assert (found.reason, found["exports"].verdict) == ("export", "failed")
    (problem,) = [problem for problem in found.problems if problem.code == "export-failed"]
    assert "GuardOnDataDependentSymNode" in problem.message
