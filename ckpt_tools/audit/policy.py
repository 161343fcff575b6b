"""What the user asks of an audit."""

from __future__ import annotations

from ckpt_tools.records import record


@record
class Options:
    """*values*: whether tensors' bytes are read. *base*: a checkpoint to compare with. *torch*: a version."""

    values: bool = True
    base: str | None = None
    torch: str | None = None
