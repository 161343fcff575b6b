"""HTML reports as a headless browser shows them: quiet, offline, usable, nothing of a file run.

The browser is the one that CKPT_TOOLS_BROWSER names or a Chromium on the PATH; CKPT_TOOLS_SCREENSHOTS is a folder
for pictures to look at.
"""

import os
import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from ckpt_tools.report import Report, Table, Tree
from tests.render.pages import HOSTILE, REPORT, hostile_report, page

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    path = os.environ.get("CKPT_TOOLS_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("no browser: CKPT_TOOLS_BROWSER is not set and no Chromium is on the PATH")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, tmp_path):
    """``opened(source)`` is the page of *source*; that it stayed quiet and offline is checked at the end."""
    said, asked, contexts = [], [], []

    def opened(source, *, width=1200, scheme="light", script=True):
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, java_script_enabled=script
        )
        contexts.append(context)
        shown = context.new_page()
        shown.set_default_timeout(30_000)
        shown.on("console", lambda message: said.append(message.text))
        shown.on("pageerror", lambda error: said.append(str(error)))
        shown.on("dialog", lambda dialog: said.append(dialog.message))
        shown.on("request", lambda request: asked.append(request.url))
        file = tmp_path / f"{len(contexts)}.html"
        file.write_text(source, "utf-8")
        shown.goto(file.as_uri())
        return shown

    yield opened
    for context in contexts:
        context.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in asked if url.startswith("file:")]) == len(contexts)


@pytest.fixture
def shown(opened):
    return opened(page(REPORT))


def section(shown, title):
    return shown.locator("section").filter(has=shown.locator(".title", has_text=re.compile(f"^{title}$")))


def names(part):
    return [text.strip() for text in part.locator("tbody tr:visible th").all_inner_texts()]


@pytest.fixture(scope="module")
def sources(run, fixtures_dir, tmp_path_factory):
    """The pages to look at."""
    folder = tmp_path_factory.mktemp("reports")
    model, adam, sgd = (
        fixtures_dir / name for name in ("model/tied.pt", "training/adam.pt", "training/sgd_momentum.pt")
    )
    made = {"blocks": page(REPORT), "hostile": page(hostile_report(HOSTILE[-1]))}
    for command, *args in (
        ("inspect", model, adam, "--tensors"),
        ("summary", model, "--stats"),
        ("diff", adam, sgd),
        ("audit", fixtures_dir / "training"),
    ):
        done = run(command, *args, "--format", "html", "-o", folder / f"{command}.html")
        assert (done.exit_code, done.stderr) == (int(command in ("diff", "audit")), "")
        made[command] = (folder / f"{command}.html").read_text("utf-8")
    return made


OVERFLOW = """() => [...document.querySelectorAll("body *")]
    .filter(e => !e.closest(".scroll > *, ul, #tip") && e.getBoundingClientRect().right > innerWidth + .5)
    .map(e => e.outerHTML.slice(0, 120))"""

FAINT = """() => {
    const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
    const rgba = (color) => {
        canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1);
        return [...canvas.getImageData(0, 0, 1, 1).data];
    };
    const light = ([r, g, b]) => [r, g, b].map(c => (c /= 255) <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
    const under = (e) => {
        for (;; e = e.parentElement) {
            const color = rgba(getComputedStyle(e).backgroundColor);
            if (color[3] === 255) return color;
        }
    };
    const texts = [...document.querySelectorAll("body *")].filter(e => e.checkVisibility()
        && !e.closest("script, svg, .heat li") && [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim()));
    return texts.map(e => {
        const [a, b] = [light(rgba(getComputedStyle(e).color)), light(under(e))];
        return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.outerHTML.slice(0, 100)];
    }).filter(([ratio]) => ratio < 4.5);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1200, 400])
@pytest.mark.parametrize("kind", ["blocks", "hostile", "inspect", "summary", "diff", "audit"])
def test_a_page_fits_and_can_be_read(kind, width, scheme, sources, opened, tmp_path):
    shown = opened(sources[kind], width=width, scheme=scheme)
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    assert shown.evaluate(OVERFLOW) == []
    assert shown.evaluate(FAINT) == []
    background = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(246, 247, 249)" if scheme == "light" else "rgb(15, 20, 26)")
    shown.set_viewport_size(
        {"width": width, "height": min(shown.evaluate("document.documentElement.scrollHeight"), 2500)}
    )
    folder = Path(os.environ.get("CKPT_TOOLS_SCREENSHOTS") or tmp_path)
    picture = shown.screenshot(path=folder / f"{kind}-{width}-{scheme}.png")
    assert len(picture) > 10_000  # an empty page takes some 4 kB


def test_a_diff_has_its_tree_heat_map_and_histograms(sources, opened):
    shown = opened(sources["diff"])
    assert names(section(shown, "Layers"))[0] == "fc1"
    cells = shown.locator(".heat li")
    assert cells.count() == 4
    cells.first.hover()
    assert re.fullmatch(r"weight: 0\.\d+", shown.locator("#tip").inner_text())
    figures = shown.locator("figure")
    assert figures.count() == 4
    assert figures.first.locator("rect").count() > 1


def test_nothing_in_a_file_is_run(opened):
    shown = opened(page(hostile_report(), hostile_report(HOSTILE[1])))
    shown.locator(".heat li").first.hover()
    shown.locator("thead button").first.click()
    shown.get_by_role("searchbox").first.fill("window.ran")
    assert shown.evaluate("'ran' in window") is False
    assert shown.locator("img, iframe, object, embed, form").count() == 0
    assert shown.evaluate("getComputedStyle(document.body).display") == "block"
    # a page of 100,000 letters that the reader must scroll past would hide what comes after it
    assert (
        max(shown.locator("dd, h2, h3, .note, .long, .verdict").evaluate_all("all => all.map(e => e.clientHeight)"))
        < 450
    )


def test_the_policy_stops_what_escaping_would_let_through(browser, tmp_path):
    broken = page(REPORT).replace("<main>", "<main><script>window.ran = 1</script><img src=x onerror='window.ran = 1'>")
    (tmp_path / "broken.html").write_text(broken, "utf-8")
    shown = browser.new_page()
    shown.goto((tmp_path / "broken.html").as_uri())
    assert shown.evaluate("'ran' in window") is False
    assert shown.locator("thead button").count() > 0  # its own script did run
    shown.close()


def test_a_tree_folds(shown):
    tree = section(shown, "Layers")
    whole = ["conv1", "layer1", "0", "conv", "bn", "1", "conv", "bn", "fc"]
    assert names(tree) == whole
    twist = tree.get_by_role("button", name="what is in layer1", exact=True)
    assert twist.get_attribute("aria-expanded") == "true"
    twist.click()
    assert twist.get_attribute("aria-expanded") == "false"
    assert names(tree) == ["conv1", "layer1", "fc"]
    twist.press("Enter")
    assert names(tree) == whole
    tree.get_by_role("button", name="what is in layer1.0").click()
    assert names(tree) == ["conv1", "layer1", "0", "1", "conv", "bn", "fc"]
    tree.get_by_role("button", name="Collapse all").click()
    assert names(tree) == ["conv1", "layer1", "fc"]
    tree.get_by_role("button", name="Expand all").click()
    assert names(tree) == whole


def test_a_tree_is_filtered_with_what_holds_the_matches(shown):
    tree = section(shown, "Layers")
    tree.get_by_role("searchbox").fill("layer1.1.bn")
    assert names(tree) == ["layer1", "1", "bn"]
    tree.get_by_role("searchbox").fill("FROZEN")
    assert names(tree) == ["conv1", "layer1", "0", "conv", "1", "conv"]
    assert tree.locator("output").inner_text() == "6 of 9"
    tree.get_by_role("searchbox").fill("no such layer")
    assert names(tree) == []
    tree.get_by_role("searchbox").fill("")
    assert len(names(tree)) == 9


def test_a_tree_is_sorted_within_its_parents(shown):
    tree = section(shown, "Layers")
    head = tree.locator("thead th").filter(has_text="elements")
    head.get_by_role("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert names(tree) == ["fc", "conv1", "layer1", "1", "conv", "bn", "0", "conv", "bn"]
    assert tree.locator("tfoot").inner_text().split()[0] == "total"
    tree.locator("thead th").filter(has_text="size").get_by_role("button").click()
    assert head.get_attribute("aria-sort") is None
    assert names(tree) == ["fc", "conv1", "layer1", "1", "conv", "bn", "0", "conv", "bn"]


def test_a_table_is_sorted_by_numbers_and_by_names(shown):
    table = section(shown, "Renamed")
    table.get_by_role("button", name="Show all 101 rows").click()
    in_order = [f"module.layer{i}.weight" for i in range(101)]
    assert names(table) == in_order
    by_number = table.locator("thead th").filter(has_text=re.compile("^n$")).get_by_role("button")
    by_number.click()
    cells = table.locator("tbody td.number")
    assert [int(text) for text in cells.all_inner_texts()] == list(range(100, -1, -1))
    by_number.click()
    assert [int(text) for text in cells.all_inner_texts()] == list(range(101))
    by_name = table.locator("thead th").filter(has_text="from").get_by_role("button")
    by_name.click()
    assert names(table) == in_order  # 2 before 10
    by_name.click()
    assert names(table) == in_order[::-1]
    by_name.click()
    assert names(table) == in_order


def test_sizes_are_sorted_by_what_they_mean(opened):
    sizes = ["2.0 kB", "", "900 B", "1.5 GB", "80.0 MB", "inf", "nan", "1e-05", "-3"]
    shown = opened(page(Report("a", dict, [Table("t", ("i", ">size"), [(str(i), s) for i, s in enumerate(sizes)])])))
    shown.locator("thead button").last.click()
    assert shown.locator("tbody td").all_inner_texts() == [
        "inf",
        "1.5 GB",
        "80.0 MB",
        "2.0 kB",
        "900 B",
        "1e-05",
        "-3",
        "",
        "nan",
    ]
    shown.locator("thead button").last.click()
    assert shown.locator("tbody td").all_inner_texts() == [
        "-3",
        "1e-05",
        "900 B",
        "2.0 kB",
        "80.0 MB",
        "1.5 GB",
        "inf",
        "",
        "nan",
    ]


def test_a_very_long_table_can_be_sorted(opened):
    rows = [(f"layer{i}.weight", f"{(i * 7919) % 20_000:,}") for i in range(20_000)]
    shown = opened(page(Report("a", dict, [Table("t", ("name", ">n"), rows)])))
    shown.locator("thead button").last.click()
    assert shown.locator("tbody td:visible").all_inner_texts() == [f"{n:,}" for n in range(19_999, 19_959, -1)]


def test_a_long_table_shows_its_beginning_until_asked_or_filtered(shown):
    table = section(shown, "Renamed")
    assert names(table) == [f"module.layer{i}.weight" for i in range(40)]
    table.get_by_role("searchbox").fill("layer10")
    assert names(table) == ["module.layer10.weight", "module.layer100.weight"]
    assert table.locator("output").inner_text() == "2 of 101"
    table.get_by_role("searchbox").fill("")
    assert len(names(table)) == 40
    table.get_by_role("button", name="Show all 101 rows").click()
    assert len(names(table)) == 101
    assert table.locator(".more").is_hidden()


def test_a_deep_tree_begins_folded(opened):
    rows = []
    for layer in range(12):
        rows.append((0, (f"layer{layer}", "x")))
        for block in range(3):
            rows += [(1, (f"block{block}", "x")), (2, ("weight", "x")), (2, ("bias", "x"))]
    shown = opened(page(Report("a", dict, [Tree("Layers", ("layer", "x"), rows)])))
    tree = section(shown, "Layers")
    assert names(tree) == [f"layer{layer}" for layer in range(12)]
    tree.get_by_role("button", name="Expand all").click()
    assert len(names(tree)) == len(rows)
    tree.get_by_role("button", name="Collapse all").click()
    for layer in range(12):
        tree.get_by_role("button", name=f"what is in layer{layer}", exact=True).click()
    assert len(names(tree)) == 48  # what is opened is seen, however long the table gets


def test_a_cell_of_a_heat_map_says_its_value(shown):
    heat = section(shown, "Change")
    tip = shown.locator("#tip")
    cells = heat.locator(".heat li")
    assert tip.is_hidden()
    cells.nth(0).hover()
    assert tip.inner_text() == "conv.weight: 0.031"
    assert cells.nth(0).get_attribute("class") == "s5"
    cells.nth(0).focus()
    shown.keyboard.press("ArrowDown")
    assert tip.inner_text() == "w: ∞"
    shown.keyboard.press("ArrowRight")
    assert tip.inner_text() == "b: not comparable"
    shown.keyboard.press("ArrowUp")
    assert tip.inner_text() == "bn.bias: 0"
    assert cells.evaluate_all("all => all.map(e => e.tabIndex)") == [-1, 0, -1, -1]
    shown.keyboard.press("Escape")
    assert tip.is_hidden()
    box = shown.evaluate(
        "document.querySelector('#tip').hidden = false, document.querySelector('#tip').getBoundingClientRect().toJSON()"
    )
    assert box["left"] >= 0
    assert box["right"] <= 1200


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_shades_grow_evenly_in_lightness(scheme, opened):
    """They are told apart by lightness alone, without which colours some cannot tell apart."""
    shown = opened(page(REPORT), scheme=scheme)
    colors = shown.locator(".ramp i").evaluate_all("all => all.map(e => getComputedStyle(e).backgroundColor)")
    lightness = []
    for color in colors:
        channels = [int(c) / 255 for c in re.findall(r"\d+", color)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        y = sum(c * w for c, w in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))
        lightness.append(116 * y ** (1 / 3) - 16)
    steps = [b - a for a, b in pairwise(lightness)]
    assert len(colors) == 8
    assert all(step < -4 for step in steps) if scheme == "light" else all(step > 4 for step in steps)


def test_a_bar_says_what_it_counts(shown):
    bars = shown.locator("figure").first.locator("rect")
    bars.nth(1).hover()
    assert shown.locator("#tip").inner_text() == "-0.5 to 0.5: 8"
    assert [float(height) for height in bars.evaluate_all("all => all.map(e => e.getAttribute('height'))")] == [
        12.5,
        100,
        50,
    ]
    assert shown.get_by_role("img", name="fc.weight: 13 values, most from -0.5 to 0.5").count() == 1


def test_without_scripts_all_is_shown(opened):
    shown = opened(page(REPORT), script=False)
    assert len(names(section(shown, "Renamed"))) == 101
    assert len(names(section(shown, "Layers"))) == 9
    assert shown.locator("button, input").count() == 0
    assert shown.locator(".heat li").first.get_attribute("title") == "conv.weight: 0.031"


@pytest.mark.parametrize("kind", ["blocks", "summary", "hostile"])
def test_on_paper_it_is_light_and_nothing_is_cut_off(kind, sources, opened):
    shown = opened(sources[kind], scheme="dark", width=680)  # A4 between its margins
    shown.emulate_media(media="print")
    assert shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert shown.evaluate(FAINT) == []
    assert shown.locator("table").evaluate_all("all => all.map(e => e.scrollWidth > e.parentElement.clientWidth)") == (
        [False] * shown.locator("table").count()
    )


def test_on_paper_there_are_no_controls(shown):
    shown.emulate_media(media="print")
    assert shown.locator("button:visible, input:visible").all_inner_texts() == [
        "layer",
        "status",
        "elements",
        "size",
        "share",
        "from",
        "to",
        "n",
        "histogram",
    ]
    assert shown.pdf(format="A4", print_background=True).startswith(b"%PDF-")


def test_every_control_has_a_name(shown):
    nameless = shown.locator("button, input").evaluate_all(
        "all => all.filter(e => e.checkVisibility() && !(e.innerText.trim() || e.ariaLabel)).map(e => e.outerHTML)"
    )
    assert nameless == []
