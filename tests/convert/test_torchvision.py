"""Full-model pickles of torchvision, converted without their classes, load strictly into fresh models, bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
torchvision = pytest.importorskip("torchvision")

SOME = (
    *("densenet121", "efficientnet_b0", "googlenet", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small"),
    *("regnet_y_400mf", "resnet18", "shufflenet_v2_x0_5", "shufflenet_v2_x1_0", "squeezenet1_1", "swin_t"),
)
ALL = torchvision.models.list_models()
PATTERN = torch.arange(251 * 40) % 251
"""What models are filled with: numbers that every type of theirs holds, from a place of its own in each tensor."""

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
    if name.removeprefix("quantized_") in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    if name.startswith("regnet"):  # computes with its tensors while it is built
        return torchvision.models.get_model(name, **options)
    with torch.device("meta"):
        model = torchvision.models.get_model(name, **options)
    return model.to_empty(device="cpu")


def check(name: str, folder: Path) -> None:
    """The full-model pickle of *name*, converted to both formats, gives fresh models its state, by strict loading."""
    from safetensors import safe_open
    from safetensors.torch import load_file, load_model

    model = build(name)
    expected = model.state_dict()
    for number, tensor in enumerate(expected.values()):
        pattern = PATTERN[number % 251 :].to(tensor.dtype)
        tensor.copy_(pattern.repeat(-(-tensor.numel() // len(pattern)))[: tensor.numel()].reshape(tensor.shape))
    torch.save(model, folder / "model.pt")
    for target in ("out.safetensors", "out.pt"):
        words = ["convert", str(folder / "model.pt"), str(folder / target)]
        done = subprocess.run([sys.executable, "-c", CONVERT, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    def assert_same(fresh: Any) -> None:
        found = fresh.state_dict()
        assert list(found) == list(expected)
        for key, tensor in found.items():
            assert tensor.dtype == expected[key].dtype
            bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
            assert torch.equal(tensor.view(bits), expected[key].view(bits)), key

    state = torch.load(folder / "out.pt", weights_only=True)
    assert list(state) == list(expected)
    assert state._metadata.items() <= expected._metadata.items()
    fresh = build(name)
    fresh.load_state_dict(state, strict=True)
    assert_same(fresh)
    del state, fresh

    with safe_open(folder / "out.safetensors", "np") as file:
        metadata = file.metadata()
    state = OrderedDict(load_file(folder / "out.safetensors"))
    # a second name for a tensor is a line of the metadata, as the library's save_model writes it
    state.update({name: state[kept] for name, kept in metadata.items() if kept in state and name in expected})
    state._metadata = json.loads(metadata["ckpt-tools"])["versions"]  # type: ignore[attr-defined]
    fresh = build(name)
    fresh.load_state_dict(state, strict=True)
    assert_same(fresh)
    del state, fresh

    # the library's load_model knows no module versions, without which MNASNet refuses every state_dict
    if not name.startswith("mnasnet"):
        fresh = build(name)
        assert load_model(fresh, folder / "out.safetensors", strict=True) == (set(), [])
        assert_same(fresh)


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
