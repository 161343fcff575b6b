"""From reports to output: one file a format, with a function ``render``, imported when it is wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module

from ckpt_tools.report import Report

Renderer = Callable[[Sequence[Report], str, int, bool], str]


def render(reports: Sequence[Report], format: str, *, command: str, width: int = 0, color: bool = False) -> str:
    """*reports* of *command* in *format*; text is set to *width* columns (0: unlimited) and may use *color*."""
    renderer: Renderer = import_module(f"ckpt_tools.render.{format}").render
    return renderer(reports, command, width, color)
