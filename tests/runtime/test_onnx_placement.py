"""The proof of where nodes run, from a profile, and what stands against it."""

from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from ckpt_tools.runtime.onnx import placement
from ckpt_tools.serving.job import Job

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


def event(name: str, operator: str, provider: str, *outputs: Any) -> dict[str, Any]:
    about = {"op_name": operator, "provider": provider, "output_type_shape": list(outputs)}
    return {"cat": "Node", "name": f"{name}_kernel_time", "args": about}


def test_placement_counts_nodes_once_copies_apart_and_knows_sizes() -> None:
    events = [
        event("conv", "Conv", CUDA, {"float": [1, 8, 8, 8]}),
        event("conv", "Conv", CUDA, {"float": [1, 8, 8, 8]}),  # a second run, or a loop
        event("shape", "Shape", CPU, {"int64": [4]}),
        event("gather", "Gather", CPU, {"int64": []}),
        event("where", "NonZero", CPU, {"int64": [1, 500]}),
        event("copy", "MemcpyToHost", CUDA, {"float": [1]}),
        {"cat": "Session", "name": "model_run", "args": {}},
        {"cat": "Node", "name": "conv_fence_before", "args": {"op_name": "Conv"}},
    ]
    found = placement.placement(events, [SimpleNamespace(ep_name=CUDA, get_nodes=lambda: [1])], CUDA)
    assert (found.nodes, found.total, found.copies) == ({CUDA: 1, CPU: 3}, 4, 1)
    assert found.on_cpu == [("shape", "Shape"), ("gather", "Gather"), ("where", "NonZero")]
    assert found.shape_only == [("shape", "Shape"), ("gather", "Gather")]
    assert found.assigned == {CUDA: 1}


def test_what_tensorrt_leaves_to_cuda_is_on_the_gpu() -> None:
    tensorrt = "TensorrtExecutionProvider"
    events = [event("engine", "TRTKernel_graph_0", tensorrt), event("nms", "NonMaxSuppression", CUDA)]
    found = placement.placement(events, None, tensorrt)
    assert (found.nodes, found.on_cpu) == ({tensorrt: 1, CUDA: 1}, [])
    assert misplaced(found) == []
    assert placement.placement(events, None, CUDA).on_cpu == [("engine", "TRTKernel_graph_0")]


def misplaced(found: placement.Placement, **options: Any) -> list[tuple[str, str, str]]:
    job = Job("x.pt", "net.py:Net", "x.onnx", provider="cuda", **options)
    state: Any = SimpleNamespace(job=job)
    return [(problem.code, problem.severity, problem.message) for problem in placement.misplaced(state, found)]


def test_nodes_that_compute_sizes_may_be_allowed_on_the_cpu() -> None:
    cuda = "CUDAExecutionProvider"
    sizes = [("shape", "Shape"), ("gather", "Gather")]
    found = placement.Placement(cuda, {cuda: 10, "CPUExecutionProvider": 2}, sizes, sizes, 2, {cuda: 12})
    assert misplaced(found) == [
        (
            "cpu-nodes",
            "error",
            f"2 nodes of 12 did not run on {cuda}: Shape shape, Gather gather; all of them compute sizes, which "
            "--allow-cpu-shape-ops allows",
        ),
        ("memcpy", "warning", "2 Memcpy nodes move values between the device and the CPU within a run"),
    ]
    assert [found[:2] for found in misplaced(found, allow_cpu_shape_ops=True)] == [("memcpy", "note")]
    other = placement.Placement(
        cuda, {cuda: 10, "CPUExecutionProvider": 3}, [*sizes, ("det", "Det")], sizes, 0, {cuda: 13}
    )
    text = f"1 node of 13 did not run on {cuda}: Det det"
    assert misplaced(other, allow_cpu_shape_ops=True) == [("cpu-nodes", "error", text)]


def test_a_profile_without_the_device_and_one_that_contradicts_the_assignment() -> None:
    cuda = "CUDAExecutionProvider"
    assert ("cpu-nodes", "error", f"no node ran on {cuda}") in misplaced(placement.Placement(cuda, {}, [], [], 0, {}))
    (problem,) = misplaced(placement.Placement(cuda, {cuda: 3}, [], [], 0, {cuda: 1, "CPUExecutionProvider": 2}))
    assert problem[0] == "assignment-differs"
