"""The text of HTML reports: complete, self-contained, escaped; what a browser makes of it is tested beside."""

import base64
import hashlib
import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from ckpt_tools.report import Facts, HeatMap, Histogram, Report, Table, Tree
from tests.render.pages import HOSTILE, REPORT, hostile_report, page


class Reader(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, source):
        super().__init__()
        self.elements = []
        self.words = []
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return "".join(self.words)


def test_everything_in_a_report_is_on_its_page():
    text = Reader(page(REPORT)).text
    for block in REPORT.blocks:
        assert block.title in text
        assert block.note in text
        if isinstance(block, Facts):
            assert all(word in text for row in block.rows for word in row)
        if isinstance(block, Tree):
            assert all(cell in text for _, row in block.rows for cell in row)
        if isinstance(block, Table):
            assert all(cell in text for row in block.rows for cell in row[:3])
    assert REPORT.title in text
    assert REPORT.verdict in text
    assert "conv.weight: 0.031" in text
    assert "bn.bias: 0" in text
    assert "w: ∞" in text
    assert "b: not comparable" in text
    assert "-0.5 to 0.5: 8" in text
    assert "13 values, most from -0.5 to 0.5; of the change" in text


def test_nothing_on_a_page_is_an_address():
    source = page(REPORT, hostile_report())
    assert (
        re.findall(r"https?:|//|url\(|@import|import\(|fetch\(|XMLHttpRequest|WebSocket", _without_comments(source))
        == []
    )
    addressed = [
        (tag, name, value)
        for tag, attributes in Reader(source).elements
        for name, value in attributes.items()
        if name in ("src", "href", "action", "data", "poster", "srcset", "formaction", "xlink:href")
    ]
    assert {value for _, _, value in addressed} == {"data:,", "#file-1", "#file-2"}


def _without_comments(source):
    script = source[source.rindex("<script>") :]
    return source.replace(script, re.sub(r"^\s*//.*$", "", script, flags=re.M))


def test_the_page_allows_no_script_but_its_own():
    source = page(REPORT)
    script = re.search(r"<script>(.*)</script>", source, re.S)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(a["content"] for _, a in Reader(source).elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def test_no_element_and_no_attribute_comes_from_a_file():
    def parts(source):
        return {(tag, name) for tag, attributes in Reader(source).elements for name in attributes}

    def scripts(source):
        return [tag for tag, _ in Reader(source).elements].count("script")

    harmless = Report("a", dict, [_with(block, "word") for block in hostile_report().blocks], "b")
    assert parts(page(hostile_report())) == parts(page(harmless))
    assert scripts(page(hostile_report())) == 1


def _with(block, word):
    match block:
        case Facts():
            return Facts(word, [(word, word)], word)
        case Table():
            return Table(word, ("a", "b", "status", ">n"), [(word * 50, word, word, word)], word)
        case Tree():
            return Tree(word, ("a", "b"), [(0, (word, word)), (1, (word, word))], word)
        case HeatMap():
            return HeatMap(word, [(word, [(word, 1.0)])], word, word)
        case Histogram():
            return Histogram(word, (0.0, 1.0), (1,), word)


@pytest.mark.parametrize("name", HOSTILE, ids=lambda name: repr(name)[1:20])
def test_a_hostile_name_is_shown_as_it_is(name):
    text = Reader(page(Report("a", dict, [Table("t", ("name",), [(name,)])]))).text
    assert "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in name) in text


def test_a_page_is_utf_8_and_the_same_every_time():
    source = page(hostile_report(), REPORT)
    assert source.encode("utf-8").decode("utf-8") == page(hostile_report(), REPORT)
    assert '<meta charset="utf-8">' in source[:200]


def test_columns_in_which_nothing_stands_are_left_out():
    heads = re.findall(r'<th scope="col"[^>]*>(.*?)</th>', page(REPORT))
    assert heads == ["layer", "status", "elements", "size", "share", "from", "to", "n", "histogram"]


def test_rows_of_a_tree_know_their_depth_and_the_total_stands_apart():
    source = page(REPORT)
    assert [int(d) for d in re.findall(r'data-depth="(\d+)"', source)] == [1, 2, 2, 1, 2, 2]
    foot = re.search(r"<tfoot>(.*?)</tfoot>", source, re.S)[1]
    assert Reader(foot).text.split() == ["total", "20,012,408", "80.1", "MB", "100.0", "%"]


def test_words_of_state_are_coloured_where_a_column_has_no_others():
    rows = [
        ("removed", "frozen", "frozen", "2 changed, 1 removed", "bar"),
        ("b", "partial 2/6", "frozen and more", "identical", "added"),
        ("c", "", "a frozen one", "1,024 added", ""),
        ("d", "unknown", "", "changed", ""),
    ]
    source = page(Report("a", dict, [Table("t", ("name", "a", "b", "c", "d"), rows)]))
    assert re.findall(r'<span class="state (\w*)">([^<]*)</span>', source) == [
        ("calm", "frozen"),
        ("warm", "2 changed, 1 removed"),
        ("warm", "partial 2/6"),
        ("good", "identical"),
        ("new", "1,024 added"),
        ("plain", "unknown"),
        ("warm", "changed"),
    ]


def test_what_stands_between_backticks_is_code():
    source = page(Report("a", dict, [Table("t", ("a",), [("`b`",)], "odd ` one")], "`<fc>` replaced by `head`, <b>"))
    assert "<code>&lt;fc&gt;</code> replaced by <code>head</code>, &lt;b&gt;</p>" in source
    assert "odd ` one</p>" in source
    assert source.count("<code>") == 2


def test_a_first_column_of_states_is_coloured_and_one_of_names_is_not():
    def states(*first):
        return re.findall(r'state (\w+)"', page(Report("a", dict, [Table("t", ("x",), [(text,) for text in first])])))

    assert states("frozen", "trainable", "") == ["calm", "good"]
    assert states("frozen", "backbone") == []
    assert states("2 changed", "frozen") == []


def test_several_files_have_an_index():
    dangerous = Report("c.pt", dict, (), "dangerous; plain pickle")
    source = page(REPORT, hostile_report("b.pt"), dangerous, command="inspect")
    assert '<span class="state bad">dangerous</span> plain pickle' in source
    assert '<p class="verdict bad">dangerous; plain pickle</p>' in source
    elements = Reader(source).elements
    assert [a["href"] for tag, a in elements if tag == "a"] == ["#file-1", "#file-2", "#file-3"]
    assert [a["id"] for tag, a in elements if tag == "article"] == ["file-1", "file-2", "file-3"]
    assert "<title>3 files · ckpt inspect</title>" in source


@pytest.mark.parametrize(
    ("verdict", "tone"),
    [
        ("tensors only; zip, 3 kB; 2 errors, 1 note", "bad"),
        ("tensors only; zip, 3 kB; 1 note", "plain"),
        ("needs classes; zip; 3 warnings", "warm"),
        ("unknown; plain pickle", "bad"),
        ("not examined: no such file", "bad"),
    ],
)
def test_errors_make_a_verdict_bad(verdict, tone):
    elements = Reader(page(Report("a.pt", dict, [], verdict))).elements
    assert [set(a["class"].split()) for t, a in elements if t == "p" and "verdict" in a.get("class", "")] == [
        {"verdict", tone}
    ]


def test_numbers_of_errors_and_warnings_are_coloured_and_escaped():
    source = page(Report("a.pt", dict, [], "no pickle; <b>2 errors</b>, 1 warning"))
    assert '&lt;b&gt;<span class="state bad">2 errors</span>&lt;/b&gt;' in source
    assert '<span class="state warm">1 warning</span>' in source
    assert Reader(source).text.count("<b>2 errors</b>, 1 warning") == 1


def test_headings_are_nested():
    for reports in ([REPORT], [REPORT, REPORT]):
        levels = [int(tag[1]) for tag, _ in Reader(page(*reports)).elements if re.fullmatch(r"h\d", tag)]
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in zip([0, *levels], levels, strict=False))


def test_jinja2_is_imported_for_html_alone():
    code = "import sys; from ckpt_tools.render import render; render([], 'text', command='')"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print('jinja2' in sys.modules)"], capture_output=True, text=True
    )
    assert done.stdout == "False\n"


@pytest.mark.parametrize("command", ["inspect", "summary"])
def test_commands_write_it(command, run, fixtures_dir, tmp_path):
    found = run(command, fixtures_dir / "model" / "tied.pt", "--format", "html", "-o", tmp_path / "page.html")
    assert (found.exit_code, found.stdout, found.stderr) == (0, "", "")
    source = (tmp_path / "page.html").read_text("utf-8")
    assert "tied.pt" in Reader(source).text
    assert f"ckpt {command}</title>" in source
    assert run(command, fixtures_dir / "model" / "tied.pt", "--format", "html").stdout == source
