"""The rules about numbers: what each finds, and what it leaves alone."""

from __future__ import annotations

import numpy as np
from safetensors.numpy import save

from tests.audit.cases import Case, Cases, Make, made
from tests.hostile.third_search import sparse

GENERATOR = np.random.default_rng(0)
WEIGHTS = GENERATOR.normal(0, 0.02, (16, 32)).astype(np.float32)


def of(**tensors: np.ndarray) -> Make:
    """A safetensors file of *tensors*; two underscores in a name stand for a dot."""
    return made(save({name.replace("__", "."): value for name, value in tensors.items()}), "model.safetensors")


def spoilt(value: float, dtype: type = np.float32) -> np.ndarray:
    weights = WEIGHTS.astype(dtype)
    weights[3, 4] = value
    return weights


def layers(last: float) -> dict[str, np.ndarray]:
    scales = [1.0] * 8 + [last]
    return {f"layer{i}__weight": (WEIGHTS * scale).astype(np.float32) for i, scale in enumerate(scales)}


VARIANCE = np.full(8, 0.5, np.float32)
CASES: Cases = {
    "N101": Case(of(fc__weight=spoilt(np.nan)), of(fc__weight=WEIGHTS), "1 of 512 values are NaN", tensor="fc.weight"),
    "N102": Case(
        of(fc__weight=spoilt(-np.inf)), of(fc__weight=WEIGHTS), "1 of 512 values are infinite", tensor="fc.weight"
    ),
    "N109": Case(
        made(sparse(1 << 40)),
        made(sparse(3)),
        "an index of it is 1,099,511,627,776, where there are 4",
        tensor="weight",
    ),
    "N103": Case(
        of(fc__weight=np.zeros((4, 4), np.float32)),
        of(fc__weight=WEIGHTS, fc__bias=np.zeros(4, np.float32), index=np.ones((2, 2), np.int64)),
        "all 16 values are 0",
        tensor="fc.weight",
    ),
    "N104": Case(
        of(fc__weight=(WEIGHTS * 1e-4).astype(np.float16)),
        of(fc__weight=WEIGHTS.astype(np.float16), zero=np.zeros((16, 16), np.float16)),
        "that are not zero are subnormal",
        tensor="fc.weight",
    ),
    "N105": Case(
        of(bn__running_var=np.array([1.0, -0.5], np.float32)),
        of(bn__running_var=VARIANCE, bn__running_mean=-VARIANCE),
        "the least of 2 variances is -0.5",
        tensor="bn.running_var",
    ),
    "N106": Case(
        of(bn__running_var=np.array([1.0, 0.0, 0.0], np.float32)),
        of(bn__running_var=VARIANCE, bn__running_mean=np.zeros(8, np.float32)),
        "2 of 3 channels have a variance of zero",
        tensor="bn.running_var",
    ),
    "N107": Case(
        of(fc__weight=spoilt(-40000, np.float16)),
        of(fc__weight=spoilt(-30000, np.float16), wide=spoilt(1e6)),
        "its largest magnitude is 40000",
        tensor="fc.weight",
    ),
    "N108": Case(of(fc__weight=spoilt(1e30)), of(fc__weight=spoilt(0.3)), "makes up nearly all", tensor="fc.weight"),
}
