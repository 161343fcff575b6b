"""``ckpt rules``: what ``ckpt audit`` looks for."""

from __future__ import annotations

import click

from ckpt_tools.audit.rules import FAMILIES, RULES
from ckpt_tools.cli.output import emit, output_options
from ckpt_tools.report import Report, Table, count


@click.command()
@click.argument("prefixes", nargs=-1, metavar="[PREFIX]...")
@output_options("text", "json", "markdown", "html")
def rules(prefixes: tuple[str, ...], format: str, output: str | None) -> None:
    """List the rules of `ckpt audit`: those whose code begins with one of the PREFIXes, or all."""
    found = [rule for rule in RULES if rule.code.startswith(tuple(p.upper() for p in prefixes) or "")]
    if not found:
        raise click.UsageError(f"no rule's code begins with {' or '.join(prefixes)}")
    data = [
        {"code": r.code, "name": r.name, "severity": r.severity, "needs": r.needs, "summary": r.summary} for r in found
    ]
    tables = [
        Table(
            f"{letter}: {title}",
            ("code", "name", "severity", "reads", "finds"),
            [(r.code, r.name, r.severity, r.needs, r.summary) for r in found if r.code.startswith(letter)],
        )
        for letter, title in FAMILIES.items()
    ]
    report = Report("rules", lambda: {"rules": data}, [t for t in tables if t.rows], count(len(found), "rule"))
    emit([report], command="rules", format=format, output=output)
