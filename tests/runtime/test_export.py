"""``ckpt export``: what was asked is in the file, and the file computes what torch does, or it is not kept."""

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from ckpt_tools.analysis.digest import digest  # noqa: E402
from ckpt_tools.errors import CkptError  # noqa: E402
from ckpt_tools.formats import open_checkpoint  # noqa: E402
from tests.runtime.onnx_models import HERE, done, saved  # noqa: E402

SIZES = ["2,3,8,8"]


def problem(found: Any, code: str) -> Any:
    """The problem of that code, of which there is one."""
    (one,) = [p for p in found.problems if p.code == code]
    return one


def test_what_is_asked_is_in_the_file(tmp_path: Path) -> None:
    path, target = saved(tmp_path), tmp_path / "net.onnx"
    found = done(path, "Net", target, inputs=SIZES, dynamic=["0:batch,2:height,3:width"], opset=21)
    assert (found.passed, found.exit_code, found.reason) == (True, 0, "")
    assert [check.name for check in found.checks if check.verdict != "passed"] == ["placement", "latency"]
    proto = onnx.load(target)
    assert proto.opset_import[0].version == 21
    (value,) = proto.graph.input
    dims = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
    assert (value.name, dims) == ("x", ["batch", 3, "height", "width"])
    assert [value.name for value in proto.graph.output] == ["output"]
    runs = {run["input"] for run in found["numbers"].facts["runs"]}  # type: ignore[attr-defined]
    assert runs == {
        "2×3×8×8, seed 0", "2×3×8×8, seed 1", "1×3×8×8, seed 0", "3×3×8×8, seed 0", "5×3×8×8, seed 0",
        "2×3×16×8, seed 0", "2×3×8×16, seed 0",
    }  # fmt: skip
    assert sorted(p.name for p in tmp_path.iterdir()) == ["Net.pt", "net.onnx"]


def test_the_file_says_where_it_comes_from_and_names_no_path(tmp_path: Path) -> None:
    path, target = saved(tmp_path), tmp_path / "net.onnx"
    assert done(path, "Net", target, inputs=SIZES).passed
    metadata = {entry.key: entry.value for entry in onnx.load(target).metadata_props}
    assert metadata["ckpt_tools.checkpoint"] == "Net.pt"
    state = open_checkpoint(str(path)).model_state_dict()
    assert state is not None
    assert metadata["ckpt_tools.checkpoint_digest"] == digest(state.tensors).sha256
    assert metadata["ckpt_tools.class"].endswith("Net")
    assert metadata["ckpt_tools.torch"] == torch.__version__
    assert metadata["ckpt_tools.onnx"] == onnx.__version__
    assert b".py" not in target.read_bytes()
    kept = tmp_path / "kept.onnx"
    assert done(path, "Net", kept, inputs=SIZES, keep_stack_traces=True).passed
    assert HERE.encode() in kept.read_bytes()


def test_folded_tensors_are_named_and_the_rest_is_bit_for_bit(tmp_path: Path) -> None:
    found = done(saved(tmp_path), "Net", tmp_path / "net.onnx", inputs=SIZES)
    facts = found["weights"].facts
    assert facts["equal"] == ["fc.weight", "fc.bias"] or facts["equal"] == ["fc.bias", "fc.weight"]
    assert sorted(facts["folded"]) == ["conv.bias", "conv.weight"]  # type: ignore[call-overload]
    assert set(facts["absorbed"]) == {f"bn.{name}" for name in (  # type: ignore[call-overload]
        "weight", "bias", "running_mean", "running_var", "num_batches_tracked")}  # fmt: skip
    assert facts["altered"] == {}


def test_several_inputs_and_outputs_in_a_dict(tmp_path: Path) -> None:
    target = tmp_path / "named.onnx"
    found = done(saved(tmp_path, "Named"), "Named", target, inputs=["2,3,8,8", "mask=2,5"], dynamic=["batch"])
    assert found.passed
    proto = onnx.load(target)
    assert [value.name for value in proto.graph.input] == ["x", "mask"]
    assert [value.name for value in proto.graph.output] == ["logits", "aux_mean", "more"]
    renamed = tmp_path / "renamed.onnx"
    names: dict[str, Any] = {"input_names": ["a", "b"], "output_names": ["u", "v", "w"]}
    assert done(tmp_path / "Named.pt", "Named", renamed, inputs=["2,3,8,8", "mask=2,5"], **names).passed
    proto = onnx.load(renamed)
    assert [value.name for value in (*proto.graph.input, *proto.graph.output)] == ["a", "b", "u", "v", "w"]


def test_tied_weights_and_integers(tmp_path: Path) -> None:
    options: dict[str, Any] = {"inputs": ["int64:1,7"], "dynamic": ["0:batch,1:length"], "ranges": ["ids=0:49"]}
    found = done(saved(tmp_path, "Tied"), "Tied", tmp_path / "tied.onnx", **options)
    assert found.passed
    facts = found["weights"].facts
    assert (facts["folded"], facts["absorbed"], facts["altered"]) == ([], [], {})


@pytest.mark.parametrize("external", ["always", "never"])
def test_external_data(tmp_path: Path, external: str) -> None:
    target = tmp_path / "net.onnx"
    assert done(saved(tmp_path), "Net", target, inputs=SIZES, external_data=external).passed
    data = tmp_path / "net.onnx.data"
    assert data.exists() == (external == "always")
    if external == "always":
        import hashlib

        metadata = {e.key: e.value for e in onnx.load(target, load_external_data=False).metadata_props}
        assert metadata["ckpt_tools.external_data_sha256"] == hashlib.sha256(data.read_bytes()).hexdigest()
        again = done(tmp_path / "Net.pt", "Net", target, write=False)
        assert again.passed


def test_float16(tmp_path: Path) -> None:
    target = tmp_path / "net.onnx"
    found = done(saved(tmp_path), "Net", target, inputs=SIZES, dtype="float16")
    assert found.passed
    kinds = {tensor.data_type for tensor in onnx.load(target).graph.initializer if tensor.dims and tensor.dims[0] > 4}
    assert kinds == {onnx.TensorProto.FLOAT16}
    assert found["numbers"].facts["tolerance"] == "0.005·max|ref| + 0.01·|ref|"


@pytest.mark.parametrize("model, options", [("Net", {"inputs": SIZES}), ("Tied", {"inputs": ["int64:1,7"]})])
def test_bfloat16_runs_on_the_cpu_by_rounding(tmp_path: Path, model: str, options: dict[str, Any]) -> None:
    target = tmp_path / "net.onnx"
    found = done(saved(tmp_path, model), model, target, dtype="bfloat16", ranges=["0:49"], **options)
    assert found.passed, found.codes
    proto = onnx.load(target)
    assert proto.opset_import[0].version == 22
    kinds = {tensor.data_type for tensor in proto.graph.initializer if tensor.dims and tensor.dims[0] > 4}
    assert kinds == {onnx.TensorProto.BFLOAT16}
    assert found["numbers"].facts["tolerance"] == "0.04·max|ref| + 0.05·|ref|"
    assert problem(found, "bfloat16-by-rounding").message == (
        "the CPU has no kernels for bfloat16: its nodes ran in float32, and what they put out was rounded"
    )
    state = torch.load(tmp_path / f"{model}.pt")
    state["fc.weight"] += 1
    torch.save(state, tmp_path / f"{model}.pt")
    again = done(tmp_path / f"{model}.pt", model, target, write=False, bisect=True, ranges=["0:49"])
    assert problem(again, "first-diverging-node").message.endswith(" (of fc)")


def test_bfloat16_in_an_opset_that_lacks_it(tmp_path: Path) -> None:
    found = done(saved(tmp_path), "Net", tmp_path / "net.onnx", inputs=SIZES, dtype="bfloat16", opset=20)
    assert found.reason == "shape"
    one = problem(found, "no-session")
    assert "Type 'tensor(bfloat16)' of input parameter (x) of operator (Conv)" in one.message
    assert one.remedy == "bfloat16 needs opset 22 in convolutions and the like"


def test_the_checkpoint_and_an_existing_file_stay_as_they_are(tmp_path: Path) -> None:
    path, target = saved(tmp_path), tmp_path / "net.onnx"
    before = path.read_bytes()
    target.write_bytes(b"mine")
    found = done(path, "Branch", target, inputs=SIZES, dynamic=["batch"])
    assert found.reason == "numbers"
    assert (path.read_bytes(), target.read_bytes()) == (before, b"mine")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["Net.pt", "net.onnx"]
    assert done(path, "Net", target, inputs=SIZES).passed
    assert onnx.load(target).graph.node


def test_the_checkpoint_is_never_written_over(tmp_path: Path) -> None:
    path = saved(tmp_path)
    before = path.read_bytes()
    (tmp_path / "link.onnx").hardlink_to(path)
    (tmp_path / "net.onnx.data").symlink_to(path)
    for target in (path, tmp_path / "link.onnx", tmp_path / "net.onnx"):
        with pytest.raises(CkptError, match="is the checkpoint; an export does not write over what it reads"):
            done(path, "Net", target, inputs=SIZES, seeds=1, force=True)
    assert path.read_bytes() == before
    folder = tmp_path / "sharded"
    folder.mkdir()
    shard = folder / "model-1.safetensors"
    from safetensors.torch import save_file

    state = torch.load(path)
    save_file(state, shard)
    index = {"metadata": {}, "weight_map": dict.fromkeys(state, shard.name)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CkptError, match=r"model-1\.safetensors: is the checkpoint"):
        done(folder / "model.safetensors.index.json", "Net", shard, inputs=SIZES, seeds=1, force=True)


def test_data_that_is_not_of_the_export_is_not_replaced_unasked(tmp_path: Path) -> None:
    path, data = saved(tmp_path), tmp_path / "net.onnx.data"
    data.write_bytes(b"mine")
    options: dict[str, Any] = {"inputs": SIZES, "seeds": 1}
    assert done(path, "Net", tmp_path / "net.onnx", **options).passed  # which needs no such file
    assert data.read_bytes() == b"mine"
    (tmp_path / "net.onnx").unlink()
    with pytest.raises(CkptError, match=r"net\.onnx\.data: exists already"):
        done(path, "Net", tmp_path / "net.onnx", external_data="always", **options)
    assert data.read_bytes() == b"mine"
    assert done(path, "Net", tmp_path / "net.onnx", external_data="always", force=True, **options).passed


def test_data_of_the_file_that_is_replaced_goes_with_it(tmp_path: Path) -> None:
    path, target = saved(tmp_path), tmp_path / "net.onnx"
    assert done(path, "Net", target, inputs=SIZES, seeds=1, external_data="always").passed
    assert done(path, "Net", target, inputs=SIZES, seeds=1, force=True).passed
    assert sorted(p.name for p in tmp_path.iterdir()) == ["Net.pt", "net.onnx"]


def test_a_folder_that_is_not_there_or_stands_in_the_way(tmp_path: Path) -> None:
    path = saved(tmp_path)
    with pytest.raises(CkptError, match=r"cannot be written: (there is no folder|No such file)"):
        done(path, "Net", tmp_path / "no" / "net.onnx", inputs=SIZES)
    (tmp_path / "net.onnx").mkdir()
    with pytest.raises(CkptError, match="cannot be written: Is a directory"):
        done(path, "Net", tmp_path / "net.onnx", inputs=SIZES, seeds=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["Net.pt", "net.onnx"]


def test_a_list_of_images(tmp_path: Path) -> None:
    target = tmp_path / "listed.onnx"
    found = done(saved(tmp_path, "Listed"), "Listed", target, inputs=["[3,8,8]"], seeds=1)
    assert found.passed, found.codes
    assert [value.name for value in onnx.load(target).graph.output] == ["boxes", "scores"]


def test_a_model_with_a_memory_is_exported_as_the_checkpoint_has_it(tmp_path: Path) -> None:
    found = done(saved(tmp_path, "Counting"), "Counting", tmp_path / "net.onnx", inputs=SIZES)
    assert found.passed, found.codes
    assert problem(found, "stateful").message == (
        "forward writes to calls, last: the file has no memory, each run begins with the checkpoint's"
    )
    assert "model-changed" not in found.codes


# --- faults


def test_a_loop_over_the_batch_makes_its_size_a_constant(tmp_path: Path) -> None:
    found = done(saved(tmp_path), "Loop", tmp_path / "net.onnx", inputs=SIZES, dynamic=["batch"])
    assert (found.reason, found.exit_code) == ("file", 1)
    assert problem(found, "axis-not-dynamic").message.startswith(
        "axis 0 of x was to be dynamic (batch), but the exporter made it 2 for good"
    )
    assert "torch takes it, the file on cpu does not" in problem(found, "input-refused").message
    assert not (tmp_path / "net.onnx").exists()


def test_a_branch_on_the_batch_size(tmp_path: Path) -> None:
    found = done(saved(tmp_path), "Branch", tmp_path / "net.onnx", inputs=SIZES, dynamic=["batch"])
    assert found.reason == "numbers"
    one = problem(found, "export-differs")
    assert one.message.startswith("5×3×8×8, seed 0, output on cpu: 25 of 25 values are too far apart")
    assert "at every level of onnxruntime's optimization" in one.message
    assert one.remedy == "Only with 5×3×8×8, seed 0: forward may branch on a size, and one branch was traced"


def test_dropout_that_never_stops(tmp_path: Path) -> None:
    found = done(saved(tmp_path), "AlwaysDrops", tmp_path / "net.onnx", inputs=SIZES)
    assert found.reason == "file"
    assert problem(found, "training-mode").message.startswith("it was exported in training mode: 1 node Dropout")


def test_a_model_pickled_in_training_mode_is_exported_in_eval_mode(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.5))
    assert model.training
    torch.save(model, tmp_path / "whole.pt")
    from ckpt_tools.runtime.onnx import checks
    from ckpt_tools.serving.job import Job
    from ckpt_tools.serving.results import Export

    job = Job(str(tmp_path / "whole.pt"), "pickle", str(tmp_path / "w.onnx"), trust=True, inputs=["2,4"])
    found = Export(job.path, job.model, job.onnx, True, list(checks(job)))
    assert found.passed
    assert {node.op_type for node in onnx.load(tmp_path / "w.onnx").graph.node} <= {"Gemm", "BatchNormalization"}


def test_an_opset_that_is_not_reached(tmp_path: Path) -> None:
    found = done(saved(tmp_path), "Net", tmp_path / "net.onnx", inputs=SIZES, opset=9)
    assert found.reason == "file"
    assert problem(found, "opset-not-reached").message == "opset 9 was asked for, the exporter made opset 18"


def test_an_input_that_torch_does_not_take(tmp_path: Path) -> None:
    found = done(saved(tmp_path), "Net", tmp_path / "net.onnx", inputs=["2,4,8,8"])
    assert found.reason == "export"
    assert problem(found, "forward-fails").message.startswith("torch does not take the input: RuntimeError")
    assert found["file"].verdict == "skipped"


@pytest.mark.parametrize("step", ["export", "save"])
def test_an_exporter_that_gives_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    from ckpt_tools.runtime.onnx import export as exporter

    def give_up(*arguments: Any, **options: Any) -> Any:
        raise exporter.ExportFailed("RuntimeError: no way")

    monkeypatch.setattr(exporter, step, give_up)
    found = done(saved(tmp_path), "Net", tmp_path / "net.onnx", inputs=SIZES)
    assert (found.reason, found.codes) == ("export", ["export-failed"])
    assert problem(found, "export-failed").message == "RuntimeError: no way"
    assert [p.name for p in tmp_path.iterdir()] == ["Net.pt"]


def test_weights_of_another_class(tmp_path: Path) -> None:
    found = done(saved(tmp_path, "Tied"), "Net", tmp_path / "net.onnx", inputs=SIZES)
    assert found.reason == "model"
    assert found["exports"].message == "there is no filled model"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"inputs": []}, "there is no input to export with"),
        ({"inputs": SIZES, "dynamic": ["y=0:batch"]}, "'y=0:batch': there is no input 'y'"),
        ({"inputs": SIZES, "dynamic": ["7:batch"]}, "'7:batch': no input has an axis 7"),
        ({"inputs": SIZES, "dynamic": ["0-batch"]}, "'0-batch' names no axes"),
        ({"inputs": SIZES, "ranges": ["9:1"]}, "'9:1' is no range"),
        ({"inputs": SIZES, "input_names": ["a", "b"]}, "2 names for 1 inputs"),
        ({"inputs": ["x=2,3,8,8", "x=2,3,8,8"]}, "x is given twice"),
    ],
)
def test_questions_that_make_no_sense(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(CkptError) as caught:
        done(saved(tmp_path), "Net", tmp_path / "net.onnx", **options)
    assert caught.value.problem == message
    assert [p.name for p in tmp_path.iterdir()] == ["Net.pt"]
