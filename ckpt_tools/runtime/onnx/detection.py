"""What torchvision's detection models do that ``torch.export`` cannot follow, in words that it can.

How many boxes there are is known only when a model runs, and at three places torchvision asks for that number in
Python, where an export ends. Within `exportable` these are functions that compute the same without asking:

- ``batched_nms`` chooses between two ways by the number of boxes. It becomes an operator of its own, which is written
  as ONNX's NonMaxSuppression with a row of scores for each class. No box is moved for it, as the one of torchvision's
  ways does that rounds, so that what is kept is what the other keeps.
- ``MultiScaleRoIAlign`` takes the ``len`` of a tensor, which must be an int: it becomes the first size of its shape.
- ``BoxCoder.decode`` reshapes only where there are boxes: it does so in any case, to sizes that are given in full.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator, Mapping
from typing import Any
from unittest.mock import patch

import numpy
import torch
from torch import Tensor

SCHEMA = "(Tensor boxes, Tensor scores, Tensor idxs, float iou_threshold) -> Tensor"


@contextlib.contextmanager
def exportable() -> Iterator[tuple[Mapping[Any, Any], set[str]]]:
    """Let torchvision's detection models be exported in the block.

    Gives the table of translations that the exporter has to be told, and the names of the functions that were called
    in place of torchvision's; both are empty where no torchvision is loaded.
    """
    used: set[str] = set()
    if "torchvision.models.detection" not in sys.modules:
        yield {}, used
        return
    from torchvision.models.detection._utils import BoxCoder
    from torchvision.ops import boxes as box_operators
    from torchvision.ops import poolers

    original = box_operators.batched_nms
    operator = _operator(original)

    def batched_nms(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
        used.add("torchvision.ops.batched_nms")
        kept: Tensor = operator(boxes, scores, idxs, iou_threshold)
        return kept

    def decode(self: Any, rel_codes: Tensor, boxes: list[Tensor]) -> Tensor:
        used.add("torchvision.models.detection BoxCoder.decode")
        joined = torch.cat(boxes)
        decoded: Tensor = self.decode_single(rel_codes, joined)
        return decoded.reshape(joined.shape[0], rel_codes.shape[1] // 4, 4)

    with contextlib.ExitStack() as stack:
        # whoever has imported the function by its name holds it too
        for module in [module for module in list(sys.modules.values()) if _holds(module, original)]:
            stack.enter_context(patch.object(module, "batched_nms", batched_nms))
        stack.enter_context(patch.object(poolers, "len", _length, create=True))
        stack.enter_context(patch.object(BoxCoder, "decode", decode))
        yield {torch.ops.ckpt_tools.batched_nms.default: _batched_nms_in_onnx}, used


def _holds(module: Any, function: Any) -> bool:
    return getattr(module, "__dict__", {}).get("batched_nms") is function


def _length(value: Any) -> Any:
    return value.shape[0] if isinstance(value, Tensor) else len(value)


def _operator(original: Any) -> Any:
    """The operator ``ckpt_tools::batched_nms``: torchvision's function where it runs, any number of rows elsewhere."""
    if not hasattr(torch.ops.ckpt_tools, "batched_nms"):
        made = torch.library.custom_op("ckpt_tools::batched_nms", original, mutates_args=(), schema=SCHEMA)
        made.register_fake(_any_rows)
    return torch.ops.ckpt_tools.batched_nms


def _any_rows(boxes: Tensor, scores: Tensor, idxs: Tensor, iou_threshold: float) -> Tensor:
    return boxes.new_empty(torch.library.get_ctx().new_dynamic_size(), dtype=torch.int64)


def _batched_nms_in_onnx(boxes: Any, scores: Any, idxs: Any, iou_threshold: float) -> Any:
    """The rows of *boxes* that are kept, best first: in ONNX boxes may suppress each other within a class only.

    A row of scores for each class has its boxes' own, and -inf for those of other classes, which are below the lowest
    score that is looked at.
    """
    from onnxscript import opset18 as op

    # a float32 that is above the threshold in float64, with which torchvision compares, is above this one
    threshold = numpy.float32(iou_threshold)
    if float(threshold) > iou_threshold:
        threshold = numpy.nextafter(threshold, numpy.float32(-math.inf))
    zero, one, two = (op.Constant(value_ints=[value]) for value in (0, 1, 2))
    labels = op.Cast(idxs, to=7)
    scores = op.Cast(scores, to=1)
    classes = op.Range(
        op.Constant(value_int=0),
        op.Add(op.ReduceMax(op.Concat(labels, zero, axis=0), keepdims=0), op.Constant(value_int=1)),
        op.Constant(value_int=1),
    )
    own = op.Equal(op.Unsqueeze(classes, one), op.Unsqueeze(labels, zero))
    rows = op.Where(own, op.Unsqueeze(scores, zero), op.Constant(value_float=-math.inf))
    found = op.NonMaxSuppression(
        op.Unsqueeze(op.Cast(boxes, to=1), zero),
        op.Unsqueeze(rows, zero),
        op.Constant(value_ints=[2**63 - 1]),
        op.Constant(value_floats=[float(threshold)]),
        op.Constant(value_floats=[float(numpy.finfo(numpy.float32).min)]),
    )
    kept = op.Squeeze(op.Slice(found, two, op.Constant(value_ints=[3]), one), one)
    # by their place first, as of equal scores TopK takes those in front, and so does torch
    placed, _ = op.TopK(kept, op.Shape(kept), largest=0)
    _, order = op.TopK(op.Gather(scores, placed), op.Shape(kept))
    return op.Gather(placed, order)
