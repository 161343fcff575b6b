"""``ckpt check-onnx``: whether an ONNX file computes what a checkpoint does."""

from __future__ import annotations

from typing import Any

import click

from ckpt_tools.cli.model import ModelChoice, model_options
from ckpt_tools.cli.output import output_options
from ckpt_tools.cli.serving import FORMATS, carry_out, check_options


@click.command("check-onnx")
@click.argument("onnx", metavar="MODEL.onnx")
@click.option("--against", required=True, metavar="PATH", help="The checkpoint.")
@model_options(required=True)
@check_options
@output_options(*FORMATS)
def check_onnx(
    onnx: str, against: str, model: ModelChoice, options: dict[str, Any], format: str, output: str | None
) -> None:
    """Check that an ONNX file holds the weights of a checkpoint and computes what it does.

    Without --input the file's own inputs are taken; its dynamic axes are tried in several sizes. Exit code 1 where
    something differs, 2 where that could not be found out.
    """
    carry_out(against, model, onnx, options, write=False, format=format, output=output)
