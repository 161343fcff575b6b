"""The path to a device, whole: on a Vulkan that runs on the CPU, which the reports never call a GPU.

``CKPT_TOOLS_VULKAN`` names the folder of a SwiftShader (``.ci/vulkan`` finds or fetches one); skipped without.
"""

import json
import os
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxruntime_ep_webgpu")

from tests.runtime.onnx_models import HERE, done, saved  # noqa: E402

VULKAN = os.environ.get("CKPT_TOOLS_VULKAN", "")
WEBGPU = "WebGpuExecutionProvider"

pytestmark = pytest.mark.skipif(not VULKAN, reason="CKPT_TOOLS_VULKAN names no Vulkan in software")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two files that are right on the CPU."""
    made = tmp_path_factory.mktemp("webgpu")
    options: dict[str, Any] = {"seeds": 1, "dynamic": ["batch"]}
    assert done(saved(made), "Net", made / "net.onnx", inputs=["2,3,8,8"], **options).passed
    assert done(saved(made, "Determinant"), "Determinant", made / "det.onnx", inputs=["2,4,4"], **options).passed
    return made


def checked(run: Any, folder: Path, *words: str, file: str = "net", model: str = "Net") -> tuple[int, dict[str, Any]]:
    """The exit code and the answer of a check on WebGPU."""
    outcome = run(
        "check-onnx", folder / f"{file}.onnx", "--against", folder / f"{model}.pt", "--model", f"{HERE}:{model}",
        "--provider", "webgpu", "--seeds", "1", "--format", "json", *words,
        env={
            "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER": "1",
            "VK_ICD_FILENAMES": f"{VULKAN}/vk_swiftshader_icd.json",
            "LD_LIBRARY_PATH": f"{VULKAN}:{os.environ.get('LD_LIBRARY_PATH', '')}",
        },
    )  # fmt: skip
    assert outcome.stdout, outcome.stderr
    (found,) = json.loads(outcome.stdout)["files"]
    found["checks"] = {check["name"]: check for check in found["checks"]}
    return outcome.exit_code, found


def test_every_node_on_the_device_in_a_strict_session(run: Any, folder: Path) -> None:
    code, found = checked(run, folder, "--latency")
    assert (code, found["reason"]) == (0, "")
    placement = found["checks"]["placement"]
    nodes = placement["facts"]["nodes"]
    assert set(nodes) == {WEBGPU}
    verdict = f"{nodes[WEBGPU]}/{nodes[WEBGPU]} nodes on {WEBGPU}, 0 Memcpy, a software adapter, not verified on a GPU"
    assert placement["message"] == verdict
    assert set(placement["facts"]["assigned"]) == {WEBGPU}  # before nodes are fused, so there may be more
    runs = found["checks"]["numbers"]["facts"]["runs"]
    assert [(run["on"], run["ok"]) for run in runs if run["on"] == "webgpu"] == [("webgpu", True)] * 4
    assert found["checks"]["latency"]["facts"]["with copies"]["p50"] > 0


def test_a_software_adapter_is_no_gpu(run: Any, folder: Path) -> None:
    code, found = checked(run, folder, "--require-gpu")
    assert (code, found["reason"]) == (1, "placement")
    (problem,) = found["checks"]["placement"]["problems"]
    assert problem["code"] == "not-on-gpu"
    assert "a software adapter is no GPU" in problem["message"]


def test_one_node_that_is_forced_to_the_cpu(run: Any, folder: Path) -> None:
    code, found = checked(run, folder, "--provider-option", "forceCpuNodeNames=node_linear")
    assert (code, found["reason"]) == (1, "placement")
    placement = found["checks"]["placement"]
    assert placement["facts"]["on_cpu"] == [{"node": "node_linear", "operator": "Gemm"}]
    assert placement["facts"]["memcpy"] == 1
    total = sum(placement["facts"]["nodes"].values())
    cpu, memcpy = placement["problems"]
    assert cpu["message"] == f"1 node of {total} did not run on {WEBGPU}: Gemm node_linear"
    assert (memcpy["code"], memcpy["severity"]) == ("memcpy", "warning")
    assert found["checks"]["numbers"]["verdict"] == "passed"


def test_an_operator_without_a_kernel(run: Any, folder: Path) -> None:
    code, found = checked(run, folder, "--allow-cpu-shape-ops", file="det", model="Determinant")
    assert (code, found["reason"]) == (1, "placement")
    assert [node["operator"] for node in found["checks"]["placement"]["facts"]["on_cpu"]] == ["Det"]


def test_numbers_that_no_device_reaches(run: Any, folder: Path) -> None:
    code, found = checked(run, folder, "--atol", "0", "--rtol", "0")
    assert (code, found["reason"]) == (1, "numbers")
