"""The command line: parse, call, render, exit code. One file a command, imported when it is called."""

from __future__ import annotations

import errno
import gc
import os
import sys
from importlib import import_module

import click

from ckpt_tools.errors import CkptError
from ckpt_tools.version import VERSION

COMMANDS = (
    "inspect",
    "summary",
    "diff",
    "digest",
    "convert",
    "audit",
    "verify",
    "export",
    "check-onnx",
    "rules",
    "explain",
)
"""The commands in the order of the help; each is a module here with a click command of its name (``-`` is ``_``)."""

_UNWRITABLE = {getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EIO")} - {None}


class _Commands(click.Group):
    """Commands that are imported only when they are called, so that each starts fast."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        name = cmd_name.replace("-", "_")
        found: click.Command = getattr(import_module(f"ckpt_tools.cli.{name}"), name)
        return found


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value:
        click.echo(f"ckpt {VERSION}")
        ctx.exit()


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
def cli() -> None:
    """Open PyTorch checkpoints without running them.

    Exit codes: 0 clean or equal, 1 findings or differences, 2 could not do the job.
    """


def tell(text: str) -> None:
    """Write one line to standard error; what a file gives in it, its name too, steers no terminal and no log."""
    from ckpt_tools.report import one_line

    click.echo(f"ckpt: {one_line(text)}", err=True)


def main() -> None:
    """The program ``ckpt``."""
    gc.set_threshold(100_000)  # most runs end before there is garbage worth looking for
    try:
        code = cli.main(prog_name="ckpt", standalone_mode=False)
    except click.exceptions.Abort:
        code = 130
    except click.ClickException as error:
        error.show()
        code = 2
    except CkptError as error:
        tell(str(error))
        code = 2
    except BrokenPipeError:
        # the reader of our output went away; what it read is fine
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:
        if os.environ.get("CKPT_DEBUG"):
            raise
        # every other file that cannot be written is named where that is found out
        if isinstance(error, OSError) and error.filename is None and error.errno in _UNWRITABLE:
            told = f"standard output cannot be written: {error.strerror}"
        else:
            told = (
                f"internal error: {type(error).__name__}: {error}. This is a fault of ckpt-tools, please "
                "report it; CKPT_DEBUG=1 shows the traceback"
            )
        tell(told)
        code = 2
    sys.exit(code if isinstance(code, int) else 0)
