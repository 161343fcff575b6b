"""Exported programs are described as torch.export.load reads them."""

from __future__ import annotations

import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from ckpt_tools.checkpoint import Checkpoint, TensorInfo
from ckpt_tools.contents import read_bytes
from ckpt_tools.errors import CorruptFile, LimitExceeded, UnsupportedFeature
from ckpt_tools.formats import json_text, open_checkpoint
from tests.formats.as_torch import assert_only_ckpt_errors, assert_same_tensors, by_name, dense_bytes
from tests.formats.hostile import assert_withstands_damage

torch = pytest.importorskip("torch")
nn = torch.nn


class Program(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("passing", torch.arange(3.0), persistent=False)
        self.constant = torch.arange(2.0)
        self.tied = self.fc
        self.transposed = nn.Parameter(torch.arange(4.0).to(torch.bfloat16).reshape(2, 2).t(), requires_grad=False)
        whole = torch.arange(20.0)
        self.part = nn.Parameter(whole[3:7])
        self.strided = nn.Parameter(whole[4:10:2])
        self.whole = nn.Parameter(whole)

    def forward(self, x):
        sums = self.constant.sum() + self.transposed.sum() + self.part.sum() + self.strided.sum() + self.whole.sum()
        return self.tied(x) + self.norm(self.fc(x)) + self.passing + sums, x.shape[0]


@pytest.fixture(scope="module")
def program() -> Any:
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch = torch.export.Dim("batch", min=2, max=64)
        return torch.export.export(Program().eval(), (torch.ones(2, 4),), dynamic_shapes={"x": {0: batch}})


def saved(program: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(program, buffer, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def data(program: Any) -> bytes:
    return saved(program, extra_files={"labels.txt": "a b"})


def load(data: bytes) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.load(io.BytesIO(data))


def assert_like_torch(data: bytes) -> Checkpoint:
    checkpoint = open_checkpoint(data)
    there = load(data)
    assert_same_tensors(by_name(checkpoint, "state_dict"), there.state_dict)
    for name, tensor in by_name(checkpoint, "state_dict").items():
        assert tensor.is_parameter == isinstance(there.state_dict[name], nn.Parameter)
    constants = by_name(checkpoint, "constants") if there.constants else {}
    assert_same_tensors(constants, there.constants)
    return checkpoint


def test_state_dict_and_constants_are_torchs(data: bytes) -> None:
    checkpoint = assert_like_torch(data)
    assert (checkpoint.format, checkpoint.kind) == ("exported_program", "program")
    assert [(s.path, s.role) for s in checkpoint.state_dicts] == [
        (("state_dict",), "model"),
        (("constants",), "other"),
    ]
    assert checkpoint.anomalies == ()


def test_tensors_share_storages_as_in_the_model(data: bytes) -> None:
    tensors = by_name(open_checkpoint(data), "state_dict")
    assert tensors["fc.weight"].storage is tensors["tied.weight"].storage
    assert tensors["part"].storage is tensors["strided"].storage is tensors["whole"].storage
    assert (tensors["strided"].storage_offset, tensors["strided"].stride) == (4, (2,))


def test_versions_inputs_and_outputs_are_told(data: bytes) -> None:
    checkpoint = open_checkpoint(data)
    assert checkpoint.producer["torch"] == torch.__version__
    assert checkpoint.producer["opset"].startswith("aten ")
    from torch._export.serde.schema import SCHEMA_VERSION

    assert checkpoint.producer["schema version"] == ".".join(map(str, SCHEMA_VERSION))
    (entry,) = checkpoint.metadata["inputs"]  # type: ignore[misc]
    assert entry.startswith("x: float32[s") and entry.endswith(", 4]")
    first, second = checkpoint.metadata["outputs"]  # type: ignore[misc]
    assert ": float32[s" in first and ":" not in second
    assert checkpoint.metadata["non-persistent buffers"] == ("passing",)
    assert checkpoint.metadata["extra files"] == ("labels.txt",)


def test_torch_load_refuses_it(data: bytes) -> None:
    with pytest.raises(RuntimeError):
        torch.load(io.BytesIO(data), weights_only=True)
    refusals = open_checkpoint(data).refusals
    assert refusals is not None
    assert [refusal.subject for refusal in refusals] == ["torch.export"]


def test_the_pickled_sample_inputs_are_among_the_pickles(data: bytes) -> None:
    # torch.export.load unpickles them
    checkpoint = open_checkpoint(data)
    assert [p.member for p in checkpoint.pickles] == ["archive/data/sample_inputs/model.pt: archive/data.pkl"]
    assert "torch._utils._rebuild_tensor_v2" in {str(use) for use in checkpoint.globals}


def test_several_programs_in_one_archive(program: Any) -> None:
    from torch.export.pt2_archive._package import package_pt2

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package_pt2(buffer, exported_programs={"one": program, "two": program})
    checkpoint = open_checkpoint(buffer.getvalue())
    assert_same_tensors(by_name(checkpoint, "two", "state_dict"), dict(sorted_like(checkpoint, program)))
    assert [s.path for s in checkpoint.state_dicts] == [
        ("one", "state_dict"), ("one", "constants"), ("two", "state_dict"), ("two", "constants")
    ]  # fmt: skip
    assert checkpoint.metadata["two: inputs"] == checkpoint.metadata["one: inputs"]


def sorted_like(checkpoint: Checkpoint, program: Any) -> Iterator[tuple[str, Any]]:
    # those that share a storage are written one after the other
    for name in by_name(checkpoint, "two", "state_dict"):
        yield name, program.state_dict[name]


def test_torchvision_model() -> None:
    models = pytest.importorskip("torchvision.models")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(models.squeezenet1_1().eval(), (torch.ones(1, 3, 64, 64),))
    assert_like_torch(saved(program))


# --- other layouts


def rewritten(
    data: bytes, edit: Callable[[str, bytes], bytes | None], more: Mapping[str, bytes] | None = None
) -> bytes:
    """*data* with each member given through *edit*, None leaving it out, and with *more* members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            kept = edit(name, old.read(name))
            if kept is not None:
                new.writestr(name, kept)
        for name, content in (more or {}).items():
            new.writestr(name, content)
    return buffer.getvalue()


def torch_saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_weights_in_one_file_of_torch_save(program: Any, data: bytes) -> None:
    def edit(name: str, content: bytes) -> bytes | None:
        return None if "/data/weights/" in name or "/data/constants/" in name else content

    older = rewritten(
        data,
        edit,
        {
            "archive/data/weights/model.pt": torch_saved(program.state_dict),
            "archive/data/constants/model.pt": torch_saved(program.constants),
        },
    )
    checkpoint = assert_like_torch(older)
    assert [p.member for p in checkpoint.pickles] == [
        f"archive/data/{name}/model.pt: archive/data.pkl" for name in ("weights", "constants", "sample_inputs")
    ]


def test_torch_2_1_to_2_7(program: Any) -> None:
    from torch._export.serde.schema import SCHEMA_VERSION
    from torch._export.serde.serialize import serialize

    artifact = serialize(program)
    for suffix in ("pt", "json"):
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("version", ".".join(map(str, SCHEMA_VERSION)))
            archive.writestr("serialized_exported_program.json", artifact.exported_program)
            archive.writestr(f"serialized_state_dict.{suffix}", artifact.state_dict)
            archive.writestr(f"serialized_constants.{suffix}", artifact.constants)
            archive.writestr("serialized_example_inputs.pt", artifact.example_inputs)
            archive.writestr("extra_files/labels.txt", "a b")
        checkpoint = open_checkpoint(buffer.getvalue())
        assert_same_tensors(by_name(checkpoint, "state_dict"), program.state_dict)
        assert_same_tensors(by_name(checkpoint, "constants"), program.constants)
        assert checkpoint.metadata["extra files"] == ("labels.txt",)
        assert checkpoint.producer["torch"] == torch.__version__
        assert len(checkpoint.pickles) == 3


def test_tensors_that_are_pickled_one_by_one(data: bytes) -> None:
    # as torch saves a tensor subclass
    meta = {"path_name": "weight_9", "is_param": False, "use_pickle": True, "tensor_meta": None}
    changed = with_config(data, lambda config: {**config, "odd": meta}, {"weight_9": torch_saved(torch.ones(2))})
    tensors = by_name(open_checkpoint(changed), "state_dict")
    assert read_bytes(tensors["odd"]) == dense_bytes(torch.ones(2))


def test_opaque_constants_are_evaluated_never_loaded(data: bytes) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return print, ("called",)

    meta = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    changed = with_config(
        data,
        lambda config: {"evil": meta},
        {"opaque_obj_0": pickle.dumps(Evil(), protocol=2)},
        folder="constants",
    )
    uses = [use for use in open_checkpoint(changed).globals if use.name == "print"]
    assert [use.uses for use in uses] == [{"call"}]


def test_programs_exported_without_values(data: bytes) -> None:
    changed = rewritten(data, lambda name, content: b"" if "/weight_" in name else content)
    (tensor, *_) = by_name(open_checkpoint(changed), "state_dict").values()
    assert tensor.storage is not None
    assert tensor.storage.missing is not None
    assert tensor.storage.missing.startswith("it was exported without values")
    with pytest.raises(UnsupportedFeature, match="without values"):
        read_bytes(tensor)


# --- damage


Config = dict[str, Any]


def with_config(
    data: bytes,
    edit: Callable[[Config], object],
    more: Mapping[str, bytes] | None = None,
    folder: str = "weights",
) -> bytes:
    """*data* with the configuration of its weights or constants given through *edit*, and with more members."""

    def edit_member(name: str, content: bytes) -> bytes:
        if name.endswith(f"model_{folder}_config.json"):
            return json.dumps({"config": edit(json.loads(content)["config"])}).encode()
        return content

    return rewritten(
        data, edit_member, {f"archive/data/{folder}/{name}": value for name, value in (more or {}).items()}
    )


def changed(key: str, value: object) -> Callable[[Config], Config]:
    """The configuration with one thing about ``fc.bias`` changed."""

    def edit(config: Config) -> Config:
        where = config["fc.bias"] if key in config["fc.bias"] else config["fc.bias"]["tensor_meta"]
        where[key] = value
        return config

    return edit


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("sizes", [{"as_int": 4}], r"fc\.bias: it reaches byte 16 of archive/data/weights/weight_\d, which has 12"),
        ("storage_offset", {"as_int": 1 << 62}, r"fc\.bias: it reaches byte"),
        ("storage_offset", None, r"fc\.bias: None is no size"),
        ("sizes", [{"as_int": -1}], r"fc\.bias: \{'as_int': -1\} is no size"),
        ("sizes", [{"as_expr": {"expr_str": "s0"}}], r"fc\.bias: .* is no size"),
        ("sizes", [], r"fc\.bias: it has 0 sizes and 1 strides"),
        ("sizes", "3", r"fc\.bias: sizes is '3', where a list is wanted"),
        ("dtype", True, r"fc\.bias: dtype is True, where a whole number is wanted"),
        ("device", None, r"fc\.bias: device is None"),
        ("path_name", "weight_99", r"fc\.bias: its member archive/data/weights/weight_99 is missing"),
        ("path_name", "../../models/model.json", r"fc\.bias: its member .* is missing"),
        ("tensor_meta", 3, r"fc\.bias: tensor_meta is 3"),
    ],
)
def test_a_false_description(key: str, value: object, message: str, data: bytes) -> None:
    with pytest.raises(CorruptFile, match=message):
        open_checkpoint(with_config(data, changed(key, value)))


def test_an_unknown_scalar_type(data: bytes) -> None:
    with pytest.raises(UnsupportedFeature, match=r"fc\.bias: it is of the scalar type 99"):
        open_checkpoint(with_config(data, changed("dtype", 99)))


@pytest.mark.parametrize(
    ("member", "content", "message"),
    [
        ("weights_config.json", b"[" * 100_000, "nested too deeply"),
        ("weights_config.json", b"[]", "valid JSON, but not an object"),
        ("weights_config.json", b'{"config": [1]}', "config is .1., where an object is wanted"),
        ("weights_config.json", b"{", "not valid JSON"),
        ("weights_config.json", b"\xff", "not valid JSON"),
        ("weights_config.json", b"1" * 5000, "not valid JSON"),
        ("weights_config.json", None, "without it"),
        ("archive_format", b"pt3", "an archive of format 'pt3'"),
        ("models/model.json", b"{]", "not valid JSON"),
        ("sample_inputs/model.pt", b"nothing", "no file of torch.save"),
        ("sample_inputs/model.pt", b"PK\x03\x04" + bytes(100), "cut short"),
    ],
)
def test_a_damaged_member(member: str, content: bytes | None, message: str, data: bytes) -> None:
    damaged = rewritten(data, lambda name, old: content if name.endswith(member) else old)
    with pytest.raises((CorruptFile, UnsupportedFeature), match=message) as caught:
        open_checkpoint(damaged)
    assert member in str(caught.value)


def test_a_graph_too_large_to_read_is_left_out(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        graph = archive.getinfo("archive/models/model.json").file_size
    monkeypatch.setattr(json_text.read_json, "__defaults__", (graph - 1,))
    checkpoint = open_checkpoint(data)
    assert str(checkpoint.metadata["graph"]).startswith("not read")
    assert "fc.bias" in by_name(checkpoint, "state_dict")


def test_a_graph_without_what_is_told_of_it(data: bytes) -> None:
    empty = rewritten(data, lambda name, old: b"{}" if name.endswith("model.json") else old)
    checkpoint = open_checkpoint(empty)
    assert (checkpoint.metadata["inputs"], checkpoint.metadata["outputs"]) == ((), ())


def test_members_that_overlap_are_not_read_over_and_over(data: bytes) -> None:
    # many names for one pickled member, each of which would have to be evaluated
    inner = torch_saved(torch.ones(1000))
    meta = {"is_param": False, "use_pickle": True, "tensor_meta": None}
    names = [f"weight_{n}" for n in range(100, 140)]
    full = with_config(data, lambda config: {n: {**meta, "path_name": n} for n in names}, dict.fromkeys(names, inner))
    assert len(open_checkpoint(full).pickles) == 41
    # all central entries point to the first one's local header, and the rest is cut out
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as new, zipfile.ZipFile(io.BytesIO(full)) as old:
        for info in old.infolist():
            if info.filename.rpartition("/")[2] not in names[1:]:
                new.writestr(info.filename, old.read(info))
        first = new.getinfo(f"archive/data/weights/{names[0]}")
        for name in names[1:]:
            again = zipfile.ZipInfo(f"archive/data/weights/{name}")
            again.CRC = first.CRC
            again.header_offset, again.file_size, again.compress_size = (
                first.header_offset, first.file_size, first.compress_size
            )  # fmt: skip
            new.filelist.append(again)
    with pytest.raises(LimitExceeded, match="overlap"):
        open_checkpoint(buffer.getvalue())


@pytest.fixture(scope="module")
def small() -> bytes:
    """An archive of one weight, one constant and no padding."""
    meta = {
        "dtype": 7, "sizes": [{"as_int": 1}], "strides": [{"as_int": 1}], "storage_offset": {"as_int": 0},
        "requires_grad": True, "device": {"type": "cpu", "index": None}, "layout": 7,
    }  # fmt: skip
    members = {
        "a/models/model.json": b'{"graph_module": {"signature": {"input_specs": [{"user_input": 1}]}}}',
        "a/data/weights/model_weights_config.json": json.dumps(
            {"config": {"w": {"path_name": "weight_0", "is_param": True, "tensor_meta": meta}}}
        ),
        "a/data/weights/weight_0": b"1234",
        "a/data/constants/model_constants_config.json": b'{"config": {}}',
        "a/archive_format": b"pt2",
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_cut_off_anywhere(small: bytes) -> None:
    assert isinstance(by_name(open_checkpoint(small), "state_dict")["w"], TensorInfo)
    assert assert_only_ckpt_errors(small) == 0


def test_damaged_anywhere(small: bytes) -> None:
    assert assert_withstands_damage(small) > 0
