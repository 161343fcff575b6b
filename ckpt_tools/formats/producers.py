"""Which program wrote a pickled checkpoint, told by the keys and classes that only it writes.

A program that records its version is known for certain; of the others it is said what they were known by.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import NamedTuple

from ckpt_tools.checkpoint import TensorInfo
from ckpt_tools.pickles.values import Call, Global, plain

MAX_VALUES = 256
"""The most hyperparameters that are listed."""
MAX_NODES = 4096
"""The most mappings and values that are looked at to find them."""
MAX_NAME = 1024
"""How long the dotted name of a mapping may be for its items to be looked at, in characters."""


class _Mark(NamedTuple):
    """The keys that the outermost mapping of *program*'s checkpoints has, and where its version stands."""

    program: str
    keys: frozenset[str]
    version: tuple[str, ...] = ()


def _mark(program: str, keys: str, version: str = "") -> _Mark:
    return _Mark(program, frozenset(keys.split()), tuple(version.split("/")) if version else ())


# in the order in which they are asked: marks that only one program leaves come first
_BY_KEYS = (
    # lightning/pytorch/trainer/connectors/checkpoint_connector.py, dump_checkpoint
    _mark("pytorch-lightning", "pytorch-lightning_version", "pytorch-lightning_version"),
    # mmengine/runner/runner.py, save_checkpoint; mmcv/runner/checkpoint.py before it
    _mark("mmengine", "meta state_dict", "meta/mmengine_version"),
    _mark("mmcv", "meta state_dict", "meta/mmcv_version"),
    # ultralytics/engine/trainer.py, save_model; yolov5/train.py before it
    _mark("ultralytics", "model train_args date version", "version"),
    _mark("YOLOv5", "model ema updates best_fitness date"),
    # deepspeed/runtime/engine.py, _save_checkpoint
    _mark("DeepSpeed", "module ds_version", "ds_version"),
    # megatron/training/checkpointing.py, generate_state_dict
    _mark("Megatron-LM", "checkpoint_version iteration args"),
    # fairseq/trainer.py, state_dict
    _mark("fairseq", "model optimizer_history extra_state"),
    # detectron2/checkpoint/detection_checkpoint.py, the model zoo's files
    _mark("detectron2", "model __author__"),
    # timm/utils/checkpoint_saver.py, _save
    _mark("timm", "arch args epoch state_dict version"),
    # examples/imagenet/main.py of PyTorch
    _mark("PyTorch's ImageNet example", "arch epoch state_dict best_acc1"),
    # references/classification/train.py of torchvision
    _mark("torchvision's reference scripts", "model optimizer lr_scheduler epoch args"),
    # nanoGPT/train.py
    _mark("nanoGPT", "model optimizer model_args iter_num best_val_loss"),
    # whisper/__init__.py, load_model
    _mark("Whisper", "dims model_state_dict"),
    # transformers/trainer.py, _save_rng_state
    _mark("Hugging Face Trainer", "python numpy cpu"),
)

# packages whose classes stand in what they write
_BY_PACKAGE = {
    "baselines": "OpenAI baselines",
    "detectron2": "detectron2",
    "fairseq": "fairseq",
    "fastai": "fastai",
    "mmcv": "mmcv",
    "mmengine": "mmengine",
    "pytorch_lightning": "pytorch-lightning",
    "lightning": "pytorch-lightning",
    "spinup": "Spinning Up",
    "stable_baselines3": "stable-baselines3",
    "ultralytics": "ultralytics",
}


def recognise(root: object, names: Iterable[Global]) -> tuple[dict[str, str], dict[str, object]]:
    """The programs that wrote a checkpoint with *root* as its value, and what they note beside the weights.

    *names* are the globals of the pickle. Programs map to their version, or to what they were known by.
    """
    root = plain(root)
    producer: dict[str, str] = {}
    metadata: dict[str, object] = {}
    if isinstance(root, dict):
        producer = _by_keys(root)
        if "pytorch-lightning" in producer:
            metadata = dict(_lightning(root))
    elif type(root) is Call and root.class_name.startswith("transformers.") and "Arguments" in root.class_name:
        producer = {"Hugging Face Trainer": "its arguments (training_args.bin)"}
    for name in names:
        package = name.path.partition(".")[0]
        if package in _BY_PACKAGE:
            producer.setdefault(_BY_PACKAGE[package], f"inferred from the class {name.path}")
    return producer, metadata


def _by_keys(root: dict[object, object]) -> dict[str, str]:
    for program, keys, version in _BY_KEYS:
        if not keys <= root.keys():
            continue
        if not version:
            return {program: f"inferred from the keys {', '.join(sorted(keys))}"}
        value: object = root
        for key in version:
            value = plain(value.get(key)) if isinstance(value, dict) else None
        if isinstance(value, str):
            return {program: value}
    return {}


# --- Lightning


def _lightning(root: dict[object, object]) -> Iterator[tuple[str, object]]:
    """Best checkpoint, its score and what was watched, from each callback that has them; hyperparameters."""
    callbacks = plain(root.get("callbacks"))
    seen: dict[str, int] = {}
    for key, raw in callbacks.items() if isinstance(callbacks, dict) else ():
        state = plain(raw)
        if not isinstance(state, dict) or "best_model_path" not in state:
            continue
        # the class itself before 1.5, then its name with the arguments that tell namesakes apart
        name = (key.name if type(key) is Global else str(key)).partition("{")[0].rpartition(".")[2]
        seen[name] = seen.get(name, 0) + 1
        label = name if seen[name] == 1 else f"{name} {seen[name]}"
        for entry in ("monitor", "best_model_path", "best_model_score"):
            if entry in state:
                yield f"{label}.{entry}", plain(state[entry])
    for key, value in root.items():  # before 1.0 one callback, flat
        if isinstance(key, str) and key.startswith("checkpoint_callback_") and _is_plain(plain(value)):
            yield key, plain(value)
    for key in ("hyper_parameters", "hparams", "datamodule_hyper_parameters"):
        if key in root:
            yield from _flat(plain(root[key]), f"{key}.")


def _flat(root: object, prefix: str) -> Iterator[tuple[str, object]]:
    """The plain values of nested mappings under dotted names, in order, no more than `MAX_VALUES`."""
    pending: list[tuple[str, object]] = [(prefix, root)]
    values = nodes = 0
    while pending and values < MAX_VALUES and nodes < MAX_NODES:
        prefix, value = pending.pop()
        nodes += 1
        if _is_plain(value):
            values += 1
            yield prefix.removesuffix("."), value
        elif len(prefix) < MAX_NAME:
            items = list(islice(_entries(value), MAX_VALUES - values))
            pending += [(f"{prefix}{key}.", item) for key, item in reversed(items)]


def _entries(value: object) -> Iterator[tuple[str, object]]:
    """The items of a mapping, of an object that is one (AttributeDict, DictConfig), or an object's attributes."""
    if type(value) is Call:
        attributes = value.attributes
        # omegaconf keeps its nodes in _content, and each value in _val
        content = plain(attributes.get("_content"))
        pairs: Iterable[tuple[object, object]] = (
            content.items() if isinstance(content, dict) else value.entries or attributes.items()
        )
    else:
        pairs = value.items() if isinstance(value, dict) else ()
    for key, raw in pairs:
        item = plain(raw)
        if type(item) is Call and "_val" in item.attributes:
            item = plain(item.attributes["_val"])
        yield str(key)[:MAX_NAME], item


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return len(value) <= 16 and all(isinstance(item, bool | int | float | str | None) for item in value)
    return isinstance(value, bool | int | float | str | None) or (isinstance(value, TensorInfo) and not value.shape)
