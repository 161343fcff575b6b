"""The description's own small rules."""

from __future__ import annotations

from ckpt_tools.checkpoint import Checkpoint, Module, Role, StateDict, Storage, TensorInfo, format_path
from ckpt_tools.dtypes import BY_NAME
from ckpt_tools.sources import MemorySource

SOURCE = MemorySource(b"", "x")


def tensor(name: str = "", shape: tuple[int, ...] = (2,)) -> TensorInfo:
    storage = Storage(SOURCE, 0, 64, BY_NAME["float32"], "cpu", "0")
    return TensorInfo(name, BY_NAME["float32"], shape, (1,) * len(shape), 0, storage)


def module(**options: object) -> Module:
    """A module with only what *options* name."""
    usual: dict[str, object] = {
        "name": "",
        "class_name": "m.Net",
        "children": {},
        "parameters": {},
        "buffers": {},
        "non_persistent": frozenset(),
        "training": True,
        "hyperparameters": {},
        "attributes": {},
    }
    return Module(**{**usual, **options})  # type: ignore[arg-type]


def state_dict(path: tuple[object, ...], role: Role, **entries: object) -> StateDict:
    return StateDict(path, role, entries)


def checkpoint(**parts: object) -> Checkpoint:
    return Checkpoint("x", SOURCE, "torch_zip", "", "object", **parts)  # type: ignore[arg-type]


def test_paths_as_text() -> None:
    assert format_path(()) == ""
    assert format_path(("model_state_dict",)) == "model_state_dict"
    assert format_path(("nets", 0, "encoder", 2)) == "nets[0].encoder[2]"
    assert format_path((0, "weight")) == "[0].weight"


def test_state_dicts_name_their_tensors() -> None:
    found = state_dict((), "model", b=tensor("other"), number=3, a=tensor())
    assert [t.name for t in found.tensors] == ["b", "a"]
    assert found["b"] is found.tensors[0]
    assert found["b"].storage is found.entries["b"].storage  # type: ignore[attr-defined]


def test_a_state_dict_of_a_module() -> None:
    """Own parameters, own persistent buffers, extra state, then the children; None is left out."""
    leaf = module(parameters={"w": tensor()}, buffers={"seen": tensor(), "cache": tensor()}, non_persistent={"cache"})
    root = module(
        parameters={"scale": tensor(), "none": None},
        buffers={"mask": None, "steps": tensor()},
        children={"a": leaf, "gone": None, "b": module(children={"a": leaf}, version=2)},
        extra_state={"seen": 1},
    )
    found = root.state_dict()
    assert list(found.entries) == ["scale", "steps", "_extra_state", "a.w", "a.seen", "b.a.w", "b.a.seen"]
    assert found["a.w"].storage is found["b.a.w"].storage
    assert found.metadata == {path: {"version": 2 if path == "b" else 1} for path in ("", "a", "b", "b.a")}
    assert [(path, part is leaf) for path, part in root.walk()] == [
        ("", False),
        ("a", True),
        ("b", False),
        ("b.a", True),
    ]


def test_storages_of_parts() -> None:
    parts = (("indices", tensor()), ("values", tensor()))
    whole = TensorInfo("t", BY_NAME["float32"], (4,), layout="sparse_coo", parts=parts)
    assert list(whole.storages()) == [part.storage for _, part in parts]
    assert whole.nbytes == 16
    assert list(tensor().storages()) != list(tensor().storages())  # each of its own


def test_the_model_is_plain_or_it_is_none() -> None:
    model = state_dict(("model",), "model", w=tensor())
    ema = state_dict(("ema",), "ema", w=tensor())
    optimizer = state_dict(("optimizer",), "optimizer", w=tensor())
    assert checkpoint(state_dicts=(ema, model, optimizer)).model_state_dict() is model
    assert checkpoint(state_dicts=(ema, optimizer)).model_state_dict() is None
    assert checkpoint(state_dicts=(model, state_dict(("other",), "model", w=tensor()))).model_state_dict() is None
    net = module(parameters={"w": tensor()})
    found = checkpoint(state_dicts=(ema,), module=net).model_state_dict()
    assert found is not None
    assert list(found.entries) == ["w"]
    assert checkpoint(state_dicts=(model,), module=net).model_state_dict() is model
