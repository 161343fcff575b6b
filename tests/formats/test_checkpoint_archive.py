"""Zip archives of checkpoints: Stable-Baselines3's, and any other."""

from __future__ import annotations

import base64
import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.checkpoint import Checkpoint
from ckpt_tools.errors import CkptError, CorruptFile, LimitExceeded, NotACheckpoint, UnsupportedFeature
from ckpt_tools.formats import checkpoint_archive, open_checkpoint
from tests.formats.as_torch import assert_only_ckpt_errors, assert_same_tensors, by_name

torch = pytest.importorskip("torch")


def saved(value: object, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def pack(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


class Bomb:
    def __reduce__(self) -> Any:
        return print, ("nothing of a file is called",)


def serialized(value: object) -> dict[str, str]:
    return {":type:": "<class 'x'>", ":serialized:": base64.b64encode(pickle.dumps(value)).decode()}


def trained() -> tuple[Any, Any]:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.125)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


def stable_baselines() -> dict[str, bytes]:
    model, optimizer = trained()
    data = {
        "num_timesteps": 1000,
        "gamma": 0.99,
        "seed": None,
        "use_sde": False,
        "note": "short",
        "text": "x" * 1000,
        "arch": [64, 64],
        "nested": [[64], {"a": 1}],
        "lr_schedule": serialized(Bomb()),
        "policy_kwargs": {":serialized:": "gAWV"},
    }
    return {
        "data": json.dumps(data).encode(),
        "pytorch_variables.pth": saved(None),
        "policy.pth": saved(model.state_dict()),
        "policy.optimizer.pth": saved(optimizer.state_dict()),
        "_stable_baselines3_version": b"2.3.0",
        "system_info.txt": b"- OS: Linux-5.14 #1 SMP\n- Python: 3.11.7\n- PyTorch: 2.3.0+cpu\n- Numpy: 1.26.4\n",
    }


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_stable_baselines_archive(method: int, tmp_path: Path) -> None:
    members = stable_baselines()
    path = tmp_path / "agent.zip"
    path.write_bytes(pack(members, method))
    checkpoint = open_checkpoint(path)
    assert (checkpoint.format, checkpoint.kind) == ("archive", "archive")
    assert checkpoint.title == "Stable-Baselines3 archive"
    with pytest.raises(RuntimeError):
        torch.load(path, weights_only=True)
    assert [refusal.subject for refusal in checkpoint.refusals or ()] == ["zip archive"]
    assert checkpoint.producer == {
        "stable-baselines3": "2.3.0",
        "python": "3.11.7",
        "torch": "2.3.0+cpu",
        "numpy": "1.26.4",
    }
    assert checkpoint.metadata == {
        "num_timesteps": 1000,
        "gamma": 0.99,
        "seed": None,
        "use_sde": False,
        "note": "short",
        "arch": [64, 64],
    }
    assert [part.path for part in checkpoint.parts] == [
        f"{path}: pytorch_variables.pth",
        f"{path}: policy.pth",
        f"{path}: policy.optimizer.pth",
    ]
    assert [part.kind for part in checkpoint.parts] == ["object", "state_dict", "optimizer"]
    expected = torch.load(io.BytesIO(members["policy.pth"]))
    assert_same_tensors(by_name(checkpoint, "policy.pth"), expected)
    assert [state_dict.path for state_dict in checkpoint.state_dicts] == [("policy.pth",), ("policy.optimizer.pth",)]
    model = checkpoint.model_state_dict()
    assert model is not None
    assert model.path == ("policy.pth",)
    run = checkpoint.training
    assert run is not None
    assert run.step is not None
    assert (run.step.value, run.step.path) == (1000, ("data", "num_timesteps"))
    assert run.lr is not None
    assert (run.lr.value, run.lr.path[0]) == (0.125, "policy.optimizer.pth")
    assert [optimizer.path for optimizer in run.optimizers] == [("policy.optimizer.pth",)]
    assert [part.member for part in checkpoint.pickles] == [
        "pytorch_variables.pth: archive/data.pkl",
        "policy.pth: archive/data.pkl",
        "policy.optimizer.pth: archive/data.pkl",
        "data: lr_schedule",
    ]
    assert [str(use) for use in checkpoint.pickles[-1].globals] == ["builtins.print"]
    (anomaly,) = checkpoint.anomalies
    assert anomaly.where == "data: policy_kwargs"
    assert "no whole pickle" in anomaly.what


def test_real_archive(corpus: Path) -> None:
    path = corpus / "sb3_a2c_cartpole.zip"
    checkpoint = open_checkpoint(path)
    with zipfile.ZipFile(path) as archive:
        expected = torch.load(io.BytesIO(archive.read("policy.pth")), weights_only=True, map_location="cpu")
    assert_same_tensors(by_name(checkpoint, "policy.pth"), expected)
    assert checkpoint.producer["stable-baselines3"] == "2.4.0a11"
    assert checkpoint.metadata["_n_updates"] == 12500
    assert checkpoint.training is not None
    assert checkpoint.training.step is not None
    assert checkpoint.training.step.value == 500_000
    assert "cloudpickle.cloudpickle._make_function" in {str(use) for use in checkpoint.globals}
    assert checkpoint.anomalies == ()


def test_bytes_lie_in_the_outer_file(tmp_path: Path) -> None:
    path = tmp_path / "models.zip"
    path.write_bytes(pack({"a.pth": saved({"w": torch.tensor([1.5])})}))
    storage = by_name(open_checkpoint(path), "a.pth")["w"].storage
    assert storage is not None
    located = storage.source.locate(storage.offset)
    assert located is not None
    assert located[0] == str(path)
    assert path.read_bytes()[located[1] : located[1] + 4] == b"\x00\x00\xc0\x3f"


def test_members_of_several_formats() -> None:
    weight = torch.tensor([1.0, 2.0])
    checkpoint = open_checkpoint(
        pack(
            {
                "README.md": b"# two models\n",
                "new/model.pt": saved({"w": weight}),
                "old.pt": saved({"w": weight}, legacy=True),
                "plain.pkl": pickle.dumps({"w": weight}),
                "empty": b"",
            }
        )
    )
    assert checkpoint.title == "zip archive of checkpoints"
    assert [part.format for part in checkpoint.parts] == ["torch_zip", "torch_legacy", "pickle"]
    for name in ("new/model.pt", "old.pt", "plain.pkl"):
        assert_same_tensors(by_name(checkpoint, name), {"w": weight})
    assert checkpoint.producer == {}
    assert checkpoint.training is None


def test_whole_model_and_loose_tensors() -> None:
    model = torch.nn.Linear(2, 1)
    checkpoint = open_checkpoint(pack({"list.pt": saved([torch.tensor(3)]), "model.pt": saved({"net": model})}))
    assert checkpoint.module is not None
    assert (checkpoint.module.class_name, checkpoint.module_path) == (
        "torch.nn.modules.linear.Linear",
        ("model.pt", "net"),
    )
    ((path, tensor),) = checkpoint.loose
    assert (path, tensor.shape) == (("list.pt", 0), ())
    refused = {refusal.subject: refusal.path for refusal in checkpoint.refusals or ()}
    assert refused["torch.nn.modules.linear.Linear"] == ("model.pt", "net")


def test_archive_in_an_archive_but_no_deeper() -> None:
    weight = torch.tensor([1.0])
    inner = pack({"model.pt": saved({"w": weight})})
    checkpoint = open_checkpoint(pack({"inner.zip": inner}))
    assert_same_tensors(by_name(checkpoint, "inner.zip", "model.pt"), {"w": weight})
    with pytest.raises(UnsupportedFeature, match="Unpack it"):
        open_checkpoint(pack({"outer.zip": pack({"inner.zip": inner})}))


def test_two_members_of_one_name() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.pt", saved({"first": torch.tensor([1.0])}))
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.pt", saved({"last": torch.tensor([1.0])}))
    checkpoint = open_checkpoint(buffer.getvalue())
    assert list(by_name(checkpoint, "a.pt")) == ["last"]
    assert [anomaly.where for anomaly in checkpoint.anomalies] == ["a.pt"]


def test_zip_without_checkpoints() -> None:
    with pytest.raises(NotACheckpoint):
        open_checkpoint(pack({"notes.txt": b"nothing here\n", "data": b"{}"}))


def test_error_names_the_member() -> None:
    members = {"good.pt": saved({"w": torch.tensor([1.0])}), "cut.pt": saved([torch.ones(9)], legacy=True)[:-5]}
    with pytest.raises(CorruptFile) as caught:
        open_checkpoint(pack(members))
    assert str(caught.value).startswith("<bytes>: cut.pt: truncated: it ends 31 bytes into storage")


def test_torch_archive_packed_without_its_folder() -> None:
    with zipfile.ZipFile(io.BytesIO(saved({"w": torch.tensor([1.0])}))) as archive:
        flat = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    data = pack(flat)
    with pytest.raises(RuntimeError):
        torch.load(io.BytesIO(data))
    with pytest.raises(NotACheckpoint) as caught:
        open_checkpoint(data)
    assert "not in the folder that torch looks for" in str(caught.value)


def test_encrypted_member_is_noted() -> None:
    data = bytearray(
        pack({"secret.pt": saved({"w": torch.tensor([2.0])}), "open.pt": saved({"w": torch.tensor([1.0])})})
    )
    start = data.rindex(b"secret.pt") - 46
    assert data[start : start + 4] == b"PK\x01\x02"
    data[start + 8] |= 1
    checkpoint = open_checkpoint(bytes(data))
    assert [part.path for part in checkpoint.parts] == ["<bytes>: open.pt"]
    assert [(a.what, a.where) for a in checkpoint.anomalies] == [("the member is encrypted", "secret.pt")]


def test_size_that_its_bytes_cannot_inflate_to() -> None:
    data = bytearray(pack({"zeros": bytes(1 << 20), "a.pt": saved([])}, zipfile.ZIP_DEFLATED))
    start = data.rindex(b"zeros") - 46
    data[start + 24 : start + 28] = (1_050_000_000).to_bytes(4, "little")
    with pytest.raises(CorruptFile, match="deflated bytes can hold"):
        open_checkpoint(bytes(data))


def test_compression_bomb_is_not_inflated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_archive, "MAX_INFLATED", 1 << 20)
    members = {f"zeros {number}": bytes(300_000) for number in range(4)}
    checkpoint = open_checkpoint(pack({**members, "a.pt": saved({"w": torch.tensor([1.0])})}, zipfile.ZIP_DEFLATED))
    (anomaly,) = checkpoint.anomalies
    assert anomaly.where == "zeros 3"
    assert "would be inflated to 300,000" in anomaly.what
    assert len(checkpoint.parts) == 1


def test_members_that_overlap() -> None:
    data = pack({f"{number}.pt": saved({"w": torch.tensor([float(number)])}) for number in range(3)})
    end = data.rindex(b"PK\x05\x06")
    directory = int.from_bytes(data[end + 16 : end + 20], "little")
    entry = data[directory : data.index(b"PK\x01\x02", directory + 4)]
    tail = bytearray(data[end:])
    tail[8:10] = tail[10:12] = (50).to_bytes(2, "little")
    tail[12:16] = (50 * len(entry)).to_bytes(4, "little")
    with pytest.raises(LimitExceeded, match="overlap"):
        open_checkpoint(data[:directory] + 50 * entry + bytes(tail))


@pytest.mark.parametrize(
    "data",
    [b"", b"[" * 100_000, b"{", b"[1]", b"\xff\xfe", b'{"num_timesteps": "many"}', b'{"a": {":serialized:": 1}}'],
)
def test_data_that_is_no_json_of_stable_baselines(data: bytes) -> None:
    checkpoint = open_checkpoint(pack({"data": data, "a.pt": saved({"w": torch.tensor([1.0])})}))
    assert len(checkpoint.parts) == 1
    assert checkpoint.training is None


def test_every_truncation_ends_in_an_error_of_ours() -> None:
    data = pack({"a.pt": saved([torch.tensor([1.0])], legacy=True), "b.pkl": pickle.dumps([1]), "data": b'{"x": 1}'})
    assert isinstance(open_checkpoint(data), Checkpoint)
    assert assert_only_ckpt_errors(data) == 0


def test_damage_ends_in_a_description_or_an_error_of_ours() -> None:
    data = pack({"a.pt": saved([torch.tensor([1.0])], legacy=True), "data": b'{"x": 1}'}, zipfile.ZIP_DEFLATED)
    for at in range(len(data)):
        for byte in {data[at] ^ 0xFF, data[at] ^ 1, 0xFF} - {data[at]}:
            try:
                open_checkpoint(data[:at] + bytes([byte]) + data[at + 1 :])
            except CkptError as error:
                assert str(error)
