"""The rules, one file a family; each ends with its own tuple ``RULES``."""

from __future__ import annotations

from ckpt_tools.audit.rule import Rule, registry
from ckpt_tools.audit.rules import integrity, policy, security

RULES: tuple[Rule, ...] = registry(security.RULES, integrity.RULES, policy.RULES)
"""Every rule, in the order of the documentation."""

BY_CODE = {rule.code: rule for rule in RULES}
