"""On torchvision's models the static state_dict is torch's own: keys, order, dtypes, shapes, strides, bytes.

From the full-model pickle and from the state_dict file; on a dozen models also from legacy files, and by
default only on these.
"""

import inspect

import pytest

from ckpt_tools import open_checkpoint
from ckpt_tools.contents import read_bytes

torch = pytest.importorskip("torch")
models = pytest.importorskip("torchvision").models

DOZEN = (
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "googlenet",
    "lraspp_mobilenet_v3_large",
    "mnasnet0_5",
    "quantized_mobilenet_v2",
    "resnet18",
    "shufflenet_v2_x0_5",
    "swin_t",
)

pytestmark = pytest.mark.filterwarnings(
    "ignore:The default weight initialization:FutureWarning", "ignore:.*quantization is deprecated:DeprecationWarning"
)


def build(name):
    """The model with values that differ from tensor to tensor; nothing is downloaded or initialised."""
    builder = models.get_model_builder(name)
    accepted = inspect.signature(builder).parameters
    # regnet computes its widths with tensors, which must be real
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        model = builder(**{key: None for key in ("weights", "weights_backbone") if key in accepted})
    model = model.to_empty(device="cpu")
    with torch.no_grad():
        for index, tensor in enumerate((*model.parameters(), *model.buffers())):
            tensor.fill_(index % 100)
            if tensor.numel() > 1:
                tensor.view(-1)[-1] = 101
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 3 == 0)
    return model


def assert_same(found, expected):
    assert [t.name for t in found.tensors] == list(expected)
    for info, tensor in zip(found.tensors, expected.values(), strict=True):
        assert (info.dtype.name, info.shape, info.stride) == (
            str(tensor.dtype).removeprefix("torch."),
            tuple(tensor.shape),
            tensor.stride(),
        )
        assert read_bytes(info) == tensor.detach().contiguous().numpy().tobytes(), info.name


def check(model, path, **options):
    expected = model.state_dict()
    torch.save(model, path, **options)
    checkpoint = open_checkpoint(path)
    assert_same(checkpoint.module.state_dict(), expected)
    flags = {
        f"{prefix}.{name}" if prefix else name: parameter.requires_grad
        for prefix, module in checkpoint.module.walk()
        for name, parameter in module.parameters.items()
        if parameter is not None
    }
    assert flags == {name: p.requires_grad for name, p in model.named_parameters(remove_duplicate=False)}
    torch.save(expected, path, **options)
    assert_same(open_checkpoint(path).model_state_dict(), expected)
    path.unlink()


@pytest.mark.parametrize("name", DOZEN)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_dozen(tmp_path, name, zipped):
    check(build(name), tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)


@pytest.mark.full
@pytest.mark.parametrize("name", models.list_models())
def test_every_model(tmp_path, name):
    check(build(name), tmp_path / "m.pt")
