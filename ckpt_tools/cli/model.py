"""What every command that builds a model shares: ``--model`` and the arguments to build it with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import click

from ckpt_tools.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """The model that the user named, not built yet; *args* and *kwargs* are text as they were given."""

    spec: str
    args: str | None
    kwargs: tuple[str, ...]
    trust: bool

    def builder(self) -> Callable[[Checkpoint], Any]:
        """What gives the nn.Module for each file: the same for all, built now, unless the files hold models."""
        from ckpt_tools.runtime.locate import PICKLE, locate, parse_arguments

        if self.spec == PICKLE:
            return lambda checkpoint: locate(PICKLE, checkpoint=checkpoint, trust=self.trust)
        model = locate(self.spec, *parse_arguments(self.args, self.kwargs))
        return lambda checkpoint: model


def model_options(*, required: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Add the options to a command, whose parameter *model* then is a `ModelChoice`, or None."""

    def add(function: Callable[..., Any]) -> Callable[..., Any]:
        @click.option(
            "--model",
            "spec",
            required=required,
            metavar="SPEC",
            help="The class to build: package.module:Class, file.py:Class (or a function that returns a model), "
            "torchvision:NAME, timm:NAME; pickle for the model pickled in the file. Runs that code.",
        )
        @click.option("--args", metavar="JSON", help="Positional arguments of the class, a JSON list.")
        @click.option(
            "--kwargs", multiple=True, metavar="KEY=VALUE", help="A named argument of the class. [repeatable]"
        )
        @click.option("--trust", is_flag=True, help="Let --model pickle run what the file says.")
        @wraps(function)
        def with_model(*, spec: str | None, args: str | None, kwargs: tuple[str, ...], trust: bool, **rest: Any) -> Any:
            if spec is None and (args is not None or kwargs or trust):
                raise click.UsageError("--args, --kwargs and --trust are for --model")
            return function(model=None if spec is None else ModelChoice(spec, args, kwargs, trust), **rest)

        return with_model

    return add
