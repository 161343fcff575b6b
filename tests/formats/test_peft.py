"""PEFT adapters: folders with a configuration and weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.checkpoint import Checkpoint
from ckpt_tools.errors import CkptError, CorruptFile, LimitExceeded, NotACheckpoint
from ckpt_tools.formats import looks_like_checkpoint, open_checkpoint
from ckpt_tools.sources import Folder
from tests.formats.as_torch import assert_same_tensors, by_name

torch = pytest.importorskip("torch")

CONFIG = {
    "alpha_pattern": {},
    "base_model_name_or_path": "example/base",
    "bias": "none",
    "layers_to_transform": None,
    "lora_alpha": 16,
    "modules_to_save": ["head"],
    "peft_type": "LORA",
    "peft_version": "0.19.1",
    "r": 8,
    "target_modules": ["q_proj", "v_proj"],
    "task_type": "CAUSAL_LM",
}


def weights() -> dict[str, Any]:
    return {"base_model.model.q_proj.lora_A.weight": torch.ones(8, 4), "base_model.model.head.bias": torch.zeros(2)}


def adapter(folder: Path, config: object = CONFIG, *, pickled: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    (folder / "README.md").write_text("a model card")
    if pickled:
        torch.save(weights(), folder / "adapter_model.bin")
    else:
        pytest.importorskip("safetensors.torch").save_file(
            weights(), folder / "adapter_model.safetensors", {"format": "pt"}
        )
    return folder


@pytest.mark.parametrize("pickled", [False, True])
def test_an_adapter(pickled: bool, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapter", pickled=pickled)
    assert looks_like_checkpoint(str(folder))
    checkpoint = open_checkpoint(folder)
    assert (checkpoint.format, checkpoint.kind, checkpoint.path) == ("peft", "state_dict", str(folder))
    assert isinstance(checkpoint.source, Folder)
    found = by_name(checkpoint)
    assert_same_tensors(found, {name: weights()[name] for name in found})
    assert found.keys() == weights().keys()
    assert list(checkpoint.metadata.items()) == [
        ("peft_type", "LORA"),
        ("base_model_name_or_path", "example/base"),
        ("task_type", "CAUSAL_LM"),
        ("r", 8),
        ("lora_alpha", 16),
        ("target_modules", ["q_proj", "v_proj"]),
        ("modules_to_save", ["head"]),
        ("bias", "none"),
    ] + ([] if pickled else [("format", "pt")])
    assert checkpoint.producer["peft"] == "0.19.1"
    assert checkpoint.refusals == (() if pickled else None)
    assert [p.member for p in checkpoint.pickles] == (["adapter_model.bin: adapter_model/data.pkl"] if pickled else [])
    assert checkpoint.size == sum(f.stat().st_size for f in folder.iterdir() if f.name.startswith("adapter"))
    assert checkpoint.anomalies == ()


def test_safetensors_come_first(tmp_path: Path) -> None:
    adapter(tmp_path, pickled=True)
    checkpoint = open_checkpoint(adapter(tmp_path))
    assert checkpoint.pickles == ()
    assert [(a.where, a.what) for a in checkpoint.anomalies] == [
        ("adapter_model.safetensors", "adapter_model.bin is there too, which peft does not look at")
    ]


def test_a_version_that_is_not_recorded(tmp_path: Path) -> None:
    config = {key: value for key, value in CONFIG.items() if key != "peft_version"}
    assert "does not record" in open_checkpoint(adapter(tmp_path, config)).producer["peft"]


@pytest.mark.parametrize(
    ("config", "error", "message"),
    [
        ("{", CorruptFile, r"adapter_config\.json.*not valid JSON"),
        ("[]", CorruptFile, r"adapter_config\.json.*not an object"),
        ("[" * 10_000, CorruptFile, "nested too deeply"),
        ('{"a": "' + "x" * (1 << 20) + '"}', LimitExceeded, "bytes of JSON"),
    ],
)
def test_a_damaged_configuration(config: str, error: type[CkptError], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        open_checkpoint(adapter(tmp_path, config))


def test_weights_that_are_missing_or_none(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapter")
    (folder / "adapter_model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(CorruptFile, match=r"adapter_model\.safetensors.*neither safetensors nor"):
        open_checkpoint(folder)
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(CorruptFile, match="an adapter's folder without its weights"):
        open_checkpoint(folder)


def test_weights_cut_off_anywhere(tmp_path: Path) -> None:
    folder = adapter(tmp_path)
    path = folder / "adapter_model.safetensors"
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(CkptError):
            open_checkpoint(folder)
    path.write_bytes(data)
    assert isinstance(open_checkpoint(folder), Checkpoint)


def test_a_folder_without_configuration_is_none(tmp_path: Path) -> None:
    folder = adapter(tmp_path / "adapter")
    (folder / "adapter_config.json").unlink()
    with pytest.raises(NotACheckpoint):
        open_checkpoint(folder)


def test_the_fixture(fixtures_dir: Path, tmp_path: Path) -> None:
    copied = tmp_path / "lora"
    shutil.copytree(fixtures_dir / "peft/lora", copied)
    assert open_checkpoint(copied).metadata["target_modules"] == ["q_proj"]


def test_what_the_package_writes(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft")

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q_proj = torch.nn.Linear(6, 4)

    model = peft.get_peft_model(Model(), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    for name, safe in (("safe", True), ("pickled", False)):
        model.save_pretrained(tmp_path / name, safe_serialization=safe)
        checkpoint = open_checkpoint(tmp_path / name)
        assert_same_tensors(
            dict(sorted(by_name(checkpoint).items())), dict(sorted(peft.get_peft_model_state_dict(model).items()))
        )
        assert checkpoint.metadata["r"] == 2
        assert checkpoint.producer["peft"] == peft.__version__
