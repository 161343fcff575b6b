"""On a CUDA device: ``pytest -m gpu -n 0 tests`` runs all of these; docs/export.md has what has to be installed."""

import json
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
onnxruntime = pytest.importorskip("onnxruntime")

from tests.runtime.onnx_models import HERE, done, saved  # noqa: E402

CUDA = "CUDAExecutionProvider"

pytestmark = pytest.mark.gpu


def exported(tmp_path: Path, **options: Any) -> Any:
    settings: dict[str, Any] = {"inputs": ["2,3,8,8"], "dynamic": ["batch"], "provider": "cuda", **options}
    return done(saved(tmp_path), "Net", tmp_path / "net.onnx", **settings)


def test_every_node_is_proven_to_run_on_cuda(tmp_path: Path) -> None:
    found = exported(tmp_path, require_gpu=True, latency=True)
    assert found.passed, found.codes
    facts: Any = found["placement"].facts
    assert set(facts["nodes"]) == {CUDA}
    assert facts["memcpy"] == 0
    assert "TF32 off, " in facts["verdict"]
    assert "driver " in facts["verdict"]
    latency: Any = found["latency"].facts
    assert latency["torch eager"]["p50"] > 0
    assert latency["device_bytes"] >= 0


def test_tf32_is_within_its_own_tolerance(tmp_path: Path) -> None:
    found = exported(tmp_path, tf32=True)
    assert found.passed, found.codes
    assert found["numbers"].facts["tolerance"] == "0.005·max|ref| + 0.01·|ref|"
    assert "TF32 on, " in str(found["placement"].facts["verdict"])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(tmp_path: Path, dtype: str) -> None:
    path = saved(tmp_path, "Tied")
    options: dict[str, Any] = {"inputs": ["int64:1,7"], "ranges": ["0:49"], "provider": "cuda", "dtype": dtype}
    found = done(path, "Tied", tmp_path / "tied.onnx", **options)
    assert found["numbers"].verdict == "passed", found.codes


def test_an_operator_without_a_kernel_on_cuda(tmp_path: Path) -> None:
    path = saved(tmp_path, "Determinant")
    found = done(path, "Determinant", tmp_path / "d.onnx", inputs=["2,4,4"], provider="cuda", require_gpu=True)
    assert found.reason == "placement"
    facts: Any = found["placement"].facts
    assert [node["operator"] for node in facts["on_cpu"]] == ["Det"]


def test_what_is_known_of_the_device(tmp_path: Path) -> None:
    verdict = str(exported(tmp_path)["placement"].facts["verdict"])
    assert torch.cuda.get_device_name(0) in verdict
    assert f"CUDA {onnxruntime.cuda_version}" in verdict
    assert "cuDNN 9" in verdict


def test_nodes_that_compute_sizes_are_told_from_others(tmp_path: Path) -> None:
    # sizes are computed on the CPU by CUDA's provider, which leaves them there on purpose
    found = exported(tmp_path, inputs=["2,3,8,8"], dynamic=["0:batch,2:height,3:width"], allow_cpu_shape_ops=True)
    assert found["placement"].verdict != "failed", found.codes
    facts: Any = found["placement"].facts
    assert len(facts["shape_only"]) == len(facts["on_cpu"])


def test_tensorrt_with_cuda_behind_it(run: Any, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt")
    outcome = run(
        "export", saved(tmp_path), "--model", f"{HERE}:Net", "--input", "2,3,8,8", "-o", tmp_path / "net.onnx",
        "--provider", "tensorrt", "--seeds", "1", "--require-gpu", "--format", "json",
    )  # fmt: skip
    assert outcome.exit_code == 0, outcome.stdout + outcome.stderr
    (found,) = json.loads(outcome.stdout)["files"]
    (placement,) = [check for check in found["checks"] if check["name"] == "placement"]
    assert placement["facts"]["nodes"]["TensorrtExecutionProvider"] >= 1
    assert set(placement["facts"]["nodes"]) <= {"TensorrtExecutionProvider", CUDA}
    assert "TF32 off" in placement["message"]


def test_auto_takes_the_gpu(tmp_path: Path) -> None:
    found = exported(tmp_path, provider="auto", require_gpu=True)
    assert found.passed, found.codes
    assert found["environment"].facts["provider"] == "cuda"
