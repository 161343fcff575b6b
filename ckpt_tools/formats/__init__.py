"""The formats, one file each; `open_checkpoint` finds the one that recognises a file by its content."""

from __future__ import annotations

import os

from ckpt_tools.checkpoint import Checkpoint
from ckpt_tools.errors import CkptError, CorruptFile, NotACheckpoint
from ckpt_tools.formats import (
    checkpoint_archive,
    exported_program,
    gguf,
    npz,
    onnx,
    peft,
    plain_pickle,
    safetensors,
    torch_legacy,
    torch_tar,
    torch_zip,
    torchscript,
)
from ckpt_tools.formats.base import HEAD_BYTES, Format
from ckpt_tools.sources import Folder, Source, open_source

FORMATS: tuple[Format, ...] = (
    torchscript.FORMAT,
    exported_program.FORMAT,
    torch_zip.FORMAT,
    safetensors.FORMAT,
    npz.NPZ,
    npz.NPY,
    gguf.FORMAT,
    onnx.FORMAT,
    peft.FORMAT,
    torch_tar.FORMAT,
    torch_legacy.FORMAT,
    plain_pickle.FORMAT,
    checkpoint_archive.over(lambda: FORMATS),
)
"""In the order in which they are asked; a file that several would take goes to the first, as in torch."""

SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors", ".pth.tar", ".pt2", ".npz", ".gguf", ".onnx")
"""Names that promise a checkpoint: such a file in a folder is looked at even if it turns out to be none."""


def open_checkpoint(target: str | os.PathLike[str] | bytes | Source) -> Checkpoint:
    """Describe the checkpoint at *target*: a path, a folder, ``-`` for standard input, bytes or a source.

    No tensor bytes are read, and nothing the file contains is imported or run. Raises a `CkptError` that
    says what is wrong with the file.
    """
    source = open_source(target)
    try:
        return _open(source)
    except CkptError as error:
        if isinstance(error, CorruptFile) and error.remedy is None:
            error.remedy = "Fetch the file again, or save it again from its source"
        raise error.at(path=source.name) from None


def looks_like_checkpoint(path: str) -> bool:
    """Whether a folder is one checkpoint, or a file is one by its content or claims to be by its suffix."""
    try:
        source = open_source(path)
        if isinstance(source, Folder):
            return any(format.folder is not None and format.folder(source) for format in FORMATS)
        if path.lower().endswith(SUFFIXES):
            return True
        head = source.peek(0, HEAD_BYTES)
        return any(format.detect is not None and format.detect(source, head) for format in FORMATS)
    except CkptError:
        return False


def _open(source: Source | Folder) -> Checkpoint:
    if isinstance(source, Folder):
        for format in FORMATS:
            if format.folder is not None and format.folder(source):
                return format.read(source)  # type: ignore[arg-type]
        raise NotACheckpoint("the folder holds no checkpoint that spans several files", path=source.name)
    head = source.peek(0, HEAD_BYTES)
    for format in FORMATS:
        if format.detect is not None and format.detect(source, head):
            return format.read(source)  # type: ignore[arg-type]
    from ckpt_tools.formats.impostors import explain  # only for what nothing recognises

    raise explain(source, head)
