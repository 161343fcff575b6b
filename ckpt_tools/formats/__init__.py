"""The formats, one file each; `open_checkpoint` finds the one that recognises a file by its content."""

from __future__ import annotations

import os

from ckpt_tools.checkpoint import Checkpoint
from ckpt_tools.errors import CkptError, CorruptFile, NotACheckpoint
from ckpt_tools.formats.base import HEAD_BYTES, NOTE, Format, begins, lazy, zip_with
from ckpt_tools.sources import Folder, Source, is_url, open_source

_ZIP = b"PK\x03\x04"

FORMATS: tuple[Format, ...] = (
    lazy(
        "distributed",
        lambda source, head: source.name.endswith((".metadata", ".distcp")),
        folders=(".metadata", ".distcp", ".safetensors"),
    ),
    lazy("torchscript", zip_with("constants.pkl", "model.json")),
    lazy("exported_program", zip_with("archive_format", "serialized_exported_program.json")),
    lazy("torch_zip", begins(_ZIP)),
    lazy("safetensors", lambda source, head: b"{" in head[8:]),
    lazy("npz", zip_with(".npy"), pick=lambda module: module.NPZ),
    lazy("npy", begins(b"\x93NUMPY"), pick=lambda module: module.NPY, module="npz"),
    lazy("gguf", begins(b"GGUF")),
    lazy("onnx", lambda source, head: not head.startswith((_ZIP, b"\x80", b"\x93"))),
    lazy("peft", files=False, folders=("adapter_config.json",)),
    lazy("sharded", lambda source, head: b"{" in head, folders=(".json", ".safetensors", ".bin")),
    lazy("deepspeed", files=False, folders=("_states.pt", "latest")),
    lazy("torch_tar", lambda source, head: not head.startswith(_ZIP)),
    lazy("torch_legacy"),
    lazy("pickle", module="plain_pickle"),
    lazy("archive", begins(_ZIP), pick=lambda module: module.over(lambda: FORMATS), module="checkpoint_archive"),
)
"""In the order in which they are asked; a file that several would take goes to the first, as in torch."""

SUFFIXES = (".pt", ".pth", ".ckpt", ".safetensors", ".pth.tar", ".pt2", ".npz", ".gguf", ".onnx")
"""Names that promise a checkpoint: such a file in a folder is looked at even if it turns out to be none."""


def open_checkpoint(target: str | os.PathLike[str] | bytes | Source | Folder) -> Checkpoint:
    """Describe the checkpoint at *target*: a path, a folder, a URL, ``-`` for standard input, bytes, or a
    `Source` or `Folder`.

    No tensor bytes are read, and nothing the file contains is imported or run. Raises a `CkptError` that
    says what is wrong with the file.
    """
    source = _source(target)
    try:
        checkpoint = _open(source)
        if NOTE not in checkpoint.metadata:
            return checkpoint
        from ckpt_tools.formats.note import with_note  # only for what we have written

        return with_note(checkpoint)
    except CkptError as error:
        if isinstance(error, CorruptFile) and error.remedy is None:
            error.remedy = "Fetch the file again, or save it again from its source"
        raise error.at(path=source.name) from None


def is_checkpoint_folder(path: str) -> bool:
    """Whether the folder at *path* is one checkpoint of several files."""
    folder = Folder(path)
    return any(format.folder is not None and format.folder(folder) for format in FORMATS)


def looks_like_checkpoint(path: str) -> bool:
    """Whether a folder is one checkpoint, or a file is one by its content or claims to be by its suffix."""
    try:
        source = open_source(path)
        if isinstance(source, Folder):
            return is_checkpoint_folder(path)
        if path.lower().endswith(SUFFIXES):
            return True
        head = source.peek(0, HEAD_BYTES)
        return any(format.detect is not None and format.detect(source, head) for format in FORMATS)
    except CkptError:
        return False


def _source(target: str | os.PathLike[str] | bytes | Source | Folder) -> Source | Folder:
    if is_url(target):
        from ckpt_tools.remote import open_url  # nothing that local files should wait for

        return open_url(str(target))
    return open_source(target)


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
