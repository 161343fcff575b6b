"""PEFT adapters: a folder with ``adapter_config.json`` and the adapter's weights beside it.

The weights are ``adapter_model.safetensors`` or, before, ``adapter_model.bin`` of torch.save; where both are
there, peft takes the former (peft/utils/save_and_load.py, ``load_peft_weights``).
"""

from __future__ import annotations

from dataclasses import replace

from ckpt_tools.checkpoint import Anomaly, Checkpoint
from ckpt_tools.errors import CorruptFile
from ckpt_tools.formats import safetensors, torch_legacy, torch_zip
from ckpt_tools.formats.base import HEAD_BYTES, Format
from ckpt_tools.formats.json_text import read_json
from ckpt_tools.sources import Folder

CONFIG = "adapter_config.json"
WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
CONFIG_LIMIT = 1 << 20
"""The longest configuration that is read, in bytes."""

# what one wants to know first of an adapter
_FIRST = (
    "peft_type",
    "base_model_name_or_path",
    "task_type",
    "r",
    "lora_alpha",
    "target_modules",
    "modules_to_save",
    "lora_dropout",
)


def folder(folder: Folder) -> bool:
    """Whether an adapter's configuration lies in it."""
    return CONFIG in folder.names()


def read(folder: Folder) -> Checkpoint:
    """Describe an adapter: its state_dict, and the settings of its configuration as metadata, but null ones."""
    config_file = folder.open(CONFIG)
    config = read_json(config_file, CONFIG_LIMIT)
    names = [name for name in WEIGHTS if name in folder.names()]
    if not names:
        raise CorruptFile(f"an adapter's folder without its weights, {' or '.join(WEIGHTS)}", path=folder.name)
    inner = _weights(folder, names[0])
    known = {key: config[key] for key in (*_FIRST, *config) if config.get(key) not in (None, {}, [])}
    version = known.pop("peft_version", None)
    anomalies = list(inner.anomalies)
    if len(names) > 1:
        anomalies.append(Anomaly(f"{names[1]} is there too, which peft does not look at", names[0]))
    return replace(
        inner,
        path=folder.name,
        source=folder,
        format=FORMAT.name,
        title=f"{FORMAT.title} ({inner.title})",
        metadata={**known, **inner.metadata},
        producer={"peft": version if isinstance(version, str) else "of a version that it does not record"}
        | dict(inner.producer),
        pickles=tuple(replace(p, member=f"{names[0]}: {p.member}") for p in inner.pickles),
        anomalies=tuple(anomalies),
        size=inner.size + config_file.size,
    )


def _weights(folder: Folder, name: str) -> Checkpoint:
    source = folder.open(name)
    head = source.peek(0, HEAD_BYTES)
    for format in (safetensors, torch_zip, torch_legacy):
        if format.detect(source, head):
            found: Checkpoint = format.read(source)
            return found
    raise CorruptFile("an adapter's weights, but neither safetensors nor a file of torch.save", path=source.name)


FORMAT = Format("peft", "PEFT adapter", read, folder=folder)
