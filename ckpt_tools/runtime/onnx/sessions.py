"""Sessions of onnxruntime that run where they were told to, or not at all.

onnxruntime goes on with the CPU in four cases, each of which is refused here: the provider's name is not one that it
has (it warns); the provider's library does not load (it logs, and still calls it available); the provider cannot be
initialized (it prints, and tries again with the CPU); a run fails (it prints, and tries again with the CPU).
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import math
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import field
from typing import Any

import numpy
import torch
from torch import Tensor

from ckpt_tools.records import record
from ckpt_tools.runtime.onnx.environment import EXECUTION, NVIDIA, WEBGPU

LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")
"""How much onnxruntime may rewrite the graph, least first; the last is what it does by default."""


class Refused(Exception):
    """The session cannot be had as it was asked for; *kind* is the code of the problem, *remedy* what to do."""

    def __init__(self, kind: str, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.remedy = remedy


@record
class Target:
    """Where to run: a provider as the command line has it, with its *options*, and whether the CPU may take nodes.

    *software* is whether the device turned out to be a program that runs on the CPU.
    """

    provider: str
    options: Mapping[str, str] = field(default_factory=dict)
    software: bool = False

    @property
    def execution(self) -> str:
        """What onnxruntime calls the provider."""
        return EXECUTION[self.provider]


def target(provider: str, options: Mapping[str, str], *, tf32: bool, runtime: Any = None) -> Target:
    """The target, its library loaded. Raises `Refused` where that fails, or there is no device for it."""
    runtime = runtime or importlib.import_module("onnxruntime")
    if provider in NVIDIA:
        _load_libraries(provider, runtime)
    if provider == "cuda":
        return Target(provider, {"use_tf32": "1" if tf32 else "0", **options})
    if provider == "tensorrt" and not tf32:
        # its provider has no option for it; CUDA's libraries look when they start
        os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
    if provider == "webgpu":
        devices = webgpu_devices(runtime)
        return Target(provider, dict(options), software=_is_software(runtime, devices[0]))
    return Target(provider, dict(options))


def _load_libraries(provider: str, runtime: Any) -> None:
    """Load the libraries of CUDA, cuDNN and TensorRT where pip has put them, in which no loader looks."""
    with contextlib.redirect_stdout(sys.stderr):
        if hasattr(runtime, "preload_dlls"):
            runtime.preload_dlls()
        if provider == "tensorrt":
            with contextlib.suppress(ImportError):
                importlib.import_module("tensorrt")


def webgpu_devices(runtime: Any, library: str | None = None) -> list[Any]:
    """The devices of the WebGPU provider, loaded from *library*. Raises `Refused` where there is none."""
    name = EXECUTION["webgpu"]
    found = [device for device in runtime.get_ep_devices() if device.ep_name == name]
    if not found:
        if library is None:
            library = importlib.import_module(WEBGPU).get_library_path()
        register(runtime, "ckpt-tools WebGPU", library)
        found = [device for device in runtime.get_ep_devices() if device.ep_name == name]
    if not found:
        raise Refused(
            "no-webgpu-device",
            "the WebGPU provider finds no device here",
            "Run where there is a GPU; ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER=1 lets it use a Vulkan in software",
        )
    kinds = runtime.OrtHardwareDeviceType
    return sorted(found, key=lambda device: device.device.type != kinds.GPU)


def register(runtime: Any, name: str, library: str) -> None:
    """Load a provider's *library*. Raises `Refused`, with what the system said, where it does not load."""
    try:
        runtime.register_execution_provider_library(name, library)
    except Exception as error:
        raise Refused(
            "provider-library",
            f"the provider's library {os.path.basename(library)} does not load: {_said(error)}",
            "Install what it needs, or reinstall the package that it comes from",
        ) from None


def _is_software(runtime: Any, device: Any) -> bool:
    about = " ".join(f"{key} {value}" for key, value in dict(device.device.metadata).items()).lower()
    software = any(name in about for name in ("llvmpipe", "lavapipe", "swiftshader", "software"))
    return software or device.device.type != runtime.OrtHardwareDeviceType.GPU


# --- opening


@record
class Session:
    """A session that has been opened, and what it was opened for."""

    raw: Any
    target: Target

    @property
    def outputs(self) -> list[str]:
        """The names of what comes out."""
        return [value.name for value in self.raw.get_outputs()]

    def run(self, tensors: Mapping[str, Tensor]) -> list[Tensor]:
        """The outputs, in the file's order. Raises `Refused` where the run fails: nothing is tried on the CPU."""
        try:
            values = self.raw.run_with_ort_values(None, {name: ort_value(t) for name, t in tensors.items()})
        except Exception as error:
            raise Refused(
                "run-fails",
                f"running it on {self.target.execution} failed: {_said(error)}",
                "Nothing was retried elsewhere",
            ) from None
        return [torch_tensor(value) for value in values]


def open_session(
    model: str | bytes,
    where: Target,
    *,
    level: str = LEVELS[-1],
    strict: bool = False,
    profile: str | None = None,
    folder: str | None = None,
    packed: bool = False,
    runtime: Any = None,
) -> Session:
    """A session on *where* and on nothing else. With *strict* no node may go to the CPU.

    Only with *packed* does the CPU make copies of weights in the order in which its kernels read them: it is faster
    then, computes the same, and needs as much memory again.

    *profile* is the start of the name of the file in which the run is recorded, *folder* where the external data of a
    model that is given as bytes lies. Raises `Refused`, which says which of
    the fallbacks of onnxruntime would have set in.
    """
    runtime = runtime or importlib.import_module("onnxruntime")
    execution = where.execution
    if where.provider != "webgpu" and execution not in runtime.get_available_providers():
        raise Refused(
            "provider-not-available",
            f"this onnxruntime has no {execution}; it would warn, and run on the CPU",
            "pip uninstall -y onnxruntime && pip install 'ckpt-tools[gpu]'",
        )
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, level)
    if strict and where.provider != "cpu":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if where.provider == "cpu" and not packed:
        options.add_session_config_entry("session.disable_prepacking", "1")
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    arguments: dict[str, Any] = {"enable_fallback": 0}
    if where.provider == "webgpu":
        options.add_provider_for_devices(webgpu_devices(runtime)[:1], dict(where.options))
    else:
        arguments["providers"] = _providers(where)
    said: list[str] = []
    try:
        with _native_output(said):
            raw = runtime.InferenceSession(model, options, **arguments)
    except Exception as error:
        why = _library_error("".join(said))
        raise (_not_loaded(execution, why) if why else _refusal(error, where)) from None
    raw.disable_fallback()
    if execution not in raw.get_providers():
        raise _not_loaded(execution, _library_error("".join(said)))
    return Session(raw, where)


def _not_loaded(execution: str, why: str) -> Refused:
    """The error of a provider whose library did not load, for which the log says *why*, if it says anything."""
    remedy = "Install the CUDA and cuDNN that this onnxruntime-gpu needs: pip install 'onnxruntime-gpu[cuda,cudnn]'"
    if "libcuda.so" in why:
        remedy = "libcuda.so.1 comes with NVIDIA's driver: this machine, or its container, has none"
    elif "libnvinfer" in why:
        major = re.search(r"libnvinfer\w*\.so\.(\d+)", why)
        which = f"'tensorrt=={major[1]}.*'" if major else "tensorrt"
        remedy = f"libnvinfer is TensorRT, which has to be installed: pip install {which}"
    return Refused(
        "provider-library",
        f"onnxruntime calls {execution} available, but its library did not load{f': {why}' if why else ''}; the "
        "session would have run on the CPU",
        remedy,
    )


def _providers(where: Target) -> list[tuple[str, dict[str, str]]]:
    """The provider, and for what TensorRT does not take CUDA's.

    The CPU's is there in any case: a session in which it is named refuses to be told that it may not be used.
    """
    names = [(where.execution, dict(where.options))]
    if where.provider == "tensorrt":
        names.append((EXECUTION["cuda"], {}))
    return names


def _refusal(error: Exception, where: Target) -> Refused:
    text = _said(error)
    if "fallback to cpu ep" in text.lower() or "disable_cpu_ep_fallback" in text.lower():
        return Refused("cpu-nodes", f"not every node can run on {where.execution}: {text}")
    if where.provider == "cpu":
        return Refused("no-session", f"onnxruntime does not take the model: {text}")
    return Refused(
        "provider-init",
        f"{where.execution} cannot be initialized, where onnxruntime would go on with the CPU: {text}",
        "The message is the provider's own; a driver that is too old or a device in use are usual",
    )


@contextlib.contextmanager
def _native_output(said: list[str]) -> Iterator[None]:
    """What libraries write to standard error meanwhile is in *said* at the end of the block, and passed on."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            text = file.read()
            os.write(2, text)
            said.append(text.decode("utf-8", "replace"))


def _library_error(text: str) -> str:
    """The line of onnxruntime's log that says why a library did not load."""
    for line in text.splitlines():
        match = re.search(r"Failed to load (?:library|shared library) .*|\S+: cannot open shared object file.*", line)
        if match is not None:
            return re.sub(r"\x1b\[[\d;]*m", "", match[0]).strip()
    return ""


def _said(error: BaseException) -> str:
    text = re.sub(r"\x1b\[[\d;]*m", "", " ".join(str(error).split()))
    text = re.sub(r"\S*/onnxruntime_src/\S+ ", "", text)
    return text if len(text) < 400 else f"{text[:399]}…"


# --- values

_ONNX_TYPES = {torch.bfloat16: 16}


def ort_value(tensor: Tensor, device: str = "cpu") -> Any:
    """*tensor* as onnxruntime takes it; bfloat16 by its bits, as numpy lacks the type."""
    import onnxruntime

    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype in _ONNX_TYPES:
        bits = tensor.view(torch.int16).numpy().view(numpy.uint16)
        return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, _ONNX_TYPES[tensor.dtype])
    return onnxruntime.OrtValue.ortvalue_from_numpy(tensor.numpy(), device, 0)


def torch_tensor(value: Any) -> Tensor:
    """An output of onnxruntime as a tensor of its own memory."""
    if not value.is_tensor():
        raise Refused("no-tensor", f"an output is no tensor but {value.data_type()}")
    if value.data_type() == "tensor(bfloat16)":
        count = math.prod(value.shape())
        bits = (ctypes.c_uint16 * count).from_address(value.data_ptr()) if count else bytearray()
        found = torch.frombuffer(bits, dtype=torch.bfloat16) if count else torch.empty(0, dtype=torch.bfloat16)
        return found.reshape(value.shape()).clone()
    return torch.from_numpy(numpy.array(value.numpy(), copy=True))
