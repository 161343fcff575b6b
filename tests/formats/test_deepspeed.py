"""ZeRO's folders, laid out as DeepSpeed lays them out: consolidated they are the weights that were cut up."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckpt_tools.checkpoint import Checkpoint, TensorInfo
from ckpt_tools.contents import read_bytes
from ckpt_tools.errors import CkptError, CorruptFile, NotACheckpoint
from ckpt_tools.formats import open_checkpoint
from tests.formats.as_torch import by_name, dense_bytes

torch = pytest.importorskip("torch")

Tensors = dict[str, Any]
MODEL = "mp_rank_00_model_states.pt"


def optim(rank: int, mp: int = 0, prefix: str = "") -> str:
    return f"{prefix}zero_pp_rank_{rank}_mp_rank_{mp:02}_optim_states.pt"


def model3(rank: int) -> str:
    return f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt"


def weights() -> Tensors:
    """Float32 master weights; sizes that no number of ranks divides."""
    torch.manual_seed(3)
    shapes = {"embed.weight": (5, 3), "layer.weight": (4, 3), "layer.bias": (4,), "scale": (), "head.weight": (2, 7)}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def states(module: Tensors | None, groups: list[Tensors] | None, world: int, **more: Any) -> dict[str, Any]:
    shapes = groups and [OrderedDict((name, tensor.shape) for name, tensor in group.items()) for group in groups]
    return {
        "module": module,
        "buffer_names": ["running"],
        "optimizer": None,
        "param_shapes": shapes,
        "frozen_param_shapes": None,
        "shared_params": {},
        "frozen_param_fragments": None,
        "lr_scheduler": None,
        "global_steps": 10,
        "dp_world_size": world,
        "mp_world_size": 1,
        "ds_config": {"zero_optimization": {"stage": 2}},
        "ds_version": "0.14.0",
        **more,
    }


def partition(stage: int | None, key: str, flats: list[Any], world: Any) -> dict[str, Any]:
    moments = {i: {"step": 10, "exp_avg": flat + 1, "exp_avg_sq": flat + 2} for i, flat in enumerate(flats)}
    groups = [{"lr": 0.001, "betas": (0.9, 0.999), "weight_decay": 0.0, "params": [i]} for i in range(len(flats))]
    state = {
        "partition_count": world,
        key: flats,
        "base_optimizer_state": {"state": moments, "param_groups": groups},
        "ds_version": "0.14.0",
    }
    return {"optimizer_state_dict": state if stage is None else {"zero_stage": stage, **state}, "ds_version": "0.14.0"}


def split(group: Tensors, world: int, padded: bool = True) -> list[Any]:
    """A group flattened, padded to a multiple of 2 × ranks, and cut into as many parts."""
    flat = torch.cat([tensor.flatten() for tensor in group.values()])
    numel = flat.numel()
    flat = torch.nn.functional.pad(flat, (0, -numel % (2 * world)))
    parts = list(flat.chunk(world))
    if not padded:  # an elastic checkpoint leaves the padding out, which all is at the end
        left = numel
        for rank, part in enumerate(parts):
            parts[rank] = part[: min(left, part.numel())]
            left -= parts[rank].numel()
    return [part.clone() for part in parts]


def cut(tensor: Any, world: int) -> list[Any]:
    """One parameter in equal parts, the last ones padded."""
    part = math.ceil(tensor.numel() / world)
    flat = torch.nn.functional.pad(tensor.flatten(), (0, part * world - tensor.numel()), value=9.0)
    return [piece.clone() for piece in flat.split(part)]


def zero_2(folder: Path, world: int = 2, *, stage: int | None = 2, padded: bool = True, prefix: str = "") -> Tensors:
    """Stages 1 and 2: two groups of parameters, a buffer, a frozen parameter and a tied one; the master weights."""
    folder.mkdir(parents=True, exist_ok=True)
    master = weights()
    names = list(master)
    groups = [{n: master[n] for n in names[1:4]}, {n: master[n] for n in (names[4], names[0])}]
    module = {name: tensor.bfloat16() for name, tensor in master.items()}
    module["tied.weight"] = module["embed.weight"]
    module["running"], module["frozen"] = torch.randn(3).bfloat16(), torch.randn(2, 2).bfloat16()
    frozen = {} if stage == 1 else {"frozen_param_shapes": {"frozen": (2, 2)}}
    if frozen:
        frozen["frozen_param_fragments"] = {"frozen": module["frozen"]}  # type: ignore[dict-item]
    shared = {"tied.weight": "embed.weight"}
    torch.save(states(module, groups, world, shared_params=shared, **frozen), folder / MODEL)
    parts = [split(group, world, padded) for group in groups]
    for rank in range(world):
        flats = [part[rank] for part in parts]
        data = partition(stage, "single_partition_of_fp32_groups", flats, [world] * len(groups))
        torch.save(data, folder / optim(rank, prefix=prefix))
    return {**master, "tied.weight": master["embed.weight"], "running": module["running"], "frozen": module["frozen"]}


def zero_3(folder: Path, world: int = 2, *, flat_groups: int = 1) -> Tensors:
    """Stage 3: each parameter cut by itself, in *flat_groups* tensors of each rank that cut through parameters."""
    folder.mkdir(parents=True, exist_ok=True)
    master = weights()
    names = list(master)
    groups = [{n: master[n] for n in names[:2]}, {n: master[n] for n in names[2:]}]
    frozen, running = torch.randn(5).half(), torch.randn(3).half()
    module = {name: torch.empty(0, dtype=torch.float16) for name in (*master, "tied.weight", "frozen")}
    parts = {name: cut(tensor, world) for name, tensor in master.items()}
    for rank in range(world):
        fragments = {"frozen": cut(frozen, world)[rank]}
        more = {"frozen_param_shapes": {"frozen": frozen.shape}, "frozen_param_fragments": fragments}
        data = states(
            {**module, "running": running}, groups, world, shared_params={"tied.weight": "embed.weight"}, **more
        )
        torch.save(data, folder / model3(rank))
        flat = torch.cat([part[rank] for part in parts.values()])
        flats = [piece.clone() for piece in flat.split(math.ceil(flat.numel() / flat_groups))]
        torch.save(partition(3, "fp32_flat_groups", flats, world), folder / optim(rank))
    return {**master, "tied.weight": master["embed.weight"], "running": running, "frozen": frozen}


def assert_weights(checkpoint: Checkpoint, expected: Tensors, *path: object) -> dict[str, TensorInfo]:
    found = by_name(checkpoint, *(path or ("fp32",)))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert (f"torch.{found[name].dtype}", found[name].shape) == (str(tensor.dtype), tuple(tensor.shape)), name
        assert read_bytes(found[name]) == dense_bytes(tensor), name
    return found


def said(checkpoint: Checkpoint) -> list[tuple[str, str]]:
    return [(anomaly.where, anomaly.what) for anomaly in checkpoint.anomalies]


def refused(folder: Path) -> CkptError:
    with pytest.raises(CorruptFile) as caught:
        open_checkpoint(folder)
    return caught.value


# --- consolidated


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("padded", [True, False])
def test_stages_1_and_2(tmp_path: Path, stage: int, world: int, padded: bool) -> None:
    expected = zero_2(tmp_path, world, stage=stage, padded=padded)
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.format, checkpoint.kind) == ("deepspeed", "training")
    assert checkpoint.title == f"DeepSpeed ZeRO stage {stage}, {world} rank{'s' if world > 1 else ''}"
    found = assert_weights(checkpoint, expected)
    assert list(found)[:2] == ["embed.weight", "layer.weight"]  # in the order of module
    assert said(checkpoint) == []


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("flat_groups", [1, 3])
def test_stage_3(tmp_path: Path, world: int, flat_groups: int) -> None:
    expected = zero_3(tmp_path, world, flat_groups=flat_groups)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.title == f"DeepSpeed ZeRO stage 3, {world} rank{'s' if world > 1 else ''}"
    assert_weights(checkpoint, expected)
    assert said(checkpoint) == []


@pytest.mark.parametrize("make", [zero_2, zero_3])
def test_what_is_trainable_frozen_or_tied(tmp_path: Path, make: Callable[[Path], Tensors]) -> None:
    make(tmp_path)
    found = by_name(open_checkpoint(tmp_path), "fp32")
    flags = {name: (tensor.is_parameter, tensor.requires_grad) for name, tensor in found.items()}
    trainable = dict.fromkeys([*weights(), "tied.weight"], (True, True))
    assert flags == {**trainable, "frozen": (True, False), "running": (False, False)}
    assert found["tied.weight"].storage is found["embed.weight"].storage


def test_in_stage_1_a_parameter_outside_the_optimizer_is_not_known_to_be_frozen(tmp_path: Path) -> None:
    zero_2(tmp_path, stage=1)
    found = by_name(open_checkpoint(tmp_path), "fp32")["frozen"]
    assert (found.is_parameter, found.requires_grad) == (True, None)


def test_a_parameter_within_one_partition_lies_in_its_file(tmp_path: Path) -> None:
    zero_2(tmp_path)
    found = by_name(open_checkpoint(tmp_path), "fp32")
    inside, across = found["layer.bias"].storage, found["layer.weight"].storage
    assert inside is not None and across is not None
    place = inside.source.locate(0)
    assert place is not None and place[0] == str(tmp_path / optim(1))
    assert Path(place[0]).read_bytes()[place[1] : place[1] + 16] == dense_bytes(weights()["layer.bias"])
    assert across.source.locate(0) is None


def test_latest_names_the_folder(tmp_path: Path) -> None:
    expected = zero_2(tmp_path / "global_step10")
    zero_3(tmp_path / "global_step5")
    (tmp_path / "latest").write_text("global_step10\n")
    for name in ("rng_state_0.pth", "global_step10/custom.pkl", "README.md"):
        (tmp_path / name).write_bytes(b"")
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.path, checkpoint.metadata["zero_stage"]) == (str(tmp_path), 2)
    assert checkpoint.metadata["not described"] == "rng_state_0.pth, global_step10/custom.pkl"
    assert_weights(checkpoint, expected)
    assert [s.path[0] for s in checkpoint.state_dicts] == [
        "fp32", f"global_step10/{MODEL}", f"global_step10/{optim(0)}", f"global_step10/{optim(1)}",
    ]  # fmt: skip
    assert open_checkpoint(tmp_path / "global_step5").metadata["zero_stage"] == 3


def test_what_else_is_told(tmp_path: Path) -> None:
    zero_2(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.producer["DeepSpeed"] == "0.14.0"
    assert checkpoint.metadata == {
        "zero_stage": 2,
        "ranks": 2,
        optim(0): "26 elements in 2 groups",
        optim(1): "26 elements in 2 groups",
    }
    assert [(s.path, s.role) for s in checkpoint.state_dicts] == [
        (("fp32",), "model"),
        ((MODEL, "module"), "other"),
        ((optim(0), "optimizer_state_dict", "base_optimizer_state"), "optimizer"),
        ((optim(1), "optimizer_state_dict", "base_optimizer_state"), "optimizer"),
    ]
    module = by_name(checkpoint, MODEL, "module")
    assert {tensor.dtype.name for tensor in module.values()} == {"bfloat16"}
    run = checkpoint.training
    assert run is not None and run.step is not None and run.lr is not None
    assert (run.step.value, run.step.path) == (10, (MODEL, "global_steps"))
    assert (run.lr.value, run.lr.path[0], run.optimizers) == (0.001, optim(0), ())
    assert [part.path for part in checkpoint.parts] == [str(tmp_path / name) for name in (MODEL, optim(0), optim(1))]
    assert checkpoint.size == sum(file.stat().st_size for file in tmp_path.iterdir())
    model = checkpoint.model_state_dict()
    assert model is not None and model.path == ("fp32",)
    assert checkpoint.refusals == ()
    assert [p.member.partition(": ")[0] for p in checkpoint.pickles] == [MODEL, optim(0), optim(1)]


def test_placeholders_are_called_so(tmp_path: Path) -> None:
    zero_3(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    module = by_name(checkpoint, model3(0), "module")
    told = {name: tensor.details.get("placeholder_of") for name, tensor in module.items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in weights().items()}
    assert told == {**shapes, "frozen": (5,), "tied.weight": (5, 3), "running": None}
    assert checkpoint.metadata["placeholders"] == ("7 parameters have no elements in module: the partitions hold them")


def test_bfloat16_optimizers_record_no_stage(tmp_path: Path) -> None:
    expected = zero_2(tmp_path, stage=None, prefix="bf16_")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.metadata["zero_stage"] == 1
    assert_weights(checkpoint, expected)


def test_without_zero_there_is_a_model_and_an_optimizer(tmp_path: Path) -> None:
    optimizer = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    torch.save(states({"w": torch.ones(2)}, None, 4, optimizer=optimizer), tmp_path / MODEL)
    checkpoint = open_checkpoint(tmp_path)
    assert (checkpoint.title, said(checkpoint)) == ("DeepSpeed states, 4 ranks", [])
    assert [(s.path, s.role) for s in checkpoint.state_dicts] == [
        ((MODEL, "module"), "model"), ((MODEL, "optimizer"), "optimizer"),
    ]  # fmt: skip
    assert checkpoint.training is not None and len(checkpoint.training.optimizers) == 1


def test_without_partitions_module_is_the_model(tmp_path: Path) -> None:
    zero_2(tmp_path)
    for rank in (0, 1):
        (tmp_path / optim(rank)).unlink()
    checkpoint = open_checkpoint(tmp_path)
    model = checkpoint.model_state_dict()
    assert model is not None and model.path == (MODEL, "module")
    assert said(checkpoint) == [
        (MODEL, "there are no partitions beside it: weights in float32 and the optimizer's state are missing")
    ]


def test_model_parallel_ranks_stand_apart(tmp_path: Path) -> None:
    for mp in (0, 1):
        group = {"w": torch.full((2, 3), float(mp))}
        torch.save(states(group, [group], 1), tmp_path / f"mp_rank_{mp:02}_model_states.pt")
        data = partition(2, "single_partition_of_fp32_groups", split(group, 1), 1)
        torch.save(data, tmp_path / optim(0, mp))
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.title == "DeepSpeed ZeRO stage 2, 1 rank, 2 model-parallel ranks"
    for mp in (0, 1):
        assert_weights(checkpoint, {"w": torch.full((2, 3), float(mp))}, f"mp_rank_{mp:02}", "fp32")
    assert checkpoint.model_state_dict() is None


def test_layers_of_a_pipeline_stand_beside(tmp_path: Path) -> None:
    zero_2(tmp_path)
    torch.save({"0.weight": torch.ones(2)}, tmp_path / "layer_00-model_00-model_states.pt")
    torch.save({"1.weight": torch.ones(2)}, tmp_path / "layer_0_expert_1_mp_rank_00_model_states.pt")
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.metadata["pipeline or experts"] == "2 files beside the ranks' own"
    assert [s.path for s in checkpoint.state_dicts if s.role == "model"] == [
        ("fp32",), ("layer_00-model_00-model_states.pt",), ("layer_0_expert_1_mp_rank_00_model_states.pt",),
    ]  # fmt: skip


# --- what is missing


def test_missing_partitions_are_named(tmp_path: Path) -> None:
    zero_2(tmp_path, 4, prefix="bf16_")
    for rank in (1, 3):
        (tmp_path / optim(rank, prefix="bf16_")).unlink()
    error = refused(tmp_path)
    assert error.path == str(tmp_path)
    assert error.problem == (
        f"the partitions of 2 of 4 ranks are missing: {optim(1, prefix='bf16_')}, {optim(3, prefix='bf16_')}"
    )


def test_all_partitions_of_stage_3_missing(tmp_path: Path) -> None:
    zero_3(tmp_path)
    for rank in (0, 1):
        (tmp_path / optim(rank)).unlink()
    assert refused(tmp_path).problem == f"the partitions of 2 of 2 ranks are missing: {optim(0)}, {optim(1)}"


def test_missing_model_states(tmp_path: Path) -> None:
    zero_2(tmp_path)
    (tmp_path / MODEL).unlink()
    assert "the partitions of 2 ranks, but no model states" in refused(tmp_path).problem


def test_missing_model_states_with_frozen_fragments(tmp_path: Path) -> None:
    zero_3(tmp_path, 3)
    (tmp_path / model3(1)).unlink()
    assert refused(tmp_path).problem == f"the model states of 1 of 3 ranks are missing: {model3(1)}"


def test_missing_model_states_without_frozen_fragments(tmp_path: Path) -> None:
    expected = zero_3(tmp_path, 3)
    for rank in range(3):
        data = torch.load(tmp_path / model3(rank), weights_only=False)
        data["frozen_param_shapes"] = data["frozen_param_fragments"] = None
        del data["module"]["frozen"]
        torch.save(data, tmp_path / model3(rank))
    (tmp_path / model3(1)).unlink()
    del expected["frozen"]
    checkpoint = open_checkpoint(tmp_path)
    assert_weights(checkpoint, expected)
    assert said(checkpoint) == [(model3(1), "1 file of model states missing; they repeat what the others have")]


def test_a_world_that_no_files_stand_behind(tmp_path: Path) -> None:
    zero_2(tmp_path)
    flats = [torch.ones(8)]
    torch.save(partition(2, "single_partition_of_fp32_groups", flats, (1 << 32) - 1), tmp_path / optim(0))
    problem = refused(tmp_path).problem
    assert problem.startswith("the partitions of 4,294,967,293 of 4,294,967,295 ranks are missing: ")
    assert problem.endswith(f"{optim(7)} and 4,294,967,287 more")


def test_files_of_several_saves(tmp_path: Path) -> None:
    zero_2(tmp_path, 3)
    zero_2(tmp_path, 2)
    checkpoint = open_checkpoint(tmp_path)
    assert said(checkpoint) == [(optim(2), "of rank 2, where the others are of 2: left behind by another save")]
    zero_2(tmp_path / "other", 3)
    (tmp_path / "other" / optim(1)).replace(tmp_path / optim(1))
    assert refused(tmp_path).problem == f"of 3 ranks, where {optim(0)} is of 2: the files are of several saves"


@pytest.mark.parametrize("tag", ["global_step11", "", "..", "../x", "/etc", "nul\0", "x" * 9000])
def test_latest_names_nothing(tmp_path: Path, tag: str) -> None:
    zero_2(tmp_path / "global_step10")
    (tmp_path / "latest").write_text(tag)
    with pytest.raises(NotACheckpoint):  # any folder may hold a file of that name
        open_checkpoint(tmp_path)
    (tmp_path / "zero_to_fp32.py").write_text("")
    error = refused(tmp_path)
    assert "outside its folder" in str(error) or "there are some in global_step10" in str(error)


# --- what does not fit


def changed(folder: Path, name: str, change: Callable[[Any], None]) -> None:
    data = torch.load(folder / name, weights_only=False)
    change(data)
    torch.save(data, folder / name)


STATE: Callable[[Any], Any] = lambda data: data["optimizer_state_dict"]  # noqa: E731


@pytest.mark.parametrize(
    ("make", "name", "change", "problem"),
    [
        (zero_2, MODEL, lambda d: d["param_shapes"][0].update(scale=(1000,)), "the partitions of group 0 hold 20 elem"),
        (zero_2, MODEL, lambda d: d["param_shapes"][0].clear(), "the partitions of group 0 hold 20 elements"),
        (zero_2, MODEL, lambda d: d["param_shapes"].append({"x": (1,)}), "param_shapes have 3 groups"),
        (zero_2, MODEL, lambda d: d["param_shapes"].append(d["param_shapes"][0]), "name layer.weight twice"),
        (zero_2, MODEL, lambda d: d.update(param_shapes=None), "its param_shapes are None, no list of groups"),
        (zero_2, MODEL, lambda d: d["param_shapes"][0].update(scale=(-1,)), "scale has a size of -1"),
        (zero_2, MODEL, lambda d: d["param_shapes"][0].update(scale=(1,) * 65), "a parameter's shape is ('scale'"),
        (zero_2, MODEL, lambda d: d["param_shapes"][0].update(scale=7), "a parameter's shape is ('scale', 7)"),
        (
            zero_2,
            MODEL,
            lambda d: d["frozen_param_fragments"].clear(),
            "the frozen parameter frozen has a shape but no",
        ),
        (
            zero_2,
            MODEL,
            lambda d: d["frozen_param_shapes"].update(frozen=(9,)),
            "the frozen parameter frozen have 4 el",
        ),
        (zero_2, optim(1), lambda d: STATE(d).pop("partition_count"), "its partition_count is None"),
        (zero_2, optim(0), lambda d: STATE(d).update(partition_count=[]), "its partition_count is a list"),
        (zero_2, optim(0), lambda d: STATE(d).update(partition_count=-2), "its partition_count is -2"),
        (zero_2, optim(0), lambda d: STATE(d).update(zero_stage=9), "its zero_stage is 9"),
        (zero_2, optim(0), lambda d: d.clear(), "has no optimizer_state_dict"),
        (
            zero_2,
            optim(0),
            lambda d: STATE(d).update(single_partition_of_fp32_groups=None),
            "has no tensors at single_",
        ),
        (
            zero_2,
            optim(0),
            lambda d: STATE(d).update(single_partition_of_fp32_groups=[1]),
            "has no tensors at single_pa",
        ),
        (
            zero_2,
            optim(0),
            lambda d: STATE(d)["single_partition_of_fp32_groups"].pop(),
            "have 2 groups, and single_part",
        ),
        (
            zero_2,
            optim(0),
            lambda d: STATE(d)["single_partition_of_fp32_groups"].__setitem__(0, torch.ones(10).half()),
            "partitions of one group are of float16, float32",
        ),
        (
            zero_3,
            optim(1),
            lambda d: STATE(d)["fp32_flat_groups"].append(torch.ones(3)),
            "fp32_flat_groups differ in size",
        ),
        (
            zero_3,
            model3(0),
            lambda d: d["param_shapes"][0].update(more=(5,)),
            "each rank holds 24 elements, but the parameters take 27 of it",
        ),
        (
            zero_3,
            model3(1),
            lambda d: d["frozen_param_fragments"].update(frozen=torch.ones(4).half()),
            "the fragments of the frozen parameter frozen have 3, 4 elements, where 3 of one type are wanted",
        ),
    ],
)
def test_what_does_not_fit(
    tmp_path: Path, make: Callable[[Path], Tensors], name: str, change: Callable[[Any], None], problem: str
) -> None:
    make(tmp_path)
    changed(tmp_path, name, change)
    error = refused(tmp_path)
    assert problem in str(error)
    assert str(tmp_path) in str(error)


def test_repeated_groups_are_not_expanded(tmp_path: Path) -> None:
    zero_2(tmp_path)
    many = {f"p{i}": (1,) for i in range(20_000)}
    changed(tmp_path, MODEL, lambda data: data.update(param_shapes=[many] * 20_000))
    assert "name p0 twice" in str(refused(tmp_path))


def test_a_placeholder_without_a_partition(tmp_path: Path) -> None:
    zero_3(tmp_path)
    for rank in (0, 1):
        changed(tmp_path, model3(rank), lambda data: data["module"].update(lost=torch.empty(0)))
    assert said(open_checkpoint(tmp_path)) == [("lost", "a placeholder whose parameter no partition holds")]


def test_a_truncated_partition(tmp_path: Path) -> None:
    zero_2(tmp_path)
    data = (tmp_path / optim(1)).read_bytes()
    (tmp_path / optim(1)).write_bytes(data[:-200])
    error = refused(tmp_path)
    assert (error.path, "truncated" in error.problem) == (str(tmp_path / optim(1)), True)


def test_a_file_that_is_none(tmp_path: Path) -> None:
    zero_2(tmp_path)
    (tmp_path / optim(1)).write_bytes(b"")
    with pytest.raises(CkptError) as caught:
        open_checkpoint(tmp_path)
    assert caught.value.path == str(tmp_path / optim(1))


def test_inspect(tmp_path: Path, run: Any) -> None:
    zero_3(tmp_path / "global_step10")
    (tmp_path / "latest").write_text("global_step10")
    outcome = run("inspect", "--tensors", tmp_path)
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    assert "DeepSpeed ZeRO stage 3, 2 ranks" in outcome.stdout
    assert "placeholder_of [4, 3]" in outcome.stdout
    assert "torch.load(…)" not in outcome.stdout  # which takes no folder
