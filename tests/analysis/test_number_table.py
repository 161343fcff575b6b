"""``ckpt summary --stats`` gives torch's numbers for each tensor, in the table and in JSON."""

import json

import pytest

torch = pytest.importorskip("torch")


def test_numbers_and_remarks(run, tmp_path):
    torch.manual_seed(0)
    weight = torch.randn(40, 7)
    odd = torch.tensor([1.0, float("nan"), float("inf"), 0.0, 1e-40])
    torch.save({"w": weight, "odd": odd, "ones": torch.ones(9).bfloat16(), "n": torch.tensor(3)}, tmp_path / "m.pt")
    done = run("summary", tmp_path / "m.pt", "--stats", "--format", "json")
    assert (done.exit_code, done.stderr) == (0, "")
    found = {entry["name"]: entry for entry in json.loads(done.stdout)["files"][0]["statistics"]}
    exact = weight.double()
    for key, value in {
        "min": exact.min(), "max": exact.max(), "mean": exact.mean(), "std": exact.std(), "l2": exact.norm(),
    }.items():  # fmt: skip
        assert found["w"][key] == pytest.approx(value.item(), rel=1e-12)
    assert (found["odd"]["nan"], found["odd"]["positive_infinity"], found["odd"]["zeros"]) == (1, 1, 1)
    assert (found["odd"]["subnormal"], found["odd"]["finite"]) == (1, 3)
    assert found["ones"]["constant"] and found["n"]["max"] == 3
    text = run("summary", tmp_path / "m.pt", "--stats", "--keys", "o*", env={"COLUMNS": "200"}).stdout
    table = text.partition("Statistics")[2]
    assert "1 NaN, 1 Inf, 1 subnormal" in table and "constant" in table
    assert "  w " not in table


def test_a_tensor_without_bytes_says_why(run, tmp_path):
    torch.save({"w": torch.zeros(2), "m": torch.zeros(3, device="meta")}, tmp_path / "m.pt")
    done = run("summary", tmp_path / "m.pt", "--stats", "--format", "json")
    found = {entry["name"]: entry for entry in json.loads(done.stdout)["files"][0]["statistics"]}
    assert "meta" in found["m"]["reason"] and found["w"]["zeros"] == 2
