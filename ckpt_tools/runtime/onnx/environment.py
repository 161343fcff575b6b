"""Whether the packages are there and go together, and what there is to run on."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import torch

from ckpt_tools.errors import MissingDependency
from ckpt_tools.verification.results import Problem

EXECUTION = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
}
"""What onnxruntime calls each provider."""

NVIDIA = ("cuda", "tensorrt")
"""The providers that run on CUDA."""

RUNTIMES = ("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino")
"""Distributions that install the one package ``onnxruntime``, each over the other."""

WEBGPU = "onnxruntime_ep_webgpu"


def require(*, exporting: bool) -> None:
    """Raise `MissingDependency` for what is not installed at all."""
    for name in ("onnx", *(("onnxscript",) if exporting else ()), "onnxruntime"):
        try:
            importlib.import_module(name)
        except ImportError:
            raise MissingDependency(name, "onnx", "exporting to ONNX" if exporting else "checking ONNX") from None


def versions() -> dict[str, str]:
    """The versions that results depend on, by distribution."""
    names = ("ckpt-tools", "torch", "torchvision", "onnx", "onnxscript", *RUNTIMES, "onnxruntime-ep-webgpu")
    found = {name: _version(name) for name in names}
    return {name: version for name, version in found.items() if version}


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def faults(provider: str, runtime: Any = None) -> Iterator[Problem]:
    """What in this environment keeps *provider* from running, or makes it unsure which runtime that is."""
    runtime = runtime or importlib.import_module("onnxruntime")
    both = [name for name in RUNTIMES if _version(name)]
    if len(both) > 1:
        yield Problem(
            "several-runtimes",
            "error" if provider in NVIDIA else "warning",
            f"{' and '.join(both)} are installed: they write the same files, the one installed last has won in part",
            f"pip uninstall -y {' '.join(both)}, then install the one that is wanted",
        )
    if provider in NVIDIA:
        yield from _cuda(provider, runtime)
    elif provider == "webgpu":
        yield from _webgpu(runtime)


def _cuda(provider: str, runtime: Any) -> Iterator[Problem]:
    name = EXECUTION[provider]
    if name not in runtime.get_available_providers():
        remedy = "pip uninstall -y onnxruntime && pip install 'ckpt-tools[gpu]'"
        yield Problem(
            "provider-not-available",
            "error",
            f"this onnxruntime ({runtime.__version__}) is built without {name}; it would run on the CPU and say so "
            "in a warning alone",
            remedy,
        )
        return
    built, ours = str(getattr(runtime, "cuda_version", "") or ""), str(torch.version.cuda or "")
    if built and ours and built.split(".")[0] != ours.split(".")[0]:
        yield Problem(
            "cuda-major",
            "warning",
            f"onnxruntime-gpu is built for CUDA {built}, torch for CUDA {ours}: torch's libraries do not serve "
            "onnxruntime, which needs those of its own major version",
            f"Install the libraries of CUDA {built.split('.')[0]} (pip install onnxruntime-gpu[cuda,cudnn]), or a "
            "torch of that version",
        )
    if not torch.cuda.is_available() and shutil.which("nvidia-smi") is None:
        yield Problem(
            "no-cuda-device",
            "error",
            f"{name} was asked for, and this machine shows no CUDA device (torch finds none, there is no nvidia-smi)",
            "Run where there is one, or use --provider cpu",
        )


def _webgpu(runtime: Any) -> Iterator[Problem]:
    if not _version("onnxruntime-ep-webgpu"):
        yield Problem(
            "provider-not-available",
            "error",
            "the WebGPU provider is not installed",
            "pip install onnxruntime-ep-webgpu, with onnxruntime 1.31 or newer",
        )
    elif not hasattr(runtime, "register_execution_provider_library"):
        yield Problem(
            "runtime-too-old",
            "error",
            f"onnxruntime {runtime.__version__} takes no provider from a library",
            "pip install 'onnxruntime>=1.31'",
        )


def best_provider() -> str:
    """The GPU's provider where there is one that can be used, else ``cpu``."""
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if EXECUTION["cuda"] in available and torch.cuda.is_available():
        return "cuda"
    return "cpu"


def gpu_facts(device: int = 0) -> dict[str, str]:
    """What a session on the CUDA *device* runs with, as far as that can be found out: device, driver, CUDA, cuDNN."""
    import onnxruntime

    found = {
        "device": torch.cuda.get_device_name(device) if torch.cuda.is_available() else "",
        "driver": _driver(),
        "CUDA": str(getattr(onnxruntime, "cuda_version", "") or torch.version.cuda or ""),
        "cuDNN": str(torch.backends.cudnn.version()) if torch.backends.cudnn.is_available() else "",
    }
    return {name: value for name, value in found.items() if value}


def _driver(version: str = "/proc/driver/nvidia/version") -> str:
    """The version of NVIDIA's driver, from its own program or, where a container has none, from the kernel."""
    if shutil.which("nvidia-smi") is not None:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        done = subprocess.run(query, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode == 0:
            return done.stdout.partition("\n")[0].strip()
    try:
        with open(version, encoding="utf-8") as file:
            found = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)", file.readline())
    except OSError:
        return ""
    return found[1] if found is not None else ""
