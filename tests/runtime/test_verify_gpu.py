"""``ckpt verify --device cuda``: ``pytest -m gpu -n 0 tests`` runs these where there is a CUDA device."""

import pytest

from ckpt_tools.verification.job import Job
from ckpt_tools.verification.results import CHECKS, Verification

torch = pytest.importorskip("torch")
nn = torch.nn
checks = pytest.importorskip("ckpt_tools.runtime.verify").checks
runs = pytest.importorskip("ckpt_tools.runtime.verify.runs")

gpu = pytest.mark.gpu

NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 32, 3, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.deep = nn.Conv2d(32, 32, 3, padding=1)
        self.head = nn.Linear(32, 4)
        self.twin = nn.Linear(32, 4)
        self.twin.weight = self.head.weight

    def forward(self, x):
        x = self.deep(self.norm(self.conv(x)).relu()).mean((2, 3))
        return {"one": self.head(x), "two": self.twin(x)}

class Stray(Net):
    def __init__(self):
        super().__init__()
        self.mean = torch.full((1, 3, 1, 1), 0.5)

    def forward(self, x):
        return super().forward(x - self.mean)

class Draws(Net):
    def forward(self, x):
        return {name: y + torch.rand_like(y) for name, y in super().forward(x).items()}

class Greedy(Net):
    def forward(self, x):
        return torch.empty(1 << 46, device=x.device)

class Pushes(Net):
    def forward(self, x):
        return super().forward(x.cuda())
"""


@pytest.fixture
def verify(tmp_path, monkeypatch):
    """The result for a class of NETS, whose weights are drawn anew."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpu_nets.py").write_text(NETS)
    space: dict = {}
    exec(compile(NETS, "gpu_nets.py", "exec"), space)
    torch.manual_seed(0)
    model = space["Net"]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    torch.save(model.state_dict(), "net.pt")

    def verify(name="Net", **options):
        options.setdefault("device", "cuda")
        options.setdefault("inputs", ["3,16,16"])
        job = Job("net.pt", f"gpu_nets.py:{name}", **options)
        return Verification(job.path, job.model, list(checks(job)))

    verify.bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    return verify


def problems(found):
    return [(p.code, p.severity) for p in found.problems if p.severity != "note"]


@gpu
def test_memory_and_time_are_told(verify):
    found = verify()
    assert problems(found) == []
    facts = found["runs"].facts
    assert facts["device"] == "cuda"
    assert facts["device_bytes"] >= verify.bytes
    assert 0 < facts["seconds"] < 60
    assert f" on {torch.cuda.get_device_name()}, " in found["runs"].message
    assert [output["path"] for output in facts["outputs"]] == ["one", "two"]


@gpu
def test_weights_on_the_device_are_still_those_of_the_file(verify):
    found = verify()
    assert {check.name for check in found.checks if check.verdict == "passed"} == set(CHECKS) - {"resume"}
    assert found["round-trip"].message == "13 tensors the same bit for bit"
    on_cpu = verify(device="cpu")
    assert found["round-trip"].facts["sha256"] == on_cpu["round-trip"].facts["sha256"]


@gpu
def test_outputs_are_those_of_the_cpu_and_of_another_batch(verify):
    """Convolutions in TF32 would be off by a thousandth."""
    assert problems(verify(device="cpu", record="cpu.npz")) == []
    found = verify(reference="cpu.npz", tolerance=1e-5)
    assert problems(found) == []
    assert "outputs-equal" in found.codes
    assert problems(verify(batch=4, tolerance=1e-5)) == []


@gpu
def test_auto_takes_the_gpu(verify):
    assert verify(device="auto")["runs"].facts["device"] == "cuda"


@gpu
@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("Stray", "forward-fails", "register_buffer"),
        ("Greedy", "forward-fails", "--device cpu, or a smaller --batch"),
        ("Draws", "not-deterministic", "draws random numbers"),
    ],
)
def test_what_goes_wrong_on_a_gpu(verify, name, code, words):
    found = verify(name)
    (problem,) = [problem for problem in found.problems if problem.code == code]
    assert words in problem.remedy


@gpu
def test_a_class_that_pushes_to_the_gpu_runs_there(verify):
    assert problems(verify("Pushes")) == []


@gpu
def test_settings_are_put_back(verify):
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    verify()
    verify("Greedy")
    after = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    assert after == before


# --- what can be tried without one


def test_settings_for_a_cuda_device():
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    with runs._in_full(torch.device("cuda")):
        assert torch.get_float32_matmul_precision() == "highest"
        assert not torch.backends.cudnn.allow_tf32
        assert torch.backends.cudnn.deterministic
    after = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.deterministic
    assert after == before


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "--device cpu, or a smaller --batch"),
        (
            RuntimeError("Expected all tensors to be on the same device, but found at least two devices"),
            "A tensor that is no parameter and no buffer stays where it was made: register_buffer(…, persistent=False)",
        ),
        (RuntimeError("CUDA error: device-side assert triggered"), "The class moves tensors to a GPU by itself"),
    ],
)  # fmt: skip
def test_errors_of_cuda(error, remedy):
    assert runs._failure(error, runs.Call(), nn.Linear(1, 1)).remedy.startswith(remedy)
