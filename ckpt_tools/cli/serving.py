"""What ``ckpt export`` and ``ckpt check-onnx`` share: how the file is checked, and how the result is told."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import click

from ckpt_tools.cli.model import ModelChoice
from ckpt_tools.cli.output import emit
from ckpt_tools.report import Report
from ckpt_tools.serving.job import PROVIDERS, Job
from ckpt_tools.serving.reports import cases_of, report_of
from ckpt_tools.serving.run import answer
from ckpt_tools.verification.arguments import parse_arguments

FORMATS = ("text", "json", "junit", "markdown", "html")


def check_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of the check, which the command gets as one mapping, *options*, of fields of `Job`."""
    options = [
        click.option("--select", metavar="KEYS", help="The state_dict to take, such as model_state_dict."),
        click.option(
            "--input",
            "inputs",
            multiple=True,
            metavar="[NAME=]SIZES",
            help="An input of forward: complete sizes such as 1,3,224,224 or int64:1,128; [3,320,320] for one that "
            "stands in a list. [repeatable]",
        ),
        click.option(
            "--dynamic",
            multiple=True,
            metavar="AXES",
            help="Axes of any size: batch (the first of each input), 0:batch,2:height, or of one input x=0:batch. "
            "[repeatable]",
        ),
        click.option(
            "--range",
            "ranges",
            multiple=True,
            metavar="[NAME=]LOW:HIGH",
            help="What random inputs are drawn from. [default: 0:1] [repeatable]",
        ),
        click.option("--inputs", "samples", metavar="FILE", help="Real inputs to compare with too, from this .npz."),
        click.option(
            "--seeds", type=click.IntRange(1), default=2, show_default=True, help="Random inputs of the given sizes."
        ),
        click.option("--atol", "absolute", type=click.FloatRange(0), help="Tolerance in units of the largest value."),
        click.option("--rtol", "relative", type=click.FloatRange(0), help="Tolerance in units of each value."),
        click.option(
            "--provider",
            type=click.Choice(PROVIDERS),
            default="cpu",
            show_default=True,
            help="Where onnxruntime runs it, beside the CPU.",
        ),
        click.option(
            "--provider-option", multiple=True, metavar="KEY=VALUE", help="An option of the provider. [repeatable]"
        ),
        click.option("--tf32", is_flag=True, help="Let CUDA round to TF32."),
        click.option("--require-gpu", is_flag=True, help="Exit with 1 unless every node is proven to run on a GPU."),
        click.option("--allow-cpu-shape-ops", is_flag=True, help="Nodes that only compute sizes may run on the CPU."),
        click.option("--bisect", is_flag=True, help="Where numbers differ, find the first node that does."),
        click.option("--latency", is_flag=True, help="Measure how long a run takes, beside torch."),
        click.option(
            "--timeout",
            "seconds",
            type=click.FloatRange(0, min_open=True),
            default=1800,
            show_default=True,
            help="Seconds that all of it may take.",
        ),
    ]
    names = {name for option in options for name in _names(option)}

    @wraps(function)
    def with_options(**given: Any) -> Any:
        chosen = {name: given.pop(name) for name in names}
        pairs = (text.partition("=") for text in chosen.pop("provider_option"))
        return function(options={**chosen, "provider_options": {key: value for key, _, value in pairs}}, **given)

    for option in reversed(options):
        with_options = option(with_options)
    return with_options


def _names(option: Callable[..., Any]) -> list[str]:
    def blank() -> None:
        pass

    option(blank)
    return [str(parameter.name) for parameter in blank.__click_params__]  # type: ignore[attr-defined]


def carry_out(
    path: str, model: ModelChoice, onnx: str, options: dict[str, Any], *, write: bool, format: str, output: str | None
) -> None:
    """Have it done, tell the result and exit."""
    args, kwargs = parse_arguments(model.args, model.kwargs)
    job = Job(path, model.spec, onnx, write, args, kwargs, model.trust, **options)
    found = answer(job)
    report = report_of(found)
    if format == "junit":
        report = Report(report.title, lambda: cases_of(found))
    emit([report], command="export" if write else "check-onnx", format=format, output=output)
    sys.exit(found.exit_code)
