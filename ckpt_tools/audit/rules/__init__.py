"""The rules, one file a family; each ends with its own tuple ``RULES``."""

from __future__ import annotations

from ckpt_tools.audit.rule import Rule, registry
from ckpt_tools.audit.rules import integrity, numbers, policy, portability, security, training

RULES: tuple[Rule, ...] = registry(
    security.RULES, integrity.RULES, numbers.RULES, portability.RULES, training.RULES, policy.RULES
)
"""Every rule, in the order of the documentation."""

BY_CODE = {rule.code: rule for rule in RULES}

FAMILIES = {
    "S": "security: what would happen when the file is loaded",
    "I": "integrity: whether the file is whole, and is what it seems",
    "N": "numbers: whether the values can be right",
    "F": "portability: whether the file will load elsewhere and later",
    "T": "training and transfer: whether what was meant to be trained was",
    "P": "policy: whether the file is as your policy asks",
}
"""The families by the letter that their codes begin with."""
