"""Which initializer is which tensor of the model: by name and bits, by content, by a factor a channel, or none."""

from pathlib import Path
from typing import Any

import numpy
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper, save  # noqa: E402
from torch import nn  # noqa: E402

from ckpt_tools.runtime.onnx.weights import match, same_bits, state_digest  # noqa: E402


def written(path: Path, **tensors: Any) -> str:
    """An ONNX file with these initializers."""
    initializers = [numpy_helper.from_array(numpy.ascontiguousarray(t), name) for name, t in tensors.items()]
    port = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    node = helper.make_node("Identity", [next(iter(tensors))], ["y"])
    save(helper.make_model(helper.make_graph([node], "g", [], [port], initializers)), path)
    return str(path)


def model() -> nn.Module:
    torch.manual_seed(0)
    made = nn.Module()
    made.fc, made.conv, made.up = nn.Linear(3, 4), nn.Conv2d(3, 4, 2), nn.ConvTranspose2d(3, 4, 2)
    return made


def arrays(made: nn.Module) -> dict[str, Any]:
    return {name: tensor.detach().numpy() for name, tensor in made.named_parameters()}


def test_the_same_names_and_bits(tmp_path: Path) -> None:
    made = model()
    found = match(written(tmp_path / "x.onnx", **arrays(made)), made)
    assert found.equal == list(arrays(made))
    assert (found.elsewhere, found.folded, found.absorbed, found.altered, found.own) == ({}, [], [], {}, [])


def test_transposed_under_another_name_equal_ones_once_and_what_is_not_there(tmp_path: Path) -> None:
    made = model()
    with torch.no_grad():
        made.conv.bias.copy_(made.fc.bias)
    own = arrays(made)
    file = written(
        tmp_path / "x.onnx", val_1=own["fc.weight"].T, **{"fc.bias": own["fc.bias"]}, size=numpy.array([1, 2], "i8")
    )
    found = match(file, made)
    assert found.equal == ["fc.bias"]
    assert found.elsewhere == {"fc.weight": "val_1", "conv.bias": "fc.bias"}
    assert found.absorbed == ["conv.weight", "up.weight", "up.bias"]
    assert found.own == ["size"]


def test_a_factor_a_channel_is_a_fold_and_takes_the_bias_along(tmp_path: Path) -> None:
    made = model()
    own = arrays(made)
    factors = numpy.array([0.5, -2.0, 1e-3, 7.7], "f4")
    own["conv.weight"] = own["conv.weight"] * factors[:, None, None, None]
    own["conv.bias"] = own["conv.bias"] * factors + 1
    own["up.weight"] = own["up.weight"] * factors[None, :, None, None]  # its channels are on the second axis
    found = match(written(tmp_path / "x.onnx", **own), made)
    assert (found.folded, found.altered) == (["conv.weight", "up.weight", "conv.bias"], {})


def test_anything_else_is_altered(tmp_path: Path) -> None:
    made = model()
    own = {name: array.copy() for name, array in arrays(made).items()}
    own["conv.weight"][0, 0, 0, 0] = numpy.nextafter(own["conv.weight"][0, 0, 0, 0], 9, dtype="f4")
    own["fc.weight"][1, 1] += 1e-3
    own["fc.bias"] = own["fc.bias"] * 2
    own["up.bias"] = own["up.bias"].astype("f8")
    own["up.weight"] = own["up.weight"][:2]
    found = match(written(tmp_path / "x.onnx", **own), made)
    assert found.folded == ["conv.weight"]  # the last bit of one value is no more than a rounding
    assert found.altered == {
        "fc.weight": "1 of 12 values differ",
        "fc.bias": "4 of 4 values differ",
        "up.bias": "float64 for float32",
        "up.weight": "[2, 4, 2, 2] for [3, 4, 2, 2]",
    }


def test_bits_are_bits() -> None:
    nan = torch.tensor([float("nan"), 0.0])
    assert same_bits(nan, nan.clone())
    assert not same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))


def test_the_digest_of_a_state_sees_values_flags_and_modes() -> None:
    made = model()
    first = state_digest(made)
    assert state_digest(model()) == first
    made.eval()
    assert state_digest(made) != first
    made.train()
    made.fc.bias.requires_grad_(False)
    assert state_digest(made) != first
    made.fc.bias.requires_grad_(True)
    with torch.no_grad():
        made.fc.weight[0, 0] += 1
    assert state_digest(made) != first
