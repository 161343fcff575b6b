"""What is asked of the process that exports and checks, in a form that goes through a pipe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, fields
from typing import Any

from ckpt_tools.records import record

DTYPES = ("float16", "bfloat16")
"""What weights can be exported as, in place of their own type."""

EXTERNAL_DATA = ("auto", "always", "never")
"""Whether weights go into a file beside the model; auto: where they take more than 256 MiB."""

PROVIDERS = ("cpu", "cuda", "tensorrt", "webgpu", "auto")
"""Where onnxruntime is to run the model; auto: on a GPU where there is one."""


@record
class Job:
    """An ONNX file to make of a checkpoint, or one that exists, to be held against the checkpoint.

    *path*, *model*, *args*, *kwargs*, *trust* and *select* are as for verify. *onnx* is the file; with *write* it is
    made, in eval mode, else only checked. *inputs* are as of ``--input`` (``1,3,224,224``, ``ids=int64:1,128``,
    ``[3,320,320]``), *dynamic* as of ``--dynamic`` (``batch``, ``0:batch,2:h``, ``x=0:batch``), *ranges* as of
    ``--range`` (``0:255``, ``ids=0:30522``). *samples* is a ``.npz`` of real inputs, *seeds* how many made-up ones
    each size gets. *absolute* and *relative* replace the tolerance that type and device have by default:
    ``|d| ≤ absolute·max|ref| + relative·|ref|``. *seconds* is the time limit.
    """

    path: str
    model: str
    onnx: str
    write: bool = True
    args: Sequence[object] = ()
    kwargs: Mapping[str, object] = field(default_factory=dict)
    trust: bool = False
    select: str | None = None
    inputs: Sequence[str] = ()
    dynamic: Sequence[str] = ()
    ranges: Sequence[str] = ()
    opset: int | None = None
    dtype: str | None = None
    input_names: Sequence[str] = ()
    output_names: Sequence[str] = ()
    external_data: str = "auto"
    keep_stack_traces: bool = False
    force: bool = False
    samples: str | None = None
    seeds: int = 2
    absolute: float | None = None
    relative: float | None = None
    provider: str = "cpu"
    provider_options: Mapping[str, str] = field(default_factory=dict)
    tf32: bool = False
    require_gpu: bool = False
    allow_cpu_shape_ops: bool = False
    bisect: bool = False
    latency: bool = False
    seconds: float = 1800.0

    def as_json(self) -> dict[str, Any]:
        """As it goes through the pipe."""
        return {each.name: getattr(self, each.name) for each in fields(self)}
