"""S: what would happen when the file is loaded."""

from __future__ import annotations

from ckpt_tools.audit.rule import Rule

RULES: tuple[Rule, ...] = ()
