"""Reports that show every kind of block, for the tests of HTML."""

import math

from ckpt_tools.render import render
from ckpt_tools.report import Facts, HeatMap, Histogram, Report, Table, Tree

HOSTILE = [
    "</script><script>window.ran = 1</script>",
    "<img src=x onerror='window.ran = 1'>",
    "\"><svg onload='window.ran = 1'>",
    '" onmouseover="window.ran = 1" x="',
    "javascript:window.ran=1",
    "{{ 7 * 191 }}{% raw %}",
    "</style><style>body{display:none}",
    "<!--",
    "&lt;b&gt;",
    "gnp\u202eexe.tp",
    "lone\udc80surrogate",
    "nul\0bell\a",
    "two\nlines",
    "שלום",
    "x" * 100_000,
]

LAYERS = [
    (0, ("conv1", "frozen", "9,408", "37.6 kB", "0.1 %")),
    (0, ("layer1", "partial 2/6", "3,000", "12.0 kB", "9 %")),
]
for block in range(2):
    LAYERS += [
        (1, (str(block), "changed", f"{1000 * (block + 1):,}", f"{4 * (block + 1)}.0 kB", f"{3 * (block + 1)} %")),
        (2, ("conv", "frozen", "900", "900 B", "1 %")),
        (2, ("bn", "trainable", "100", "0.5 kB", "2 %")),
    ]
LAYERS += [
    (0, ("fc", "added", "20,000,000", "80.0 MB", "90.9 %")),
    (0, ("total", "", "20,012,408", "80.1 MB", "100.0 %")),
]

REPORT = Report(
    "runs/a.pt → runs/b.pt",
    dict,
    [
        Facts("Files", [("A", "runs/a.pt, PyTorch zip, 80.1 MB"), ("B", "runs/b.pt\nsafetensors")], "by content"),
        Tree("Layers", ("layer", "status", ">elements", ">size", ">share"), LAYERS, "frozen is inferred"),
        HeatMap(
            "Change",
            [("layer1.0", [("conv.weight", 0.031), ("bn.bias", 0.0)]), ("fc", [("w", math.inf), ("b", math.nan)])],
            "relative change",
            "of parameters",
        ),
        Histogram("fc.weight", (-1.5, -0.5, 0.5, 1.5), (1, 8, 4), "of the change"),
        Histogram("fc.bias", (0.0, 0.5, 1.0), (0, 0)),
        Table(
            "Renamed",
            ("from", "to", ">n", "nothing", "histogram"),
            [(f"module.layer{i}.weight", f"layer{i}.weight", f"{(i * 37) % 101}", "", " ▁▄█") for i in range(101)],
        ),
    ],
    "backbone identical (60 tensors), fc replaced (1000→10 classes)",
)


def hostile_report(title: str = HOSTILE[0]) -> Report:
    """Every text of every block in turn something that would do harm."""
    blocks = [
        Facts(HOSTILE[1], [(text, text) for text in HOSTILE], HOSTILE[2]),
        Table(HOSTILE[2], ("name", HOSTILE[0], "status", ">n"), [(t, t, t, t) for t in HOSTILE], HOSTILE[-1]),
        Tree(HOSTILE[-1], ("name", "x"), [(depth, (t, t)) for depth, t in enumerate(HOSTILE)], HOSTILE[0]),
        HeatMap(HOSTILE[3], [(text, [(t, 1.0) for t in HOSTILE]) for text in HOSTILE], HOSTILE[1], HOSTILE[0]),
        *(Histogram(text, (0.0, 1.0, 2.0), (1, 2), text) for text in HOSTILE),
    ]
    return Report(title, dict, blocks, HOSTILE[1])


def page(*reports: Report, command: str = "diff") -> str:
    return render(reports, "html", command=command)
