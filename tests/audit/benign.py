"""What programs really write: the audit must call none of it dangerous. Needs torch."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import enum
import fractions
import functools
import io
import json
import logging
import pathlib
import pickle
import random
import re
import typing
import uuid
import zipfile
import zoneinfo
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.utils.prune
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper


class Color(enum.Enum):
    """A member of it is pickled by its value."""

    RED = 1


class Net(torch.nn.Module):
    """A module of one's own, whose class no reader knows."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.ReLU())
        self.activation = torch.nn.functional.gelu
        self.norm = functools.partial(torch.nn.LayerNorm, eps=1e-6)
        self.log = logging.getLogger("net")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Not called."""
        return self.activation(self.layers(x))


class Warmup:
    """Holds functions of classes, as schedules and hooks do."""

    def __init__(self) -> None:
        self.lr = Warmup.rate
        self.method = self.rate
        self.cast = str.lower

    @staticmethod
    def rate(epoch: int) -> float:
        """A function of the class."""
        return epoch / 10


def saved(value: object, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def optimizers() -> Iterator[tuple[str, object]]:
    """One of every class in torch.optim, stepped once."""
    for name in sorted(dir(torch.optim)):
        cls = getattr(torch.optim, name)
        if not isinstance(cls, type) or not issubclass(cls, torch.optim.Optimizer) or cls is torch.optim.Optimizer:
            continue
        weight = torch.nn.Parameter(torch.ones(4, 4))
        if name == "SparseAdam":
            weight.grad = torch.eye(4).to_sparse()
        else:
            weight.grad = torch.ones(4, 4)
        made = cls([weight], lr=0.1)
        if name == "LBFGS":
            made.step(lambda: torch.tensor(1.0))
        else:
            made.step()
        yield name, made


def schedulers() -> Iterator[tuple[str, object]]:
    """One of every class in torch.optim.lr_scheduler."""
    scheduler = torch.optim.lr_scheduler
    options: dict[str, dict[str, Any]] = {
        "StepLR": {"step_size": 1},
        "MultiStepLR": {"milestones": [1]},
        "ExponentialLR": {"gamma": 0.9},
        "CosineAnnealingLR": {"T_max": 3},
        "CosineAnnealingWarmRestarts": {"T_0": 3},
        "CyclicLR": {"base_lr": 0.1, "max_lr": 0.2, "cycle_momentum": False},
        "OneCycleLR": {"max_lr": 0.2, "total_steps": 5},
        "LambdaLR": {"lr_lambda": math_scale},
        "MultiplicativeLR": {"lr_lambda": math_scale},
    }
    for name in sorted(dir(scheduler)):
        cls = getattr(scheduler, name)
        if (
            not isinstance(cls, type)
            or not issubclass(cls, scheduler.LRScheduler)
            or name in ("LRScheduler", "_LRScheduler")
        ):
            continue
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
        if name in ("SequentialLR", "ChainedScheduler"):
            parts = [scheduler.ConstantLR(optimizer), scheduler.ExponentialLR(optimizer, 0.9)]
            made = cls(optimizer, parts, milestones=[1]) if name == "SequentialLR" else cls(parts)
        else:
            made = cls(optimizer, **options.get(name, {}))
        yield name, made


def math_scale(epoch: int) -> float:
    """A function that a scheduler holds."""
    return 0.9**epoch


def lightning() -> dict[str, object]:
    """What Lightning writes, as to its structure; its own classes go by name in ``hyper_parameters``."""
    return {
        "epoch": 3,
        "global_step": 120,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": collections.OrderedDict(net=torch.ones(2)),
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 3, "completed": 3}}}},
        "callbacks": {
            "ModelCheckpoint{'monitor': 'val_loss'}": {"best_model_score": torch.tensor(0.5), "dirpath": "x"}
        },
        "optimizer_states": [torch.optim.Adam([torch.nn.Parameter(torch.ones(2))]).state_dict()],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 0.1, "path": pathlib.PurePosixPath("a/b")},
    }


def numpy_named(core: str) -> bytes:
    """A scalar and an array of numpy, named as numpy 1 (``numpy.core``) or numpy 2 (``numpy._core``) does."""
    import numpy

    values = {
        "loss": numpy.float64(0.5),
        "table": numpy.arange(6.0).reshape(2, 3),
        "flag": numpy.bool_(True),
        "when": numpy.datetime64("2026-01-01"),
        "texts": numpy.array(["a", "b"]),
        "any": numpy.array([None, 1], object),
        "rng": numpy.random.RandomState(0),
        "generator": numpy.random.default_rng(0),
        "dtype": numpy.dtype("f4"),
        "masked": numpy.ma.masked_array([1, 2], [0, 1]),
    }
    data = pickle.dumps(values, 2)
    return (
        data.replace(b"cnumpy._core.", b"cnumpy.core.")
        if core == "numpy.core"
        else data.replace(b"cnumpy.core.", b"cnumpy._core.")
    )


def sb3() -> bytes:
    """An archive like those of Stable-Baselines3."""
    import base64

    buffer = io.BytesIO()
    data = {
        "policy_class": {":type:": "x", ":serialized:": base64.b64encode(pickle.dumps(collections.deque([1]))).decode()}
    }
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data", json.dumps(data))
        archive.writestr("policy.pth", saved(torch.nn.Linear(2, 2).state_dict()))
        archive.writestr(
            "policy.optimizer.pth", saved(torch.optim.Adam([torch.nn.Parameter(torch.ones(1))]).state_dict())
        )
        archive.writestr("_stable_baselines3_version", "2.6.0")
    return buffer.getvalue()


def values() -> dict[str, object]:
    """Things beside tensors that training scripts keep."""
    generator = torch.Generator()
    return {
        "plain": {"a": 1, "b": [1.5, None, True], "c": ("x", {"y"}, frozenset([1])), "d": b"bytes"},
        "namespace": argparse.Namespace(lr=0.1, path=pathlib.Path("a"), layers=[1, 2], dtype=torch.float16),
        "simple namespace": SimpleNamespace(a=1),
        "rng": {"torch": torch.get_rng_state(), "python": random.getstate(), "generator": generator.get_state()},
        "random object": random.Random(3),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "scaler object": torch.amp.GradScaler("cpu", enabled=False),
        "dates": [datetime.datetime(2026, 1, 1), datetime.timedelta(1), datetime.UTC, datetime.date(2026, 1, 1)],
        "numbers": [decimal.Decimal("1.5"), fractions.Fraction(1, 3), 1 + 2j, uuid.UUID(int=1)],
        "collections": [collections.defaultdict(list, a=[1]), collections.Counter("aab"), collections.deque([1], 3)],
        "types": [int, float, dict, torch.float32, torch.device("cpu"), torch.Size([1, 2]), torch.strided, typing.Any],
        "generic types": [list[int], typing.Literal["a", "b"], dict[str, float]],
        "pattern": re.compile("a+"),
        "enum": Color.RED,
        "logger": logging.getLogger("x"),
        "partial": functools.partial(torch.nn.LayerNorm, eps=1e-6),
        "checkpointing": functools.partial(torch.utils.checkpoint.checkpoint, use_reentrant=False),
        "functions": [torch.relu, torch.nn.functional.gelu, torch.nn.init.xavier_uniform_],
        "slice": slice(1, 2),
        "range": range(3),
        "distribution": torch.distributions.Normal(torch.zeros(1), torch.ones(1)),
        "sparse": torch.eye(3).to_sparse(),
        "sparse csr": torch.eye(3).to_sparse_csr(),
        "quantized": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "nested": torch.nested.nested_tensor([torch.ones(1), torch.ones(2)]),
        "packed": torch.nn.utils.rnn.pack_sequence([torch.ones(2), torch.ones(1)]),
        "ema": torch.optim.swa_utils.AveragedModel(torch.nn.Linear(2, 2)).state_dict(),
        "dataset": torch.utils.data.TensorDataset(torch.ones(2)),
        "loader": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.ones(2)), shuffle=True),
        "more collections": [
            *(collections.ChainMap({"a": 1}), collections.UserDict(a=1), collections.UserList([1])),
            collections.UserString("x"),
        ],
        "time zones": [datetime.datetime(2026, 1, 1, tzinfo=zoneinfo.ZoneInfo("UTC")), zoneinfo.ZoneInfo("UTC")],
        "unions": [int | None, list[int] | str | None],
        "functions of Python": [max, min, sorted, len, print],
        "methods": [Warmup(), str.lower, torch.Tensor.add_, torch.nn.Module.train],
        "averaging schedule": torch.optim.swa_utils.SWALR(
            torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1), 0.05
        ),
        "jagged": torch.nested.nested_tensor([torch.ones(1), torch.ones(2)], layout=torch.jagged),
        "lightning": lightning(),
    }


def modules() -> dict[str, object]:
    """Whole modules."""
    nn = torch.nn
    return {
        "own class": Net(),
        "linear": nn.Linear(2, 2),
        "transformer": nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), 1, enable_nested_tensor=False
        ),
        "lstm": nn.LSTM(2, 2),
        "weight norm": nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)).state_dict(),
        "data parallel": nn.DataParallel(nn.Linear(2, 2)),
        "averaged": torch.optim.swa_utils.AveragedModel(nn.Linear(2, 2)),
        "lazy": nn.LazyLinear(2),
        "observed": torch.ao.quantization.FakeQuantize(),
        "quantized": torch.ao.nn.quantized.Linear(2, 2),
        "embedding bag": nn.EmbeddingBag(3, 2),
        "parameters": nn.ParameterDict({"a": nn.Parameter(torch.ones(1))}),
        "checkpointed": checkpoint_wrapper(nn.Linear(2, 2)),
        "dynamically quantized": torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(2, 2)), {nn.Linear}),
        "pruned": torch.nn.utils.prune.l1_unstructured(nn.Linear(2, 2), "weight", 0.5),
        **compiled(),
    }


def compiled() -> dict[str, torch.nn.Module]:
    """What torch.compile wraps around a module, saved whole, by the options that show in the file."""
    options: dict[str, dict[str, Any]] = {
        "compiled": {},
        "compiled for speed": {"mode": "reduce-overhead", "dynamic": True},
        "compiled whole": {"fullgraph": True},
        "compiled by eager": {"backend": "eager"},
        "compiled by aot_eager": {"backend": "aot_eager"},
    }
    made: dict[str, torch.nn.Module] = {name: torch.compile(Net(), **given) for name, given in options.items()}
    in_place = Net()
    in_place.compile()
    return made | {
        "compiled in place": in_place,
        "compiled in part": torch.nn.Sequential(torch.compile(torch.nn.Linear(2, 2)), torch.nn.ReLU()),
        "not to be compiled": torch._dynamo.disable(Net()),
    }


def pictures() -> Iterator[tuple[str, object]]:
    """Datasets, transforms and weights of torchvision."""
    import tempfile

    import torchvision
    from PIL import Image
    from torchvision.transforms import v2

    weights = torchvision.models.ResNet18_Weights.DEFAULT
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "cat").mkdir()
        Image.new("RGB", (2, 2)).save(pathlib.Path(folder) / "cat/1.png")
        yield "folder of images", torchvision.datasets.ImageFolder(folder, v2.RandAugment())
    yield "generated images", torchvision.datasets.FakeData(2, transform=torchvision.transforms.ToTensor())
    yield "weights", {"weights": weights, "transforms": weights.transforms()}
    yield "boxes", torchvision.tv_tensors.BoundingBoxes(torch.ones(1, 4), format="XYXY", canvas_size=(3, 3))


def mapped() -> bytes:
    """An array that lies in a file of its own, pickled all the same."""
    import tempfile

    import numpy

    with tempfile.TemporaryFile() as file:
        return pickle.dumps({"table": numpy.memmap(file, "f4", "w+", shape=(2,))})


def formula() -> bytes:
    """What torch keeps of sizes that are not known yet."""
    import sympy

    x = sympy.Symbol("x", integer=True)
    return pickle.dumps({"size": 2 * x + 1, "bound": sympy.Min(x, 3), "real": sympy.Float("1.5"), "not": x > 2})


def torchvision_models(names: list[str] | None = None) -> Iterator[tuple[str, Callable[[], torch.nn.Module]]]:
    """torchvision's models, made without memory for their weights where torchvision can."""
    import torchvision

    for name in names or torchvision.models.list_models():

        def make(name: str = name) -> torch.nn.Module:
            options: dict[str, object] = {"weights": None}
            if "weights_backbone" in str(torchvision.models.get_model_builder(name).__annotations__):
                options["weights_backbone"] = None
            if name in ("inception_v3", "googlenet"):
                options["init_weights"] = False
            # the sizes of a RegNet are computed with tensors; the largest has the classes of the smallest
            large = name.startswith("regnet")
            with torch.device("cpu" if large else "meta"):
                return torchvision.models.get_model(f"{name[:8]}_400mf" if large else name, **options)

        yield name, make


def files() -> Iterator[tuple[str, bytes]]:
    """Everything but torchvision, each as a file."""
    for name, value in values().items():
        yield f"{name}, zip.pt", saved(value)
        yield f"{name}, legacy.pt", saved(value, legacy=True)
        for protocol in range(6):
            if name not in ("nested",):
                yield f"{name}, protocol {protocol}.pkl", pickle.dumps(value, protocol)
    for name, value in modules().items():
        yield f"module: {name}, zip.pt", saved(value)
        yield f"module: {name}, legacy.pt", saved(value, legacy=True)
    for name, value in optimizers():
        yield f"optimizer: {name}.pt", saved(value)
        yield f"optimizer: {name}, state.pt", saved(value.state_dict())  # type: ignore[attr-defined]
    for name, value in schedulers():
        yield f"scheduler: {name}.pt", saved(value)
        yield f"scheduler: {name}, state.pt", saved(value.state_dict())  # type: ignore[attr-defined]
    for name, value in pictures():
        yield f"torchvision: {name}.pt", saved(value)
    yield "mapped array.pkl", mapped()
    yield "formula.pkl", formula()
    for core in ("numpy.core", "numpy._core"):
        yield f"{core}.pkl", numpy_named(core)
    yield "sb3.zip", sb3()
