"""Sharded state_dicts: what the index, the shards and the folder say, and every way in which they disagree."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from ckpt_tools.analysis.digest import digest
from ckpt_tools.checkpoint import Anomaly, Checkpoint
from ckpt_tools.contents import read_bytes
from ckpt_tools.errors import CkptError, CorruptFile, LimitExceeded, NotACheckpoint
from ckpt_tools.formats import open_checkpoint
from tests.formats.as_torch import assert_same_tensors, by_name

INDEX = "model.safetensors.index.json"
ONE, TWO = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"

A = np.arange(6, dtype="<f4").reshape(2, 3)
B = np.arange(4, dtype="<f4")
C = np.arange(2, dtype="<i8")


def shard(folder: Path, name: str, **tensors: np.ndarray) -> None:
    safetensors.numpy.save_file(tensors, folder / name, {"format": "pt"})


def index(folder: Path, weight_map: dict[str, str], name: str = INDEX, **metadata: object) -> None:
    (folder / name).write_text(json.dumps({"metadata": metadata, "weight_map": weight_map}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards, of a and b and of c, and their index."""
    shard(tmp_path, ONE, b=B, a=A)
    shard(tmp_path, TWO, c=C)
    index(tmp_path, {"a": ONE, "c": TWO, "b": ONE}, total_size=56)
    return tmp_path


def said(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    return [(anomaly.where, anomaly.what) for anomaly in checkpoint.anomalies]


def refused(target: Path) -> CkptError:
    with pytest.raises(CorruptFile) as caught:
        open_checkpoint(target)
    return caught.value


# --- what is right


def test_one_state_dict_in_the_order_of_the_index(folder: Path) -> None:
    checkpoint = open_checkpoint(folder)
    assert (checkpoint.format, checkpoint.kind, checkpoint.path) == ("sharded", "state_dict", str(folder))
    assert checkpoint.title == "sharded state_dict with an index, 2 shards (safetensors)"
    (state_dict,) = checkpoint.state_dicts
    assert (state_dict.path, state_dict.role) == ((), "model")
    assert [t.name for t in state_dict.tensors] == ["a", "c", "b"]
    assert [read_bytes(t) for t in state_dict.tensors] == [A.tobytes(), C.tobytes(), B.tobytes()]
    assert [t.shape for t in state_dict.tensors] == [(2, 3), (2,), (4,)]
    assert said(checkpoint) == []
    assert checkpoint.metadata == {"format": "pt", "total_size": 56}
    assert [part.path for part in checkpoint.parts] == [str(folder / ONE), str(folder / TWO)]
    assert checkpoint.size == sum(file.stat().st_size for file in folder.iterdir())
    assert checkpoint.refusals is None


def test_the_index_itself(folder: Path) -> None:
    checkpoint = open_checkpoint(folder / INDEX)
    whole = open_checkpoint(folder)
    assert checkpoint.path == str(folder / INDEX)
    assert digest(checkpoint.state_dicts[0].tensors) == digest(whole.state_dicts[0].tensors)
    assert (said(checkpoint), checkpoint.size) == ([], whole.size)


def test_an_index_of_any_name_is_known_by_its_content(folder: Path) -> None:
    (folder / INDEX).rename(folder / "weights.json")
    assert [t.name for t in open_checkpoint(folder / "weights.json").state_dicts[0].tensors] == ["a", "c", "b"]


def test_an_index_alone_is_none(folder: Path) -> None:
    with pytest.raises(NotACheckpoint, match="the index of a sharded checkpoint"):
        open_checkpoint((folder / INDEX).read_bytes())


def test_shards_in_a_subfolder(folder: Path) -> None:
    (folder / "shards").mkdir()
    (folder / ONE).rename(folder / "shards" / ONE)
    index(folder, {"a": f"shards/{ONE}", "c": TWO}, total_size=40)
    assert read_bytes(open_checkpoint(folder).state_dicts[0]["a"]) == A.tobytes()


def test_a_shard_may_be_a_link_as_in_a_cache(folder: Path) -> None:
    (folder / "blobs").mkdir()
    (folder / ONE).rename(folder / "blobs" / "0123")
    (folder / ONE).symlink_to(Path("blobs") / "0123")
    assert read_bytes(open_checkpoint(folder).state_dicts[0]["a"]) == A.tobytes()


def test_optimizer_states(tmp_path: Path) -> None:
    shard(tmp_path, ONE, **{"0.exp_avg": A, "0.exp_avg_sq": A})
    index(tmp_path, {"0.exp_avg": ONE, "0.exp_avg_sq": ONE})
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.kind, checkpoint.state_dicts[0].role) == ("optimizer", "optimizer")


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_as_torch_writes_it(tmp_path: Path, torch: ModuleType) -> None:
    import torch.distributed.checkpoint as dcp

    state = {f"layers.{i}.weight": torch.randn(3, 5, dtype=torch.bfloat16) for i in range(5)}
    state["head.bias"] = torch.randn(7)
    files = {name: 1 + i % 3 for i, name in enumerate(state)}
    writer = dcp.HuggingFaceStorageWriter(str(tmp_path), fqn_to_index_mapping=files)
    dcp.save(state, storage_writer=writer, no_dist=True)
    checkpoint = open_checkpoint(tmp_path)
    found = by_name(checkpoint)
    assert checkpoint.format == "sharded"
    assert_same_tensors({name: found[name] for name in state}, state)
    assert (len(checkpoint.parts), found.keys(), said(checkpoint)) == (3, state.keys(), [])


def test_bin_shards(tmp_path: Path, torch: ModuleType) -> None:
    shared = torch.randn(4, 3)
    first = {"embed": shared, "tied": shared, "bias": torch.randn(3)}
    second = {"half": torch.randn(2, dtype=torch.float16)}
    names = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
    torch.save(first, tmp_path / names[0])
    torch.save(second, tmp_path / names[1], _use_new_zipfile_serialization=False)
    weight_map = {**dict.fromkeys(first, names[0]), **dict.fromkeys(second, names[1])}
    index(tmp_path, weight_map, "pytorch_model.bin.index.json", total_size=64)  # what is tied counts once
    checkpoint = open_checkpoint(tmp_path)
    assert_same_tensors(by_name(checkpoint), {**first, **second})
    assert said(checkpoint) == []
    assert checkpoint.refusals == ()
    assert list(dict.fromkeys(p.member.partition(": ")[0] for p in checkpoint.pickles)) == names
    index(tmp_path, weight_map, "pytorch_model.bin.index.json", total_size=64 + 48)  # or as often as it is named
    assert said(open_checkpoint(tmp_path)) == []


def test_what_a_bin_shard_would_run_is_told(tmp_path: Path, torch: ModuleType) -> None:
    name = "pytorch_model-00001-of-00001.bin"
    torch.save({"w": torch.ones(2), "note": Path("/tmp")}, tmp_path / name)
    index(tmp_path, {"w": name}, "pytorch_model.bin.index.json", total_size=8)
    checkpoint = open_checkpoint(tmp_path)
    assert [(r.subject.startswith("pathlib."), r.path) for r in checkpoint.refusals or ()] == [(True, (name, "note"))]
    assert any(use.module.startswith("pathlib") for use in checkpoint.globals)


# --- what does not agree


def test_a_missing_shard(folder: Path) -> None:
    (folder / ONE).unlink()
    error = refused(folder)
    assert error.path == str(folder / INDEX)
    assert error.problem == (
        "1 of 2 shards is missing (cannot be read: No such file or directory), and with it 2 of 3 tensors: "
        f"{ONE} (a, b)"
    )
    assert error.remedy == "Fetch the missing files into the folder of the index"


def test_many_missing_shards_are_counted_not_listed(tmp_path: Path) -> None:
    index(tmp_path, {f"t{i}": f"{i}.safetensors" for i in range(1000)})
    problem = refused(tmp_path).problem
    assert problem.startswith("1,000 of 1,000 shards are missing")
    assert "with them 1,000 of 1,000 tensors: 0.safetensors, 1.safetensors," in problem
    assert "and 994 more" in problem
    assert len(problem) < 400


def test_a_tensor_that_no_shard_holds(folder: Path) -> None:
    index(folder, {"a": ONE, "lost": TWO, "b": TWO}, total_size=1)
    assert refused(folder).problem == (
        f"1 tensor is in the index, but in no shard: lost; 1 tensor is in {ONE}, where the index has {TWO}: b "
        f"(weight_map); 1 tensor is not in the index: c ({TWO}); total_size is 1 bytes, the tensors that are there "
        "take 40 (metadata)"
    )


def test_a_tensor_in_another_shard(folder: Path) -> None:
    index(folder, {"a": ONE, "b": TWO, "c": TWO}, total_size=56)
    checkpoint = open_checkpoint(folder)
    assert said(checkpoint) == [("weight_map", f"1 tensor is in {ONE}, where the index has {TWO}: b")]
    assert read_bytes(checkpoint.state_dicts[0]["b"]) == B.tobytes()


def test_tensors_that_the_index_does_not_name(folder: Path) -> None:
    index(folder, {"a": ONE, "c": TWO}, total_size=40)
    checkpoint = open_checkpoint(folder)
    assert said(checkpoint) == [(ONE, "1 tensor is not in the index: b")]
    assert [t.name for t in checkpoint.state_dicts[0].tensors] == ["a", "c"]
    assert [(path, read_bytes(t)) for path, t in checkpoint.loose] == [((ONE, "b"), B.tobytes())]


def test_a_tensor_in_two_shards(folder: Path) -> None:
    shard(folder, TWO, c=C, a=2 * A)
    checkpoint = open_checkpoint(folder)
    assert said(checkpoint) == [(ONE, "1 tensor is in it and in another shard: a")]
    assert read_bytes(checkpoint.state_dicts[0]["a"]) == A.tobytes()


@pytest.mark.parametrize("total", [56, 56.0, "56"])
def test_total_size(folder: Path, total: object) -> None:
    index(folder, {"a": ONE, "c": TWO, "b": ONE}, total_size=total)
    assert said(open_checkpoint(folder)) == []


def test_no_total_size(folder: Path) -> None:
    index(folder, {"a": ONE, "c": TWO, "b": ONE})
    assert said(open_checkpoint(folder)) == []


@pytest.mark.parametrize(
    ("total", "what"),
    [
        (57, "total_size is 57 bytes, the tensors take 56"),
        (-1, "total_size is -1 bytes, the tensors take 56"),
        ("many", "total_size is 'many', no number of bytes"),
        (10**4000, f"total_size is '1{'0' * 39}', no number of bytes"),
        (float("inf"), "total_size is 'inf', no number of bytes"),
        (float("nan"), "total_size is 'nan', no number of bytes"),
        ("1" * 5000, f"total_size is '{'1' * 40}', no number of bytes"),
    ],
)
def test_wrong_total_size(folder: Path, total: object, what: str) -> None:
    index(folder, {"a": ONE, "c": TWO, "b": ONE}, total_size=total)
    assert said(open_checkpoint(folder)) == [("metadata", what)]


def test_shards_that_the_index_does_not_mention(folder: Path) -> None:
    shutil.copy(folder / ONE, folder / "model-00003-of-00002.safetensors")
    shutil.copy(folder / ONE, folder / "other-00001-of-00001.safetensors")
    (folder / "training_args.bin").write_bytes(b"")
    checkpoint = open_checkpoint(folder)
    assert said(checkpoint) == [("model-00003-of-00002.safetensors", "a shard that the index does not mention")]
    rest = "model-00003-of-00002.safetensors, other-00001-of-00001.safetensors, training_args.bin"
    assert checkpoint.metadata["not described"] == rest


def test_of_several_indexes_that_of_safetensors(folder: Path, torch: ModuleType) -> None:
    name = "pytorch_model-00001-of-00001.bin"
    torch.save({"w": torch.ones(2)}, folder / name)
    index(folder, {"w": name}, "pytorch_model.bin.index.json")
    shutil.copy(folder / INDEX, folder / "model.safetensors.index.fp16.json")
    checkpoint = open_checkpoint(folder)
    assert [t.name for t in checkpoint.state_dicts[0].tensors] == ["a", "c", "b"]
    assert said(checkpoint) == [
        ("model.safetensors.index.fp16.json", f"a second index: what {INDEX} names is described"),
        ("pytorch_model.bin.index.json", f"a second index: what {INDEX} names is described"),
    ]
    assert open_checkpoint(folder / "pytorch_model.bin.index.json").state_dicts[0]["w"].shape == (2,)


def test_anomalies_of_shards_say_which(folder: Path) -> None:
    data = (folder / TWO).read_bytes()
    length = int.from_bytes(data[:8], "little")
    (folder / TWO).write_bytes((length + 8).to_bytes(8, "little") + b" " * 8 + data[8:])
    (found,) = open_checkpoint(folder).anomalies
    assert found == Anomaly("the header begins with white space, where the format wants {", f"{TWO}: header")


# --- without an index


def test_numbered_shards_without_an_index(folder: Path) -> None:
    (folder / INDEX).unlink()
    checkpoint = open_checkpoint(folder)
    assert checkpoint.title == "sharded state_dict without an index, 2 shards (safetensors)"
    assert said(checkpoint) == [(str(folder), "there is no index: the shards' own headers were put together")]
    assert {t.name: read_bytes(t) for t in checkpoint.state_dicts[0].tensors} == {
        "a": A.tobytes(), "b": B.tobytes(), "c": C.tobytes(),
    }  # fmt: skip


def test_numbered_shards_without_an_index_are_complete_or_refused(tmp_path: Path) -> None:
    for number in (2, 5):
        shard(tmp_path, f"model-{number:05}-of-00005.safetensors", a=A)
    error = refused(tmp_path)
    assert error.problem == "3 of 5 shards are missing, and there is no index: " + ", ".join(
        f"model-{number:05}-of-00005.safetensors" for number in (1, 3, 4)
    )


def test_the_same_name_in_two_shards_without_an_index(folder: Path) -> None:
    (folder / INDEX).unlink()
    shard(folder, TWO, a=A)
    error = refused(folder)
    assert (error.member, error.problem) == (
        TWO, "several shards hold a tensor of this name: a, and no index tells which counts",
    )  # fmt: skip


def test_of_two_numbered_sets_that_of_safetensors(folder: Path) -> None:
    (folder / INDEX).unlink()
    (folder / "model-00001-of-00001.bin").write_bytes(b"")
    assert len(open_checkpoint(folder).parts) == 2


# --- a model's folder


CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.40.0",
    "hidden_size": 64,
}


def test_configuration(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(CONFIG))
    assert open_checkpoint(folder).producer == {
        "transformers": "4.40.0",
        "architecture": "LlamaForCausalLM",
        "model type": "llama",
        "declared dtype": "bfloat16",
        "framework": "PyTorch",
    }


def test_a_folder_of_one_file(tmp_path: Path) -> None:
    config = {"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.27.0"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    shard(tmp_path, "diffusion_pytorch_model.safetensors", a=A)
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"")
    (tmp_path / "optimizer.pt").write_bytes(b"")
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.format, checkpoint.path) == (
        "safetensors", str(tmp_path / "diffusion_pytorch_model.safetensors"),
    )  # fmt: skip
    assert checkpoint.producer == {
        "diffusers": "0.27.0", "architecture": "UNet2DConditionModel", "framework": "PyTorch",
    }  # fmt: skip
    assert checkpoint.metadata == {"format": "pt", "not described": "diffusion_pytorch_model.bin, optimizer.pt"}
    assert read_bytes(checkpoint.state_dicts[0]["a"]) == A.tobytes()


def test_a_file_without_configuration_makes_no_model_folder(tmp_path: Path) -> None:
    shard(tmp_path, "model.safetensors", a=A)
    with pytest.raises(NotACheckpoint):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": ' + "[" * 100_000, "\udcff"])
def test_a_broken_configuration_is_an_anomaly(folder: Path, text: str) -> None:
    (folder / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    ((where, what),) = said(open_checkpoint(folder))
    assert where == "config.json"
    assert what.startswith("not read: ")


@pytest.mark.parametrize("value", [{"architectures": [1]}, {"architectures": []}, {"model_type": {}}, {"dtype": 3}])
def test_odd_configurations(folder: Path, value: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(value))
    assert open_checkpoint(folder).producer == {"framework": "PyTorch"}


# --- hostile


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/../../x", "..\\x", "C:\\x", "\\\\host\\x"])
def test_shards_outside_the_folder_are_refused(folder: Path, name: str) -> None:
    index(folder, {"a": ONE, "x": name})
    assert "outside its folder" in str(refused(folder))


@pytest.mark.parametrize("name", ["", ".", "shards", "nul\0", "\ud800", "x" * 5000])
def test_names_that_are_no_file(folder: Path, name: str) -> None:
    (folder / "shards").mkdir()
    index(folder, {"a": ONE, "x": name})
    assert "1 of 2 shards is missing" in str(refused(folder))


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('{"weight_map": []}', "the index has no weight_map"),
        ('{"weight_map": {"a": 1}}', "the weight_map has no file name for tensor a"),
        ('{"weight_map": {"a": ["b"]}}', "the weight_map has no file name for tensor a"),
        ('{"metadata": 1}', "the index has no weight_map"),
        ('{"weight_map": ', "not valid JSON"),
        ("[]", "valid JSON, but not an object"),
        ("", "not valid JSON"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_no_index(folder: Path, text: str, problem: str) -> None:
    (folder / INDEX).write_text(text)
    assert problem in str(refused(folder))


def test_an_index_too_long_to_be_parsed(folder: Path) -> None:
    with (folder / INDEX).open("r+b") as file:
        file.truncate(1 << 30)
    with pytest.raises(LimitExceeded, match="1,073,741,824 bytes of JSON"):
        open_checkpoint(folder)


def test_an_empty_index(folder: Path) -> None:
    index(folder, {})
    assert open_checkpoint(folder).state_dicts[0].tensors == ()


def test_an_index_that_names_itself(folder: Path) -> None:
    index(folder, {"a": INDEX})
    with pytest.raises(NotACheckpoint, match="the index of a sharded checkpoint"):
        open_checkpoint(folder)


def test_a_shard_that_is_an_lfs_pointer(folder: Path) -> None:
    (folder / TWO).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 4976698672\n")
    with pytest.raises(CkptError, match="Git LFS pointer") as caught:
        open_checkpoint(folder)
    assert caught.value.path == str(folder / TWO)


def test_a_truncated_shard(folder: Path) -> None:
    data = (folder / ONE).read_bytes()
    (folder / ONE).write_bytes(data[:-5])
    error = refused(folder)
    assert (error.path, "truncated" in error.problem) == (str(folder / ONE), True)


def test_a_shard_that_holds_no_state_dict(folder: Path, torch: ModuleType) -> None:
    torch.save(torch.ones(3), folder / TWO)
    error = refused(folder)
    assert (error.path, error.problem) == (str(folder / TWO), "a shard holds no state_dict but a tensor")


def test_a_damaged_index_gives_a_description_or_an_error(folder: Path) -> None:
    data = (folder / INDEX).read_bytes()
    described = 0
    for at in range(len(data)):
        for byte in {data[at] ^ 0xFF, data[at] ^ 0x01, 0x00, 0x7B} - {data[at]}:
            (folder / INDEX).write_bytes(data[:at] + bytes([byte]) + data[at + 1 :])
            try:
                open_checkpoint(folder)
                described += 1
            except CkptError as error:
                assert str(error)
    assert 0 < described < 4 * len(data)


def test_inspect(folder: Path, run: Any) -> None:
    outcome = run("inspect", folder)
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    assert "sharded state_dict with an index, 2 shards (safetensors)" in outcome.stdout
    (folder / TWO).unlink()
    outcome = run("inspect", folder / INDEX)
    assert (outcome.exit_code, outcome.stdout) == (2, "")
    assert outcome.stderr.startswith(f"ckpt: {folder / INDEX}: 1 of 2 shards is missing")
