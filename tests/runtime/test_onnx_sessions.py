"""Sessions that never fall back; the fallbacks are acted out by a stand-in."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from ckpt_tools.runtime.onnx import environment  # noqa: E402
from ckpt_tools.runtime.onnx.sessions import Refused, Session, Target, open_session, register, target  # noqa: E402

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"


class Raw:
    """A session of the stand-in."""

    def __init__(self, runtime: "Runtime", model: Any, options: Any, **arguments: Any) -> None:
        runtime.arguments, self.runtime = arguments, runtime
        if runtime.says:
            os.write(2, runtime.says.encode())
        if runtime.refuses:
            raise RuntimeError(runtime.refuses)
        strict = "session.disable_cpu_ep_fallback" in options.entries
        assert not (strict and CPU in [name for name, _ in arguments["providers"]])  # a conflict for onnxruntime
        self.fallback = True

    def get_providers(self) -> list[str]:
        return [CPU] if self.runtime.loses else [CUDA, CPU]

    def disable_fallback(self) -> None:
        self.fallback = False

    def run_with_ort_values(self, names: Any, feeds: Any) -> Any:
        assert not self.fallback
        raise RuntimeError("[ONNXRuntimeError] : 11 : EP_FAIL : CUDA error cudaErrorNoKernelImageForDevice")


class Runtime:
    """As much of onnxruntime as a session takes, with what goes wrong in it."""

    __version__ = "1.99"
    GraphOptimizationLevel = onnxruntime.GraphOptimizationLevel
    cuda_version = "12.8"

    def __init__(self, available: tuple[str, ...] = (CUDA, CPU), *, refuses: str = "", loses: bool = False) -> None:
        self.available, self.refuses, self.loses, self.says = list(available), refuses, loses, ""
        self.arguments: dict[str, Any] = {}
        self.loaded = False

    def preload_dlls(self) -> None:
        self.loaded = True

    def get_available_providers(self) -> list[str]:
        return self.available

    def SessionOptions(self) -> Any:
        self.options = SimpleNamespace(entries={})
        self.options.add_session_config_entry = self.options.entries.__setitem__
        return self.options

    def InferenceSession(self, model: Any, options: Any, **arguments: Any) -> Raw:
        return Raw(self, model, options, **arguments)


def refused(runtime: Runtime, **options: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        open_session("x.onnx", Target("cuda"), runtime=runtime, **options)
    return caught.value


def test_first_fallback_a_name_that_is_not_available() -> None:
    error = refused(Runtime((CPU,)))
    assert error.kind == "provider-not-available"
    assert str(error) == f"this onnxruntime has no {CUDA}; it would warn, and run on the CPU"


def test_second_fallback_a_library_that_does_not_load(capfd: pytest.CaptureFixture[str]) -> None:
    runtime = Runtime(loses=True)
    runtime.says = (
        "\x1b[1;31m2026 [E:onnxruntime:Default, provider_bridge_ort.cc:2251] Failed to load library "
        "libonnxruntime_providers_cuda.so with error: libcublasLt.so.12: cannot open shared object file\x1b[m\n"
    )
    error = refused(runtime)
    assert error.kind == "provider-library"
    assert str(error) == (
        f"onnxruntime calls {CUDA} available, but its library did not load: Failed to load library "
        "libonnxruntime_providers_cuda.so with error: libcublasLt.so.12: cannot open shared object file; the session "
        "would have run on the CPU"
    )
    assert "libcublasLt.so.12" in capfd.readouterr().err  # what libraries say is passed on


@pytest.mark.parametrize(
    "library, remedy",
    [
        ("libcuda.so.1", "libcuda.so.1 comes with NVIDIA's driver"),
        ("libnvinfer.so.10", "libnvinfer is TensorRT, which has to be installed: pip install 'tensorrt==10.*'"),
        ("libcudnn.so.9", "Install the CUDA and cuDNN"),
    ],
)
def test_the_remedy_is_of_the_library_that_is_missing(library: str, remedy: str) -> None:
    runtime = Runtime(refuses="Please install TensorRT libraries")  # as TensorRT's provider refuses
    runtime.says = f"Failed to load library x.so with error: {library}: cannot open shared object file: No such file"
    error = refused(runtime)
    assert error.kind == "provider-library"
    assert error.remedy.startswith(remedy)


def test_third_fallback_a_provider_that_cannot_start() -> None:
    runtime = Runtime(refuses="CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version")
    error = refused(runtime)
    assert error.kind == "provider-init"
    assert "driver version is insufficient" in str(error)
    assert runtime.arguments["enable_fallback"] == 0


def test_fourth_fallback_a_run_that_fails() -> None:
    session = open_session("x.onnx", Target("cuda"), runtime=Runtime())
    with pytest.raises(Refused) as caught:
        session.run({"x": torch.zeros(1)})
    assert caught.value.kind == "run-fails"
    assert "cudaErrorNoKernelImageForDevice" in str(caught.value)


def test_a_strict_session_takes_the_cpu_away() -> None:
    runtime = Runtime()
    open_session("x.onnx", Target("cuda"), strict=True, runtime=runtime)
    assert runtime.options.entries == {"session.disable_cpu_ep_fallback": "1"}
    says = "This session contains graph nodes that are assigned to the default CPU EP, but fallback to CPU EP has been"
    assert refused(Runtime(refuses=says), strict=True).kind == "cpu-nodes"


def test_the_real_one_takes_a_strict_session_as_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx import TensorProto, helper

    azure = "AzureExecutionProvider"  # which is in every build for the CPU, and takes no node of ONNX's own
    if azure not in onnxruntime.get_available_providers():
        pytest.skip(f"this onnxruntime has no {azure}")
    monkeypatch.setitem(environment.EXECUTION, "cuda", azure)
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [ports[0]], [ports[1]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10).SerializeToString()
    with pytest.raises(Refused) as caught:
        open_session(model, Target("cuda"), strict=True)
    assert caught.value.kind == "cpu-nodes"
    session = open_session(model, Target("cuda"))
    assert session.raw.get_providers() == [azure, CPU]
    assert session.run({"x": torch.tensor([-1.0, 2.0])})[0].tolist() == [0.0, 2.0]


def test_what_tensorrt_does_not_take_goes_to_cuda() -> None:
    tensorrt = "TensorrtExecutionProvider"
    runtime = Runtime((tensorrt, CUDA, CPU), loses=True)
    with pytest.raises(Refused):
        open_session("x.onnx", Target("tensorrt", {"trt_fp16_enable": "1"}), strict=True, runtime=runtime)
    assert runtime.arguments["providers"] == [(tensorrt, {"trt_fp16_enable": "1"}), (CUDA, {})]


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
@pytest.mark.parametrize("tf32", [False, True])
def test_tf32_is_off_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, provider: str, tf32: bool) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "")
    monkeypatch.setitem(sys.modules, "tensorrt", None)  # which is not installed
    runtime = Runtime()
    found = target(provider, {"device_id": "1"}, tf32=tf32, runtime=runtime)
    assert runtime.loaded
    switch = {"use_tf32": "1" if tf32 else "0"} if provider == "cuda" else {}
    assert found.options == {**switch, "device_id": "1"}
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == ("0" if provider == "tensorrt" and not tf32 else "")


def test_a_library_that_is_none(tmp_path: Path) -> None:
    library = tmp_path / "libprovider.so"
    library.write_text("not a library")
    with pytest.raises(Refused) as caught:
        register(onnxruntime, "ckpt-tools test", str(library))
    assert caught.value.kind == "provider-library"
    assert str(caught.value).startswith("the provider's library libprovider.so does not load: ")


# --- the environment


def versions(monkeypatch: pytest.MonkeyPatch, **found: str) -> None:
    monkeypatch.setattr(environment, "_version", lambda name: found.get(name.replace("-", "_"), ""))


def codes(provider: str, runtime: Any) -> list[tuple[str, str]]:
    return [(problem.code, problem.severity) for problem in environment.faults(provider, runtime)]


def test_two_runtimes_in_one_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, onnxruntime="1.32", onnxruntime_gpu="1.31")
    (problem,) = environment.faults("cpu", Runtime())
    assert (problem.code, problem.severity) == ("several-runtimes", "warning")
    assert problem.remedy.startswith("pip uninstall -y onnxruntime onnxruntime-gpu, then")
    assert ("several-runtimes", "error") in codes("cuda", Runtime())


def test_cuda_of_another_major_version(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, onnxruntime_gpu="1.31")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    (problem,) = environment.faults("cuda", Runtime())
    assert problem.code == "cuda-major"
    assert problem.message.startswith("onnxruntime-gpu is built for CUDA 12.8, torch for CUDA 13.0")


def test_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, onnxruntime_gpu="1.31")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(environment.shutil, "which", lambda name: None)
    assert codes("cuda", Runtime()) == [("no-cuda-device", "error")]
    assert codes("cuda", Runtime((CPU,))) == [("provider-not-available", "error")]


def test_the_driver_is_found_without_its_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(environment.shutil, "which", lambda name: None)
    proc = tmp_path / "version"
    proc.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.14  Thu Feb 22 01:44:30 UTC 2024\nGCC 12\n")
    assert environment._driver(str(proc)) == "550.54.14"
    proc.write_text("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n")
    assert environment._driver(str(proc)) == "580.65.06"
    assert environment._driver(str(tmp_path / "none")) == ""


def test_webgpu_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    versions(monkeypatch, onnxruntime="1.32")
    assert codes("webgpu", Runtime()) == [("provider-not-available", "error")]
    versions(monkeypatch, onnxruntime="1.20", onnxruntime_ep_webgpu="0.4")
    assert codes("webgpu", Runtime()) == [("runtime-too-old", "error")]


def test_values_of_every_type_go_through_onnxruntime(tmp_path: Path) -> None:
    from onnx import TensorProto, helper, save

    def kinds() -> Iterator[tuple[int, Any]]:
        yield TensorProto.BFLOAT16, torch.tensor([[1.5, -2.0]], dtype=torch.bfloat16)
        yield TensorProto.FLOAT16, torch.tensor([[1.5, -2.0]], dtype=torch.float16)
        yield TensorProto.DOUBLE, torch.tensor([[1.5, -2.0]], dtype=torch.float64).t()
        yield TensorProto.BOOL, torch.tensor([True, False])
        yield TensorProto.INT64, torch.tensor(7)

    for index, (kind, tensor) in enumerate(kinds()):
        ports = [helper.make_tensor_value_info(name, kind, list(tensor.shape)) for name in "xy"]
        graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [ports[0]], [ports[1]])
        path = str(tmp_path / f"{index}.onnx")
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
        session: Session = open_session(path, Target("cpu"))
        (found,) = session.run({"x": tensor})
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(found, tensor)
