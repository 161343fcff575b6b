"""What there is to audit under a path: every file, and folders that are one checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from ckpt_tools.errors import CkptError, NotFound
from ckpt_tools.formats import is_checkpoint_folder
from ckpt_tools.records import record
from ckpt_tools.sources import is_url, matching

MODEL_SUFFIXES = (
    ".pt", ".pth", ".ckpt", ".safetensors", ".bin", ".pkl", ".pickle", ".pt2", ".npz", ".npy", ".gguf", ".onnx",
    ".ptl", ".pte", ".tar", ".h5", ".hdf5", ".keras", ".joblib", ".dill", ".distcp", ".msgpack", ".mar", ".nemo",
    ".model", ".weights", ".params", ".th", ".t7",
)  # fmt: skip
"""Names that promise a model: what such a file is, if not a model, is told."""

_PRIVATE = (".git", "__pycache__", ".venv", "node_modules", ".ckpt-cache")
"""Folders in which no models are looked for unless they are named."""


_WEIGHTS = ("model.", "model-", "pytorch_model.", "pytorch_model-", "adapter_model.")
CONFIGURATIONS = ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json")
TEMPLATES = ("tokenizer_config.json", "processor_config.json", "chat_template.json", "chat_template.jinja")
"""Files that Transformers reads beside the weights: for what to import, and for templates."""
OTHER_CONFIGURATIONS = (
    *("generation_config.json", "adapter_config.json", "modules.json", "config.yaml", "config.yml"),
    *("model_config.yaml", "hparams.yaml", "hyperparams.yaml"),
)
"""Those that Hydra, NeMo, PEFT, Lightning and SpeechBrain read."""
TEXTS = (".json", ".yaml", ".yml")
"""Names of configurations, wherever they lie."""


TOKENIZERS = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
"""Models of SentencePiece, which hold no weights."""


def promises_model(path: str) -> bool:
    """Whether a file has a name that weights have."""
    name = os.path.basename(path).lower()
    return name.endswith(MODEL_SUFFIXES) and name not in TOKENIZERS


def has_companions(path: str) -> bool:
    """Whether a file has a name by which Transformers finds weights, so that it reads further files beside it."""
    return os.path.basename(path).startswith(_WEIGHTS)


@record
class Target:
    """One file or one folder. *named* is false where it was only met in a folder, or by a glob; *error* says why there
    is none.
    """

    path: str
    named: bool = True
    error: CkptError | None = None


def targets(path: str) -> Iterator[Target]:
    """What *path* (a file, a folder, a glob, a URL, ``-``) stands for, in a stable order."""
    if path != "-" and not is_url(path) and os.path.isdir(path):
        yield from below(path)
    elif path == "-" or is_url(path) or os.path.lexists(path):
        yield Target(path)
    elif matches := matching(path):
        yield from _matched(matches)
    else:
        yield Target(path, error=NotFound("no such file", path=path))


def _matched(matches: Iterable[str]) -> Iterator[Target]:
    """What matches a glob. A glob names no file, so that what is no model is skipped as it is in a folder."""
    from pathlib import PurePath  # slow to import

    folders: set[str] = set()  # a folder that matches stands for all below it, whatever of that matches too
    for match in matches:
        place = os.path.normpath(match)
        if any(os.fspath(folder) in folders for folder in PurePath(place).parents):
            continue
        if os.path.isdir(match):
            folders.add(place)
            yield from below(match)
        elif os.path.exists(match):
            yield Target(match, named=False)
        elif match.lower().endswith(MODEL_SUFFIXES):
            yield _leads_nowhere(match)


def _leads_nowhere(path: str) -> Target:
    return Target(path, error=NotFound("is a link that leads nowhere", path=path))


def below(folder: str, taken: frozenset[str] | None = None) -> Iterator[Target]:
    """Every file below *folder* that is not among *taken*; a folder that is one checkpoint comes as such.

    With *taken*, even if that is none, *folder* itself does not: it has come. What else lies in such a folder is left
    to who audits it, as only the description tells which files it is made of. Links to folders are followed, but no
    folder is entered twice.
    """
    again, taken = taken is not None, taken or frozenset()
    homes = {os.path.dirname(path) for path in taken}
    entered: set[str] = set()
    pending: list[os.DirEntry[str] | str] = [folder]
    while pending:
        entry = pending.pop()
        path = os.fspath(entry)
        try:
            if isinstance(entry, str) or entry.is_dir():
                if os.path.realpath(path) in entered:
                    continue
                entered.add(os.path.realpath(path))
                if path not in homes and not (again and path == folder) and is_checkpoint_folder(path):
                    yield Target(path)
                    continue
                with os.scandir(path) as found:
                    inside = sorted((e for e in found if e.name not in _PRIVATE), key=lambda e: e.name, reverse=True)
                pending += inside
            elif entry.is_file():
                if path not in taken:
                    yield Target(path, named=False)
            elif entry.is_symlink() and path.lower().endswith(MODEL_SUFFIXES):
                yield _leads_nowhere(path)
        except OSError as error:
            yield Target(path, error=NotFound(f"cannot be read: {error.strerror}", path=path))
        except CkptError as error:
            yield Target(path, error=error)
