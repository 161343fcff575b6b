"""Files that appear whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from ckpt_tools.errors import CkptError


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file to write, which takes the place of *path* when the block ends without an error.

    It is a temporary file beside *path*, with the permissions that the umask gives a new file; until it is
    renamed the old file stays as it is, and after a failure it is gone. A symbolic link is followed. Raises
    `CkptError` where the system refuses.
    """
    name = os.fspath(path)
    target = os.path.realpath(name)
    temporary = os.path.join(
        os.path.dirname(target), f".{os.path.basename(target)[:200]}.{os.getpid()}.{os.urandom(4).hex()}"
    )
    try:
        with open(temporary, "xb") as file:
            try:
                yield file
                file.flush()
                os.fsync(file.fileno())
                os.replace(temporary, target)
            except BaseException:
                os.unlink(temporary)
                raise
    except OSError as error:
        raise CkptError(f"cannot be written: {error.strerror}", path=name) from None
