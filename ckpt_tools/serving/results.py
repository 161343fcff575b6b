"""The checks of ``ckpt export`` and ``ckpt check-onnx``, and what they come to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ckpt_tools.records import record
from ckpt_tools.verification.results import Check, Checked

CHECKS: dict[str, str] = {
    "environment": "the packages are there, and the provider that was asked for",
    "opens": "the checkpoint is whole and holds weights",
    "builds": "the class can be imported and built",
    "keys": "names, shapes and types are those of the class",
    "loads": "the weights fill the class",
    "exports": "torch.onnx.export makes a model of it",
    "file": "the file is whole, and what was asked is in it",
    "weights": "its initializers are the checkpoint's",
    "shapes": "outputs have the shapes and types that torch's have",
    "numbers": "outputs have the values that torch's have",
    "placement": "the nodes run where they are meant to",
    "latency": "how long a run takes",
}
"""The checks in their order, and what each one means."""

_REASONS = {
    "opens": "model",
    "builds": "model",
    "keys": "model",
    "loads": "model",
    "exports": "export",
    "shapes": "shape",
}


@record
class Export(Checked):
    """What came of one file: the checks, all of `CHECKS` in order.

    *path* is the checkpoint, *model* the class as it was named, *onnx* the file; *written* is whether it was made
    here. *output* is what class and exporter printed, the last of it where that was long.
    """

    path: str
    model: str
    onnx: str
    written: bool
    checks: Sequence[Check]
    output: str = ""

    @property
    def passed(self) -> bool:
        """Whether no check failed; warnings do not count."""
        return not self.reason

    @property
    def reason(self) -> str:
        """Why not, in a word: environment, model, export, file, weights, shape, numbers or placement; "" if passed."""
        for check in self.checks:
            if check.verdict == "failed":
                return _REASONS.get(check.name, check.name)
        return ""

    @property
    def exit_code(self) -> int:
        """0 where it passed, 2 where the environment did not allow to find out, else 1."""
        failed = [check.name for check in self.checks if check.verdict == "failed"]
        # with --require-gpu the placement has failed too: that there is no GPU is then an answer
        return 2 if failed == ["environment"] else 1 if failed else 0

    def as_json(self) -> dict[str, Any]:
        """As it stands in ``--format json``."""
        return {
            "path": self.path,
            "model": self.model,
            "onnx": self.onnx,
            "written": self.written,
            "passed": self.passed,
            "reason": self.reason,
            "checks": [check.as_json() for check in self.checks],
            "output": self.output,
        }
