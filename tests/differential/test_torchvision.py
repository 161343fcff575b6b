"""On torchvision's models the static state_dict is torch's own: keys, order, dtypes, shapes, strides, bytes.

From the full-model pickle and from the state_dict file; on a dozen models also from legacy files, and by
default only on these.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools import StateDict, TensorInfo, open_checkpoint
from ckpt_tools.contents import chunks

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


def build(name: str) -> Any:
    """The model with bytes that differ from tensor to tensor; nothing is downloaded or initialised."""
    builder = models.get_model_builder(name)
    accepted = inspect.signature(builder).parameters
    # regnet computes its widths with tensors, which must be real
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        model = builder(**{key: None for key in ("weights", "weights_backbone") if key in accepted})
    model = model.to_empty(device="cpu")
    random = torch.Generator().manual_seed(1)
    pattern = torch.randint(0, 256, (1 << 16,), dtype=torch.uint8, generator=random)
    for index, tensor in enumerate((*model.parameters(), *model.buffers())):
        raw = memory(tensor)
        start = index * 37 % 4096
        for at in range(0, len(raw), len(pattern) - start):
            piece = raw[at : at + len(pattern) - start]
            piece.copy_(pattern[start : start + len(piece)])
    for index, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(index % 3 == 0)
    return model


def memory(tensor: Any) -> Any:
    """The bytes behind a dense tensor."""
    assert tensor.is_contiguous()
    return tensor.detach().reshape(-1).view(torch.uint8)


def assert_same(found: StateDict, expected: Mapping[str, Any]) -> None:
    """*found* is *expected*, tensor by tensor, and versions of modules, too."""
    assert [t.name for t in found.tensors] == list(found.entries) == list(expected)
    assert found.metadata == dict(expected._metadata)  # type: ignore[attr-defined]
    for info, tensor in zip(found.tensors, expected.values(), strict=True):
        assert (info.dtype.name, info.shape, info.stride, info.storage_offset) == (
            str(tensor.dtype).removeprefix("torch."),
            tuple(tensor.shape),
            tensor.stride(),
            tensor.storage_offset(),
        )
        raw, at = memory(tensor).numpy().data, 0
        for chunk in chunks(info):
            assert chunk == raw[at : at + len(chunk)], info.name
            at += len(chunk)
        assert at == len(raw) == info.nbytes
    assert groups(t.storage for t in found.tensors) == groups(t.untyped_storage()._cdata for t in expected.values())


def groups(storages: Iterable[object]) -> list[int]:
    """For each tensor, the first that lies in the same storage."""
    first: dict[object, int] = {}
    return [first.setdefault(storage, index) for index, storage in enumerate(storages)]


def check(model: Any, path: Path, **options: Any) -> None:
    """A file of *model*, and one of its state_dict, read as torch would."""
    expected = model.state_dict()
    torch.save(model, path, **options)
    module = open_checkpoint(path).module
    assert module is not None
    assert_same(module.state_dict(), expected)
    assert [(name, m.training) for name, m in module.walk()] == [
        (name, m.training) for name, m in model.named_modules(remove_duplicate=False)
    ]
    parameters: dict[str, TensorInfo] = {
        f"{prefix}.{name}" if prefix else name: parameter
        for prefix, part in module.walk()
        for name, parameter in part.parameters.items()
        if parameter is not None
    }
    assert all(parameter.is_parameter for parameter in parameters.values())
    assert {name: parameter.requires_grad for name, parameter in parameters.items()} == {
        name: parameter.requires_grad for name, parameter in model.named_parameters(remove_duplicate=False)
    }
    torch.save(expected, path, **options)
    found = open_checkpoint(path).model_state_dict()
    assert found is not None
    assert_same(found, expected)
    path.unlink()


@pytest.mark.parametrize("name", DOZEN)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_dozen(tmp_path: Path, name: str, zipped: bool) -> None:
    check(build(name), tmp_path / "m.pt", _use_new_zipfile_serialization=zipped)


@pytest.mark.full
@pytest.mark.parametrize("name", models.list_models())
def test_every_model(tmp_path: Path, name: str) -> None:
    check(build(name), tmp_path / "m.pt")
