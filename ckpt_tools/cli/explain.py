"""``ckpt explain``: the page of one rule."""

from __future__ import annotations

import click

from ckpt_tools.audit.policy import suggestion
from ckpt_tools.audit.rules import BY_CODE, RULES


@click.command()
@click.argument("code")
def explain(code: str) -> None:
    """Tell what the rule CODE (or its name) finds, why it matters, and what to do."""
    by_name = {rule.name: rule for rule in RULES}
    rule = BY_CODE.get(code.upper()) or by_name.get(code.lower())
    if rule is None:
        raise click.UsageError(f"no rule is called {code}{suggestion(code, [*BY_CODE, *by_name])}; see: ckpt rules")
    click.echo(f"{rule.code} {rule.name} ({rule.severity}, reads the {rule.needs})\n\n{rule.page}")
