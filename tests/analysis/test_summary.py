"""The numbers of ``ckpt summary`` are torch's, and the table adds up to them."""

import pytest

from ckpt_tools import open_checkpoint
from ckpt_tools.analysis.summary import summarize
from ckpt_tools.report import Tree

torch = pytest.importorskip("torch")
nn = torch.nn


def report_of(tmp_path, value, **options):
    path = tmp_path / "m.pt"
    torch.save(value, path)
    return summarize(open_checkpoint(path), **options)


def layers(report):
    table = next(block for block in report.blocks if isinstance(block, Tree) and block.title == "Layers")
    return {row[0]: row for _, row in table.rows}


def test_resnet18_with_a_new_head(tmp_path):
    models = pytest.importorskip("torchvision").models
    model = models.resnet18()
    model.requires_grad_(False)
    model.fc = nn.Linear(512, 2)
    totals = report_of(tmp_path, model).data["totals"]
    assert totals == {
        "parameters": 11_177_538,
        "trainable": 1_026,
        "frozen": 11_176_512,
        "unknown": 0,
        "buffers": 9_620,
        "bytes": 44_710_152,
    }
    report = report_of(tmp_path, model.state_dict())
    assert report.data["totals"] == {**totals, "trainable": None, "frozen": None, "unknown": 11_177_538}
    assert "unknown" in report.verdict


def test_the_typo_leaves_nothing_trainable(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    model.requires_grad_(False)
    for p in model[1].parameters():
        p.requres_grad = True
    report = report_of(tmp_path, model)
    assert report.verdict == (
        "20 parameters: 0 trainable, 20 frozen (recorded in the file); requres_grad on 1.weight changes nothing"
    )


def test_tied_embedding_counts_once(tmp_path):
    model = nn.ModuleDict({"embed": nn.Embedding(32000, 288), "head": nn.Linear(288, 32000, bias=False)})
    model["head"].weight = model["embed"].weight
    for value in (model, model.state_dict()):
        report = report_of(tmp_path, value)
        assert report.data["totals"]["parameters"] == 32000 * 288
        assert report.data["tied"] == [["embed.weight", "head.weight"]]
        rows = layers(report)
        assert rows["head"][3] == "0" and rows["head"][-1] == "tied to embed.weight"


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v3_small", "googlenet", "swin_t", "vit_b_16", "convnext_tiny"])
def test_totals_are_torchs(tmp_path, name):
    models = pytest.importorskip("torchvision").models
    with torch.device("meta"):
        model = models.get_model(name, weights=None, **({"init_weights": False} if name == "googlenet" else {}))
    report = report_of(tmp_path, model)
    assert report.data["totals"]["parameters"] == sum(p.numel() for p in model.parameters())
    assert report.data["totals"]["buffers"] == sum(b.numel() for b in model.buffers())


def test_rows_add_up_at_every_depth(tmp_path):
    model = nn.Sequential(*(nn.TransformerEncoderLayer(8, 2, 16) for _ in range(4)), nn.Linear(8, 2))
    model[1].requires_grad_(False)
    for depth in (1, 2, 3, 4):
        report = report_of(tmp_path, model, depth=depth)
        data = report.data["rows"]
        top = [row for row in data if "." not in row["layer"].replace("other parameters", "")]
        assert sum(row["parameters"] for row in top) == sum(p.numel() for p in model.parameters())


def test_blocks_fold_only_where_the_status_agrees(tmp_path):
    model = nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(4, 4) for _ in range(8)), "head": nn.Linear(4, 2)})
    model["layers"][3].requires_grad_(False)
    rows = layers(report_of(tmp_path, model))
    assert list(rows) == ["layers", "{0-2}", "3", "{4-7}", "head", "total"]
    assert rows["{0-2}"][3] == "60" and rows["3"][-1] == "frozen"
    assert rows["layers"][-1] == "partial 14/16"


def test_bare_parameters_have_a_line(tmp_path):
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.token = nn.Parameter(torch.zeros(5))
            self.layer = nn.Linear(2, 2)

    rows = layers(report_of(tmp_path, {"m": Own().state_dict()}))
    assert rows["other parameters"][3] == "5"
    assert rows["other parameters"][2] == "token 5"


def test_sort_and_keys(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 50), nn.Linear(50, 3))
    report = report_of(tmp_path, model, sort="parameters")
    assert [row["layer"] for row in report.data["rows"]] == ["2", "1", "0"]
    report = report_of(tmp_path, model, keys="*.bias")
    assert report.data["totals"]["parameters"] == 2 + 50 + 3


def test_groups_show_their_rates(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    optimizer = torch.optim.AdamW(
        [{"params": model[0].parameters(), "lr": 1e-4}, {"params": model[1].parameters(), "weight_decay": 0.5}], lr=0.01
    )
    report = report_of(tmp_path, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    facts = [value for label, value in report.blocks[0].rows if label == "optimizer"]
    assert facts == [
        "AdamW, group 0, 2 parameters, lr 0.0001, weight_decay 0.01",
        "AdamW, group 1, 2 parameters, lr 0.01, weight_decay 0.5",
    ]
