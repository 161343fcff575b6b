"""Full-model pickles of torchvision, converted without their classes, load strictly into fresh models, bit for bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.formats.as_torch import dense_bytes

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

SOME = (
    *("densenet121", "efficientnet_b0", "googlenet", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small"),
    *("regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "squeezenet1_1", "swin_t"),
)
ALL = torchvision.models.list_models()

CONVERT = """
import sys
from ckpt_tools.cli import main
assert not {"torch", "torchvision"} & set(sys.modules)
try:
    main()
finally:
    assert not {"torch", "torchvision"} & set(sys.modules)
"""


def build(name: str) -> Any:
    """The model with memory of its own, all of it zero but for what is filled in."""
    options = {"weights": None}
    if "weights_backbone" in torchvision.models.get_model_builder(name).__annotations__:
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    if name.startswith("regnet"):  # computes with its tensors while it is built
        return torchvision.models.get_model(name, **options)
    with torch.device("meta"):
        model = torchvision.models.get_model(name, **options)
    return model.to_empty(device="cpu")


def check(name: str, folder: Path) -> None:
    from safetensors.torch import load_model

    model = build(name)
    for number, tensor in enumerate(model.state_dict().values()):
        tensor.copy_((torch.arange(tensor.numel()) + number).reshape(tensor.shape) % 251)
    torch.save(model, folder / "model.pt")
    expected = {key: dense_bytes(tensor) for key, tensor in model.state_dict().items()}
    for target in ("out.safetensors", "out.pt"):
        words = ["convert", str(folder / "model.pt"), str(folder / target)]
        done = subprocess.run([sys.executable, "-c", CONVERT, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    for target in ("out.safetensors", "out.pt"):
        fresh = build(name)
        if target == "out.pt":
            state = torch.load(folder / target, weights_only=True)
            assert list(state) == list(expected)
            assert state._metadata.items() <= model.state_dict()._metadata.items()
            fresh.load_state_dict(state, strict=True)
        else:
            # the library's load_model knows no module versions, without which MNASNet refuses every state_dict
            if name.startswith("mnasnet"):
                continue
            load_model(fresh, folder / target, strict=True)
        assert {key: dense_bytes(tensor) for key, tensor in fresh.state_dict().items()} == expected


@pytest.mark.parametrize("name", SOME)
def test_a_dozen_models(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("name", ALL)
def test_every_model(name: str, tmp_path: Path) -> None:
    check(name, tmp_path)
    for path in tmp_path.iterdir():
        path.unlink()  # together they would take a hundred gigabytes


def test_the_list_is_torchvision_s() -> None:
    assert set(SOME) < set(ALL)
