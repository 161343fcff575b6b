"""The statistics of a model's tensors as a table: what ``ckpt summary --stats`` adds."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace

from ckpt_tools.analysis.statistics import Statistics, bytes_to_read, statistics_of
from ckpt_tools.analysis.summary import pick
from ckpt_tools.checkpoint import Checkpoint
from ckpt_tools.report import Report, Table, number, plain_json, sparkline

Progress = Callable[[int, str], AbstractContextManager[Callable[[int], None]]]
"""Given the bytes to read and what is done, a context with a function to be told of each number read."""


def with_statistics(
    report: Report, checkpoint: Checkpoint, *, select: str | None, keys: str | None, progress: Progress
) -> Report:
    """*report* with a table of every tensor's statistics and, in its data, the same under ``statistics``.

    The bytes of the state_dict at *select* are read once; *keys* keeps the names that match a glob.
    """
    state_dict, _ = pick(checkpoint, select)
    tensors = [t for t in state_dict.tensors if keys is None or fnmatch.fnmatchcase(t.name, keys)]
    with progress(bytes_to_read(tensors), f"reading {checkpoint.path}") as advance:
        found = list(statistics_of(tensors, progress=advance))
    rows: list[tuple[str, ...]] = []
    data: list[dict[str, object]] = []
    for tensor, numbers in zip(tensors, found, strict=True):
        if isinstance(numbers, Statistics):
            rows.append((tensor.name, tensor.dtype.name, *_cells(numbers)))
            data.append({"name": tensor.name, "dtype": tensor.dtype.name, **_fields(numbers)})
        else:
            rows.append((tensor.name, tensor.dtype.name, *[""] * 6, numbers.reason, ""))
            data.append({"name": tensor.name, "dtype": tensor.dtype.name, "reason": numbers.reason})
    columns = ("tensor", "dtype", ">min", ">max", ">mean", ">std", ">L2", ">zeros", "remarks", "histogram")
    table = Table("Statistics", columns, rows, "min, max, mean, std and L2 are of the finite elements")

    def collect() -> Mapping[str, object]:
        return {**report.data, "statistics": plain_json(data)}

    return replace(report, collect=collect, blocks=(*report.blocks, table))


def _cells(numbers: Statistics) -> tuple[str, ...]:
    def cell(value: float | int | None) -> str:
        return "" if value is None else number(value)

    remarks = []
    if numbers.basis != "value":
        remarks.append(f"of the {numbers.basis}")
    if numbers.nan:
        remarks.append(f"{numbers.nan:,} NaN")
    if numbers.infinite:
        remarks.append(f"{numbers.infinite:,} Inf")
    if numbers.subnormal:
        remarks.append(f"{numbers.subnormal:,} subnormal")
    if numbers.constant and numbers.count > 1:
        remarks.append("constant")
    return (
        cell(numbers.minimum),
        cell(numbers.maximum),
        cell(numbers.mean),
        cell(numbers.std),
        cell(numbers.l2),
        f"{numbers.zeros:,}",
        ", ".join(remarks),
        sparkline(numbers.histogram),
    )


def _fields(numbers: Statistics) -> dict[str, object]:
    return {
        "basis": numbers.basis,
        "count": numbers.count,
        "finite": numbers.finite,
        "min": numbers.minimum,
        "max": numbers.maximum,
        "mean": numbers.mean,
        "std": numbers.std,
        "l2": numbers.l2,
        "zeros": numbers.zeros,
        "subnormal": numbers.subnormal,
        "nan": numbers.nan,
        "positive_infinity": numbers.positive_infinity,
        "negative_infinity": numbers.negative_infinity,
        "constant": numbers.constant,
        "histogram": list(numbers.histogram),
        "sampled": numbers.sampled,
    }
