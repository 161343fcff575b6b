"""Which program wrote a checkpoint, and what Lightning's say of their run."""

from __future__ import annotations

import io
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from ckpt_tools.checkpoint import Checkpoint, TensorInfo
from ckpt_tools.contents import scalar
from ckpt_tools.formats import open_checkpoint, producers

torch = pytest.importorskip("torch")


def described(value: object) -> Checkpoint:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return open_checkpoint(buffer.getvalue())


def written_by(value: object) -> dict[str, str]:
    """What the producer says beyond the archive itself."""
    plain = described({"weight": torch.ones(1)}).producer
    return {key: text for key, text in described(value).producer.items() if key not in plain}


WEIGHTS = OrderedDict(weight=torch.ones(2))
OPTIMIZER = {"state": {}, "param_groups": [{"params": [0], "lr": 0.1}]}
ARGS = {"lr": 0.1}


@pytest.mark.parametrize(
    ("program", "text", "value"),
    [
        ("pytorch-lightning", "2.4.0", {"pytorch-lightning_version": "2.4.0", "state_dict": WEIGHTS}),
        ("mmengine", "0.10.3", {"meta": {"mmengine_version": "0.10.3", "epoch": 3}, "state_dict": WEIGHTS}),
        ("mmcv", "1.7.0", {"meta": {"mmcv_version": "1.7.0", "CLASSES": ("a",)}, "state_dict": WEIGHTS}),
        ("ultralytics", "8.2.0", {"model": None, "train_args": ARGS, "date": "2024", "version": "8.2.0"}),
        (
            "YOLOv5",
            "inferred from the keys best_fitness, date, ema, model, updates",
            {"epoch": 1, "best_fitness": 0.5, "model": None, "ema": None, "updates": 3, "date": "2022"},
        ),
        ("DeepSpeed", "0.14.0", {"module": WEIGHTS, "ds_version": "0.14.0", "ds_config": {}}),
        (
            "Megatron-LM",
            "inferred from the keys args, checkpoint_version, iteration",
            {"args": ARGS, "checkpoint_version": 3.0, "iteration": 5, "model": WEIGHTS},
        ),
        (
            "fairseq",
            "inferred from the keys extra_state, model, optimizer_history",
            {"args": ARGS, "model": WEIGHTS, "optimizer_history": [{}], "extra_state": {}},
        ),
        ("detectron2", "inferred from the keys __author__, model", {"model": WEIGHTS, "__author__": "me"}),
        (
            "timm",
            "inferred from the keys arch, args, epoch, state_dict, version",
            {"epoch": 1, "arch": "vit", "state_dict": WEIGHTS, "optimizer": OPTIMIZER, "version": 2, "args": ARGS},
        ),
        (
            "PyTorch's ImageNet example",
            "inferred from the keys arch, best_acc1, epoch, state_dict",
            {"epoch": 1, "arch": "resnet18", "state_dict": WEIGHTS, "best_acc1": 0.1, "optimizer": OPTIMIZER},
        ),
        (
            "torchvision's reference scripts",
            "inferred from the keys args, epoch, lr_scheduler, model, optimizer",
            {"model": WEIGHTS, "optimizer": OPTIMIZER, "lr_scheduler": {}, "epoch": 1, "args": ARGS},
        ),
        (
            "nanoGPT",
            "inferred from the keys best_val_loss, iter_num, model, model_args, optimizer",
            {"model": WEIGHTS, "optimizer": OPTIMIZER, "model_args": {}, "iter_num": 1, "best_val_loss": 2.0},
        ),
        ("Whisper", "inferred from the keys dims, model_state_dict", {"dims": {}, "model_state_dict": WEIGHTS}),
        (
            "Hugging Face Trainer",
            "inferred from the keys cpu, numpy, python",
            {"python": (3, ()), "numpy": {}, "cpu": torch.ones(1)},
        ),
    ],
)
def test_programs_known_by_their_keys(program: str, text: str, value: object) -> None:
    assert written_by(value) == {program: text}


@pytest.mark.parametrize(
    "value",
    [
        WEIGHTS,
        {"model": WEIGHTS, "optimizer": OPTIMIZER, "epoch": 1},
        {"state_dict": WEIGHTS, "meta": {"author": "me"}},
        {"meta": "mmengine_version", "state_dict": WEIGHTS},
        {"model": None, "train_args": ARGS, "date": "2024", "version": None},
        [WEIGHTS],
        torch.ones(1),
    ],
    ids=repr,
)
def test_no_program_is_named_without_its_marks(value: object) -> None:
    assert written_by(value) == {}


@pytest.mark.parametrize(
    ("module", "name", "expected"),
    [
        (
            "transformers.training_args",
            "TrainingArguments",
            {"Hugging Face Trainer": "its arguments (training_args.bin)"},
        ),
        (
            "baselines.common.running_mean_std",
            "RunningMeanStd",
            {"OpenAI baselines": "inferred from the class baselines.common.running_mean_std.RunningMeanStd"},
        ),
        ("nobody.knows", "Settings", {}),
    ],
)
def test_programs_known_by_their_classes(
    module: str, name: str, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cls = type(name, (), {"__module__": module})
    for part in (module.partition(".")[0], module):
        monkeypatch.setitem(sys.modules, part, ModuleType(part))
    setattr(sys.modules[module], name, cls)
    value = cls()
    value.lr = 0.1
    assert written_by(value) == expected


# --- Lightning


def lightning(**more: Any) -> dict[str, Any]:
    return {"pytorch-lightning_version": "2.4.0", "state_dict": WEIGHTS, "epoch": 2, "global_step": 9, **more}


def test_a_checkpoint_of_lightning(fixtures_dir: Path) -> None:
    checkpoint = open_checkpoint(fixtures_dir / "training/lightning.ckpt")
    assert checkpoint.producer["pytorch-lightning"] == "2.4.0"
    score = checkpoint.metadata["ModelCheckpoint.best_model_score"]
    assert isinstance(score, TensorInfo)
    assert scalar(score) == pytest.approx(
        torch.load(fixtures_dir / "training/lightning.ckpt", weights_only=True)["callbacks"][
            "ModelCheckpoint{'monitor': 'val_loss', 'mode': 'min'}"
        ]["best_model_score"].item()
    )
    assert {key: value for key, value in checkpoint.metadata.items() if value is not score} == {
        "ModelCheckpoint.monitor": "val_loss",
        "ModelCheckpoint.best_model_path": "runs/version_0/checkpoints/epoch=1-step=20.ckpt",
        "hyper_parameters.learning_rate": 0.002,
        "hyper_parameters.hidden": 8,
    }
    assert checkpoint.training is not None
    assert [o.path for o in checkpoint.training.optimizers] == [("optimizer_states", 0)]


def test_nested_hyperparameters_and_objects_that_are_none() -> None:
    hyper_parameters = {"optimizer": {"name": "adam", "betas": [0.9, 0.99]}, "none": None, "big": list(range(99))}
    metadata = described(lightning(hyper_parameters=hyper_parameters, hparams={"old": True})).metadata
    assert dict(metadata) == {
        "hyper_parameters.optimizer.name": "adam",
        "hyper_parameters.optimizer.betas": [0.9, 0.99],
        "hyper_parameters.none": None,
        "hparams.old": True,
    }


def test_hyperparameters_in_a_namespace() -> None:
    assert dict(described(lightning(hyper_parameters=SimpleNamespace(lr=0.1))).metadata) == {"hyper_parameters.lr": 0.1}


class AnyNode:
    def __init__(self, value: object) -> None:
        self.__dict__ = {"_metadata": None, "_parent": None, "_val": value}


class DictConfig:
    def __init__(self, **content: object) -> None:
        self.__dict__ = {"_metadata": None, "_content": content}


class AttributeDict(dict):
    pass


def test_hyperparameters_in_omegaconf_and_attribute_dicts() -> None:
    config = DictConfig(lr=AnyNode(0.1), model=DictConfig(layers=AnyNode(3)))
    assert dict(described(lightning(hyper_parameters=config)).metadata) == {
        "hyper_parameters.lr": 0.1,
        "hyper_parameters.model.layers": 3,
    }
    assert dict(described(lightning(hyper_parameters=AttributeDict(lr=0.2))).metadata) == {"hyper_parameters.lr": 0.2}


def test_callbacks_of_one_class_are_numbered_and_others_left_out() -> None:
    callbacks = {
        "ModelCheckpoint{'monitor': 'a'}": {"monitor": "a", "best_model_path": "a.ckpt"},
        "ModelCheckpoint{'monitor': 'b'}": {"monitor": "b", "best_model_path": "b.ckpt"},
        "EarlyStopping": {"best_score": 1.0},
    }
    assert dict(described(lightning(callbacks=callbacks)).metadata) == {
        "ModelCheckpoint.monitor": "a",
        "ModelCheckpoint.best_model_path": "a.ckpt",
        "ModelCheckpoint 2.monitor": "b",
        "ModelCheckpoint 2.best_model_path": "b.ckpt",
    }


def test_callbacks_before_lightning_1_5_go_by_their_class() -> None:
    callbacks = {OrderedDict: {"best_model_path": "a.ckpt"}}
    assert dict(described(lightning(callbacks=callbacks)).metadata) == {"OrderedDict.best_model_path": "a.ckpt"}


def test_callbacks_before_lightning_1_0_stand_at_the_root() -> None:
    entries = {"checkpoint_callback_best_model_path": "a.ckpt", "checkpoint_callback_best_model_score": 0.5}
    assert dict(described(lightning(**entries)).metadata) == entries


def test_hyperparameters_without_end_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    many = {f"h{n}": n for n in range(producers.MAX_VALUES + 1)}
    assert len(described(lightning(hyper_parameters=many)).metadata) == producers.MAX_VALUES
    # each level twice in the one above: a thousand million ways to the same empty mapping
    shared: dict[str, Any] = {}
    for _ in range(30):
        shared = {"a": shared, "b": shared}
    assert dict(described(lightning(hyper_parameters=shared)).metadata) == {}
    cyclic: dict[str, Any] = {"lr": 0.1}
    cyclic["self"] = cyclic
    found = described(lightning(hyper_parameters=cyclic)).metadata
    assert found["hyper_parameters.self.self.lr"] == 0.1


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_the_real_thing(tmp_path: Path) -> None:
    lightning = pytest.importorskip("pytorch_lightning")

    class Module(lightning.LightningModule):
        def __init__(self, lr: float = 0.1) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.layer = torch.nn.Linear(2, 1)

        def training_step(self, batch: Any, index: int) -> Any:
            loss = self.layer(batch).mean()
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=self.hparams["lr"])

    trainer = lightning.Trainer(
        max_epochs=1,
        callbacks=[lightning.callbacks.ModelCheckpoint(tmp_path, monitor="loss")],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(Module(), torch.utils.data.DataLoader(torch.ones(4, 2)))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    checkpoint = open_checkpoint(tmp_path / "last.ckpt")
    assert checkpoint.kind == "training"
    assert checkpoint.producer["pytorch-lightning"] == lightning.__version__
    assert checkpoint.metadata["ModelCheckpoint.monitor"] == "loss"
    assert checkpoint.metadata["ModelCheckpoint.best_model_path"] == trainer.checkpoint_callback.best_model_path
    assert checkpoint.metadata["hyper_parameters.lr"] == 0.1
