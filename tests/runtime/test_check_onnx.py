"""``ckpt check-onnx``: each way in which a file is not what the checkpoint is has a message of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from ckpt_tools.errors import CkptError  # noqa: E402
from ckpt_tools.serving.results import Export  # noqa: E402
from tests.runtime.onnx_models import done, saved  # noqa: E402


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with checkpoints, exported rightly: inline, with its data outside, and with several outputs."""
    folder = tmp_path_factory.mktemp("onnx")
    options: dict[str, Any] = {"inputs": ["2,3,8,8"], "dynamic": ["batch"], "seeds": 1}
    path = saved(folder)
    assert done(path, "Net", folder / "net.onnx", **options).passed
    assert done(path, "Net", folder / "outside.onnx", external_data="always", **options).passed
    named = saved(folder, "Named")
    assert done(named, "Named", folder / "named.onnx", **{**options, "inputs": ["2,3,8,8", "mask=2,5"]}).passed
    return folder


def changed(folder: Path, target: Path, change: Callable[[Any], None], source: str = "net.onnx") -> Path:
    """A copy of *source* whose model went through *change*."""
    proto = onnx.load(folder / source)
    change(proto)
    onnx.save(proto, target)
    return target


def checked(folder: Path, file: Path, model: str = "Net", **options: Any) -> Export:
    """The answer for *file*."""
    return done(folder / f"{model}.pt", model, file, write=False, **options)


def message(found: Export, code: str) -> str:
    """That of the problem of that code, of which there is one."""
    (one,) = [p.message for p in found.problems if p.code == code]
    return one


def test_the_file_as_it_was_made_passes_with_its_own_inputs(made: Path) -> None:
    found = checked(made, made / "net.onnx")
    assert (found.passed, found.exit_code) == (True, 0)
    assert found["exports"].verdict == "skipped"
    runs = [run["input"] for run in found["numbers"].facts["runs"]]  # type: ignore[attr-defined]
    assert runs == [f"{batch}×3×8×8, seed {seed}" for batch, seed in ((2, 0), (2, 1), (1, 0), (3, 0), (5, 0))]


def test_real_inputs(made: Path, tmp_path: Path) -> None:
    numpy.savez(tmp_path / "real.npz", x=numpy.full((3, 3, 8, 8), 0.5, "f4"))
    found = checked(made, made / "net.onnx", samples=str(tmp_path / "real.npz"), seeds=1)
    assert found.passed
    assert any("real.npz, 3×3×8×8" in run["input"] for run in found["numbers"].facts["runs"])  # type: ignore[attr-defined]
    numpy.savez(tmp_path / "two.npz", a=numpy.zeros(1), b=numpy.zeros(1))
    with pytest.raises(CkptError, match="holds 2 arrays for 1 inputs"):
        checked(made, made / "net.onnx", samples=str(tmp_path / "two.npz"))


def test_real_inputs_that_torch_does_not_take_are_an_error(made: Path, tmp_path: Path) -> None:
    numpy.savez(tmp_path / "real.npz", x=numpy.zeros((2, 4, 8, 8), "f4"))
    found = checked(made, made / "net.onnx", samples=str(tmp_path / "real.npz"), seeds=1)
    assert found.reason == "shape"
    assert "real.npz, 2×4×8×8: RuntimeError" in message(found, "torch-refuses")


def test_sizes_are_those_of_the_export_or_such_as_images_have(made: Path, tmp_path: Path) -> None:
    def forget(proto: Any) -> None:
        del proto.metadata_props[:]
        for axis, name in ((2, "height"), (3, "width")):
            proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name

    def contradict(proto: Any) -> None:
        (entry,) = [entry for entry in proto.metadata_props if entry.key == "ckpt_tools.input.x"]
        assert entry.value == "float32:2,3,8,8"
        entry.value = "float32:2,3,9,8"

    def first(change: Any) -> str:
        found = checked(made, changed(made, tmp_path / "x.onnx", change), seeds=1)
        return str(found["numbers"].facts["runs"][0]["input"])  # type: ignore[index]

    assert first(lambda proto: None) == "2×3×8×8, seed 0"
    assert first(contradict) == "2×3×8×8, seed 0"
    assert first(forget) == "2×3×64×64, seed 0"


def test_keywords_and_lists_are_written_down_too(made: Path, tmp_path: Path) -> None:
    found = checked(made, made / "named.onnx", "Named", seeds=1)
    assert found.passed, found.codes
    path = saved(tmp_path, "Listed")
    assert done(path, "Listed", tmp_path / "listed.onnx", inputs=["[3,8,8]"], seeds=1).passed
    assert done(path, "Listed", tmp_path / "listed.onnx", write=False, seeds=1).passed


def test_one_altered_weight_is_named_and_so_is_the_node(made: Path, tmp_path: Path) -> None:
    def alter(proto: Any) -> None:
        (tensor,) = [t for t in proto.graph.initializer if t.name == "fc.weight"]
        values = numpy_helper.to_array(tensor).copy()
        values[1, 2] += 0.5
        tensor.CopyFrom(numpy_helper.from_array(values, "fc.weight"))

    found = checked(made, changed(made, tmp_path / "altered.onnx", alter), bisect=True)
    assert found.reason == "weights"
    text = "1 initializer named as a tensor that is not it: fc.weight (1 of 40 values differ)"
    assert message(found, "altered-weights") == text
    assert found["numbers"].verdict == "failed"
    assert message(found, "first-diverging-node").endswith("of Gemm node_linear (of fc)")
    assert [p.remedy for p in found.problems if p.code == "export-differs"] == [""]  # it has been bisected


def test_one_altered_value_of_a_folded_weight(made: Path, tmp_path: Path) -> None:
    def alter(proto: Any) -> None:
        (tensor,) = [t for t in proto.graph.initializer if t.name == "conv.weight"]
        values = numpy_helper.to_array(tensor).copy()
        values[1, 2, 0, 0] *= 1.01
        tensor.CopyFrom(numpy_helper.from_array(values, "conv.weight"))

    found = checked(made, changed(made, tmp_path / "altered.onnx", alter))
    assert "conv.weight (" in message(found, "altered-weights")
    assert found["numbers"].verdict == "passed"  # it is too little to be seen in what comes out


def test_external_data_that_is_cut_absent_or_of_another_export(made: Path, tmp_path: Path) -> None:
    target, data = tmp_path / "outside.onnx", tmp_path / "outside.onnx.data"
    target.write_bytes((made / "outside.onnx").read_bytes())
    whole = (made / "outside.onnx.data").read_bytes()
    data.write_bytes(whole)
    assert checked(made, target, seeds=1).passed

    data.write_bytes(whole[:-8])
    onnx.checker.check_model(str(target))  # which sees nothing
    found = checked(made, target)
    assert (found.reason, found["shapes"].verdict) == ("file", "skipped")
    assert message(found, "external-data-cut").startswith("outside.onnx.data is cut: the bytes of 1 initializer (")

    data.write_bytes(whole[:-4] + b"\0\0\0\0")
    found = checked(made, target)
    assert found.reason == "file"
    assert "is not the file that was written with this model" in message(found, "external-data-differs")

    data.unlink()
    found = checked(made, target)
    assert message(found, "external-data-missing") == "outside.onnx.data, where weights are, is not there"


@pytest.mark.parametrize("location", ["../outside.onnx.data", "/etc/hostname", "a/../../b"])
def test_external_data_outside_the_folder_is_not_touched(made: Path, tmp_path: Path, location: str) -> None:
    proto = onnx.load(made / "outside.onnx", load_external_data=False)
    for tensor in proto.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    (tmp_path / "x.onnx").write_bytes(proto.SerializeToString())
    found = checked(made, tmp_path / "x.onnx")
    assert (found.reason, found["weights"].verdict, found["shapes"].verdict) == ("file", "skipped", "skipped")
    text = f"its weights would be read from outside its folder: {location}"
    assert message(found, "external-data-outside") == text


def test_outputs_in_another_order(made: Path, tmp_path: Path) -> None:
    def swap(proto: Any) -> None:
        first, second, third = [value.__class__.FromString(value.SerializeToString()) for value in proto.graph.output]
        del proto.graph.output[:]
        proto.graph.output.extend([third, second, first])

    inputs = ["2,3,8,8", "mask=2,5"]
    found = checked(made, changed(made, tmp_path / "x.onnx", swap, "named.onnx"), "Named", inputs=inputs, seeds=1)
    assert found.reason == "numbers"
    text = "the outputs come in another order than torch's: in that order they are logits, aux_mean, more"
    assert message(found, "outputs-permuted") == text


def test_nan_never_passes(made: Path, tmp_path: Path) -> None:
    def poison(proto: Any) -> None:
        (tensor,) = [t for t in proto.graph.initializer if t.name == "fc.bias"]
        values = numpy_helper.to_array(tensor).copy()
        values[3] = numpy.nan
        tensor.CopyFrom(numpy_helper.from_array(values, "fc.bias"))

    found = checked(made, changed(made, tmp_path / "nan.onnx", poison), absolute=1e9, relative=1e9)
    assert "2 of 10 values of the ONNX output are NaN, the first at [0, 3]" in message(found, "not-finite")
    assert found["numbers"].verdict == "failed"


def test_an_output_that_is_always_the_same_proves_little(made: Path, tmp_path: Path) -> None:
    state = torch.load(made / "Net.pt")
    state["fc.weight"].zero_()
    torch.save(state, tmp_path / "Net.pt")
    assert done(tmp_path / "Net.pt", "Net", tmp_path / "net.onnx", inputs=["2,3,8,8"], seeds=1).passed
    found = checked(tmp_path, tmp_path / "net.onnx")
    assert (found.passed, found["numbers"].verdict) == (True, "warning")
    assert message(found, "constant-output").startswith("output: torch returns the same for other inputs")


def after(proto: Any, operator: str, inputs: list[str], **attributes: Any) -> None:
    """Put a node behind the only output, under whose name the graph returns it."""
    (node,) = [node for node in proto.graph.node if node.output[0] == "output"]
    node.output[0] = "before"
    proto.graph.node.append(helper.make_node(operator, ["before", *inputs], ["output"], name="extra", **attributes))


def constant(proto: Any, name: str, values: list[int]) -> str:
    proto.graph.initializer.append(numpy_helper.from_array(numpy.array(values, "i8"), name))
    return name


def test_a_shape_that_would_broadcast(made: Path, tmp_path: Path) -> None:
    def average(proto: Any) -> None:
        after(proto, "ReduceMean", [constant(proto, "axes", [0])], keepdims=1)
        proto.graph.output[0].type.tensor_type.shape.dim[0].ClearField("dim_param")

    found = checked(made, changed(made, tmp_path / "mean.onnx", average), inputs=["2,3,8,8"], seeds=1)
    assert found.reason == "shape"
    messages = [p.message for p in found.problems if p.code == "other-shape"]
    assert messages[0] == (
        "2×3×8×8, seed 0, on cpu: output is 1×5, where torch returns 2×5, which would broadcast, and hide it from a "
        "careless comparison"
    )


def test_three_rows_whatever_the_batch(made: Path, tmp_path: Path) -> None:
    def loop(proto: Any) -> None:
        after(proto, "Slice", [constant(proto, "from", [0]), constant(proto, "to", [3]), constant(proto, "axis", [0])])

    found = checked(made, changed(made, tmp_path / "loop.onnx", loop), inputs=["3,3,8,8"], seeds=1)
    assert found.reason == "shape"
    text = "7×3×8×8, seed 0, on cpu: output is 3×5, where torch returns 7×5"
    assert text in [p.message for p in found.problems]


def test_batch_normalization_in_training_mode(made: Path, tmp_path: Path) -> None:
    def train(proto: Any) -> None:
        for name in ("scale", "shift", "mean", "var"):
            values = numpy.full(5, 0.0 if name in ("shift", "mean") else 1.0, "f4")
            proto.graph.initializer.append(numpy_helper.from_array(values, name))
        after(proto, "BatchNormalization", ["scale", "shift", "mean", "var"], training_mode=1)
        proto.graph.node[-1].output.extend(["new mean", "new var"])

    found = checked(made, changed(made, tmp_path / "train.onnx", train))
    assert found.reason == "file"
    assert message(found, "training-mode") == (
        "it was exported in training mode: 1 node BatchNormalization (extra) normalizes by the batch it is given"
    )


def test_a_fixed_batch_where_another_is_asked_for(made: Path, tmp_path: Path) -> None:
    def fix(proto: Any) -> None:
        for value in (proto.graph.input[0], proto.graph.output[0]):
            value.type.tensor_type.shape.dim[0].dim_value = 2

    file = changed(made, tmp_path / "fixed.onnx", fix)
    assert checked(made, file, seeds=1).passed
    found = checked(made, file, dynamic=["batch"], seeds=1)
    assert found.reason == "file"
    assert message(found, "axis-not-dynamic").startswith("axis 0 of x was to be dynamic (batch)")
    assert "for the following indices index: 0 Got: 1 Expected: 2" in message(found, "input-refused")


def test_cuda_where_there_is_none(made: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this onnxruntime has CUDA")
    found = checked(made, made / "net.onnx", provider="cuda")
    assert (found.reason, found.exit_code) == ("environment", 2)
    assert "is built without CUDAExecutionProvider" in message(found, "provider-not-available")
    found = checked(made, made / "net.onnx", provider="cuda", require_gpu=True)
    assert found.exit_code == 1
    assert message(found, "not-on-gpu").startswith("not verified on a GPU: cuda cannot be had here")


def test_the_cpu_is_no_gpu(made: Path) -> None:
    found = checked(made, made / "net.onnx", seeds=1, require_gpu=True)
    assert (found.reason, found.exit_code) == ("placement", 1)
    assert found["numbers"].verdict == "passed"


@pytest.mark.parametrize("content", [b"", b"nothing like a model"])
def test_what_is_no_model(made: Path, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.onnx"
    file.write_bytes(content)
    with pytest.raises(CkptError, match="is no ONNX model"):
        checked(made, file)


def test_a_model_that_the_checker_refuses(made: Path, tmp_path: Path) -> None:
    file = changed(made, tmp_path / "bad.onnx", lambda proto: after(proto, "NoSuchOperator", []))
    found = checked(made, file)
    assert found.reason == "file"
    assert "No Op registered for NoSuchOperator" in message(found, "invalid-model")


def test_latency_is_measured_when_it_is_asked_for(made: Path) -> None:
    found = checked(made, made / "net.onnx", seeds=1, latency=True)
    assert found.passed
    facts = found["latency"].facts
    assert set(facts) == {"with copies", "without copies", "torch eager", "device_bytes"}
    assert all(0 < facts[kind]["p50"] <= facts[kind]["p95"] for kind in facts if kind != "device_bytes")  # type: ignore[index]


def test_half_precision_in_the_file_widens_the_tolerance(made: Path, tmp_path: Path) -> None:
    def narrow(proto: Any) -> None:
        after(proto, "Cast", [], to=TensorProto.FLOAT16)
        proto.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16

    found = checked(made, changed(made, tmp_path / "half.onnx", narrow), seeds=1)
    assert found.passed
    assert found["numbers"].facts["tolerance"] == "0.005·max|ref| + 0.01·|ref|"
