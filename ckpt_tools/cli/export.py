"""``ckpt export``: a checkpoint in its class, as an ONNX file that is proven to compute the same."""

from __future__ import annotations

from typing import Any

import click

from ckpt_tools.cli.model import ModelChoice, model_options
from ckpt_tools.cli.serving import FORMATS, carry_out, check_options
from ckpt_tools.serving.job import DTYPES, EXTERNAL_DATA


@click.command()
@click.argument("path", metavar="PATH")
@model_options(required=True)
@click.option("-o", "--output", "onnx", required=True, metavar="FILE", help="The ONNX file to write.")
@click.option("--force", is_flag=True, help="Replace it if it exists.")
@click.option("--opset", type=click.IntRange(1), metavar="N", help="The version of ONNX's operators.")
@click.option("--dtype", type=click.Choice(DTYPES), help="The type of weights, inputs and outputs.")
@click.option("--input-names", metavar="A,B", help="Names of the inputs. [default: those of forward]")
@click.option("--output-names", metavar="A,B", help="Names of the outputs. [default: where they stand]")
@click.option(
    "--external-data",
    type=click.Choice(EXTERNAL_DATA),
    default="auto",
    show_default=True,
    help="Whether weights go into FILE.data; auto: where they take more than 256 MiB.",
)
@click.option("--keep-stack-traces", is_flag=True, help="Keep the paths and lines of the source that each node is of.")
@check_options
@click.option("--report", metavar="FILE", help="Write the report to this file, not to standard output.")
@click.option("--format", type=click.Choice(FORMATS), default="text", show_default=True, help="Format of the report.")
def export(
    path: str,
    model: ModelChoice,
    onnx: str,
    force: bool,
    opset: int | None,
    dtype: str | None,
    input_names: str | None,
    output_names: str | None,
    external_data: str,
    keep_stack_traces: bool,
    options: dict[str, Any],
    report: str | None,
    format: str,
) -> None:
    """Export a checkpoint to ONNX, and check that the file computes what the checkpoint does.

    The class is built and filled as by verify, in a process of its own, and exported in eval mode. The file takes its
    place only where it holds what was asked and computes the same. Exit code 1 where it does not, 2 where that could
    not be found out.
    """
    options |= {
        "force": force,
        "opset": opset,
        "dtype": dtype,
        "input_names": _listed(input_names),
        "output_names": _listed(output_names),
        "external_data": external_data,
        "keep_stack_traces": keep_stack_traces,
    }
    carry_out(path, model, onnx, options, write=True, format=format, output=report)


def _listed(text: str | None) -> list[str]:
    return [name.strip() for name in text.split(",")] if text else []
