"""The site: it builds without a warning and without the network, and says what the docstrings say."""

import gc
import importlib
import logging
import re
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing import get_context
from pathlib import Path

import pytest

from bayesuq.cli.main import main
from bayesuq.inference import map_estimate
from bayesuq.inference.gp import ExactGpPosterior
from bayesuq.inference.posteriors.network_mode import MapPosterior
from bayesuq.inference.posteriors.weights import WeightPosterior
from bayesuq.predictive import GaussianPredictive

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
REMOTE = re.compile(r"""<(?:script|link|img|iframe|source)\b[^>]*(?:src|href)\s*=\s*["']?(?:https?:)?//[^>]*>""", re.I)
REMOTE_STYLE = re.compile(r"""(?:url\(\s*|@import\s+)["']?(?:https?:)?//""", re.I)
LEFT_OUT = ("toc_object_entries", "html_use_index", "html_domain_indices", "smartquotes")  # and what they take
FACES = ("bayesuq.models", "bayesuq.inference", "bayesuq.evaluation")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("myst_parser", reason="the site needs the extra `docs`")
    pytest.importorskip("furo", reason="the site needs the extra `docs`")
    out = tmp_path_factory.mktemp("site")
    options = ["-W", "--keep-going", "-q", "-b", "html", "-d", str(out / "cache")]
    options += [part for option in LEFT_OUT for part in ("-D", f"{option}=0")]
    # A forked process has imported what this one has.
    builder = get_context("fork").Process(target=build, args=([*options, str(DOCS), str(out / "html")], out / "said"))
    builder.start()
    builder.join()
    assert builder.exitcode == 0, (out / "said").read_text(encoding="utf-8")
    return out / "html"


def build(options: list[str], said: Path) -> None:
    """What the building process does: it ends with Sphinx's code, and what Sphinx says goes into a file.

    It leaves out the entries of objects in the sidebar, which is drawn for the first page alone, the index of all names
    and curly quotes, notes nothing down for debugging, and looks for no garbage in what the tests have left. The search
    finds words as they are written, and nobody asks for the line numbers of definitions, which [source] links need.
    """
    gc.disable()
    furo, sidebar = importlib.import_module("furo"), []
    draw = furo._compute_navigation_tree
    furo._compute_navigation_tree = lambda page: sidebar[0] if sidebar else sidebar.append(draw(page)) or sidebar[0]
    importlib.import_module("sphinx.search.en").SearchEnglish.stem = lambda _, word: word
    importlib.import_module("sphinx.pycode.parser").Parser.parse_definition = lambda _: None
    logging.disable(logging.DEBUG)
    with warnings.catch_warnings(), said.open("w", encoding="utf-8") as file:
        warnings.simplefilter("default")
        with redirect_stdout(file), redirect_stderr(file):
            code = importlib.import_module("sphinx.cmd.build").main(options)
    sys.exit(code)


@pytest.mark.slow
def test_the_whole_site_is_built_and_loads_nothing_from_the_network(site: Path) -> None:
    pages, styles = sorted(site.rglob("*.html")), sorted(site.rglob("*.css"))
    assert len(pages) > 15
    assert styles
    assert {page.name: REMOTE.findall(page.read_text(encoding="utf-8")) for page in pages} == {
        page.name: [] for page in pages
    }
    assert [style.name for style in styles if REMOTE_STYLE.search(style.read_text(encoding="utf-8"))] == []


@pytest.mark.slow
def test_formulas_are_drawn_by_the_browser_alone(site: Path) -> None:
    page = (site / "methods" / "variational.html").read_text(encoding="utf-8")
    assert page.count("<math") > 10
    assert "$$" not in page
    assert not re.search("<script[^>]*mathjax", page, re.I)


@pytest.mark.slow
def test_the_reference_has_a_page_for_every_public_module_and_links_types(site: Path) -> None:
    modules = site / "api" / "modules"
    for face in FACES:
        for name in importlib.import_module(face).__all__:
            if name.islower():
                page = (modules / f"{face}.{name}.html").read_text(encoding="utf-8")
                assert f'id="module-{face}.{name}"' in page
    fit = (modules / "bayesuq.inference.map_estimate.html").read_text(encoding="utf-8")
    assert 'href="bayesuq.models.bnn.html#bayesuq.models.bnn.BayesianNetwork"' in fit
    listed = (site / "api" / "inference.html").read_text(encoding="utf-8").partition("<article")[2]
    assert listed.index("bayesuq.inference.map_estimate") < listed.index("bayesuq.inference.callbacks")
    assert "the one network that maximises the joint density" in listed


@pytest.mark.slow
def test_no_page_of_the_reference_grows_as_long_as_a_package(site: Path) -> None:
    names = {
        page.name: page.read_text(encoding="utf-8").count('class="sig sig-object')
        for page in site.rglob("api/**/*.html")
    }
    assert len(names) > 50
    assert {page: number for page, number in names.items() if number > 120} == {}


@pytest.mark.parametrize(
    ("text", "remote"),
    [
        ('<script src="https://cdn.example/x.js"></script>', True),
        ('<link rel="stylesheet" href="//fonts.example/css">', True),
        ("<img alt='' src=http://example.org/badge.svg>", True),
        ('<a href="https://example.org">a link to follow</a>', False),
        ('<script src="_static/x.js?v=1"></script>', False),
    ],
)
def test_the_rule_of_remote_resources_can_fail(text: str, remote: bool) -> None:
    assert bool(REMOTE.search(text)) == remote


def test_every_page_with_an_example_is_where_examples_are_run() -> None:
    pages = sorted(DOCS.rglob("*.md"))
    examples = [page for page in pages if "```python" in page.read_text(encoding="utf-8")]
    assert len(examples) > 10
    where = [page.relative_to(ROOT) for page in examples]
    assert [page for page in where if not (page.match("docs/*.md") or page.match("docs/*/*.md"))] == []


def test_each_page_of_the_gallery_opens_with_its_picture() -> None:
    text = (DOCS / "gallery.md").read_text(encoding="utf-8")
    cards = re.findall(r"^\[!\[([^\]]+)\]\(([^)]+)\)\]\(([^)]+)\)$", text, re.M)
    assert len(cards) == text.count("{container} card") == 10
    for _, figure, page in cards:
        assert (DOCS / figure).is_file()
        opening = re.search(r"!\[[^\]]+\]\(([^)]+)\)", (DOCS / page).read_text(encoding="utf-8"))
        assert opening is not None
        assert ((DOCS / page).parent / opening[1]).resolve() == DOCS / figure


def test_the_documented_commands_have_the_documented_options(capsys: pytest.CaptureFixture[str]) -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in sorted(DOCS.rglob("*.md"))).replace("\\\n", " ")
    commands = re.findall(r"^bayesuq (\w+)(.*)$", text, re.M)
    assert {name for name, _ in commands} >= {"compare", "fit", "evaluate", "data"}
    for name in {name for name, _ in commands}:
        with pytest.raises(SystemExit, match=r"^0$"):
            main([name, "--help"])
        known = capsys.readouterr().out
        options = {option for other, rest in commands if other == name for option in re.findall(r"--\w+", rest)}
        assert [option for option in sorted(options) if option not in known] == []


@pytest.fixture
def extensions(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sphinx", reason="the site needs the extra `docs`")
    monkeypatch.syspath_prepend(str(DOCS / "_extensions"))


@pytest.mark.usefixtures("extensions")
def test_docstrings_keep_their_stars_bars_formulas_and_tables() -> None:
    docstrings = importlib.import_module("docstrings")
    lines = [
        "The mean of |a - b|, E[y*], as `a * b | c` says.",
        "",
        "    ECE = sum_b |gap|",
        "",
        "| name | what |",
        "|---|---|",
        "| `a` | x³ for |x| |".replace("|x|", "abs(x)"),
        "",
        "Args:",
        "    x: Inputs, *all* of them.",
        "    num_draws: S.",
        "    rows: Of them",
        "        N. In e.g. three.",
        "",
        "Example:",
        "    >>> 2 * 3 | 1",
        "    7",
    ]
    docstrings.rewrite(None, "function", "f", None, None, lines)
    assert lines[0] == r"The mean of \|a - b\|, E[y\*], as `a * b | c` says."
    assert lines[2:5] == ["::", "", "    ECE = sum_b |gap|"]
    table = lines.index(".. list-table::")
    assert lines[table : table + 7] == [
        ".. list-table::",
        "   :header-rows: 1",
        "",
        "   * - name",
        "     - what",
        "   * - `a`",
        "     - x³ for abs(x)",
    ]
    assert r"    x: Inputs, \*all\* of them." in lines
    assert "    >>> 2 * 3 | 1" in lines
    assert lines[lines.index("    rows: Of them") - 1 :][:3:2] == [r"    num_draws: S\.", r"        N\. In e.g. three."]


@pytest.mark.usefixtures("extensions")
@pytest.mark.parametrize(
    ("target", "there"),
    [
        ("bayesuq.load(path, model=model)", True),
        ("bayesuq.inference.posteriors.weights.WeightPosterior.draw", True),
        ("torch.nn.NoSuchLayer", True),  # another library's names are its own matter
        ("batch_size", True),
        ("bayesuq.inference.posteriors.weights.WeightPosterior.nothing", False),
        ("bayesuq.inference.nowhere.fit", False),
        ("bayesuq.lode(path)", False),
    ],
)
def test_names_of_bayesuq_that_do_not_exist_stop_the_build(target: str, there: bool) -> None:
    references = importlib.import_module("references")
    assert references.exists(target) == there


@pytest.mark.usefixtures("extensions")
def test_the_reference_tells_of_an_override_where_its_name_was_declared_first() -> None:
    pages = importlib.import_module("reference_pages")
    gp, weights = ExactGpPosterior, WeightPosterior
    members = [
        (gp, "marginals"),
        (gp, "condition"),
        (MapPosterior, "num_members"),
        (MapPosterior, "draw"),
        (weights, "draw"),
    ]
    overrides = [pages.is_override(name, vars(cls)[name]) for cls, name in members]
    assert overrides == [True, False, True, True, False]
    assert not pages.is_override("fit", map_estimate.fit)
    assert pages.leave_out(None, "method", "draw", vars(MapPosterior)["draw"], False, None)
    mean = vars(GaussianPredictive)["mean"]
    assert pages.leave_out(None, "property", "mean", mean, False, None) is None  # which a reader seeks at each


@pytest.mark.usefixtures("extensions")
def test_the_best_of_each_column_of_the_results_stands_out_and_nothing_else_changes() -> None:
    best = importlib.import_module("best")
    page = """Words.

| method | accuracy | NLL, nats | AUROC: entropy | mutual information | seconds |
|---|---|---|---|---|---|
| one | 0.90 ± 0.01 | 0.30 | 0.8 | 0.9 | 1 |
| two | 0.95 | -0.10 | 0.8 |  | 2 |

| network | posterior | error, % |
|---|---|---|
| a | x | 3 |
| a | y | 2 |
| b | x | 1 |
| b | y | |

| set | splits | RMSE | published | log-likelihood | published |
|---|---|---|---|---|---|
| boston | 20 | 3.21 ± 0.23 | 3.28 | -2.47 | -2.41 |
"""
    marked = best.mark(page)
    assert re.findall(r"\*\*(.+?)\*\*", marked) == ["0.8", "0.95", "-0.10", "0.8", "2", "3.21 ± 0.23", "-2.41"]
    assert re.sub(r"\*\*", "", marked).split() == page.split()


@pytest.mark.usefixtures("extensions")
def test_the_summary_of_a_property_is_no_type() -> None:
    docstrings = importlib.import_module("docstrings")
    lines = ["Total uncertainty: entropy in nats."]
    docstrings.rewrite(None, "property", "total", None, None, lines)
    assert lines == ["", "Total uncertainty: entropy in nats."]  # on the first line Napoleon would read a type


@pytest.mark.usefixtures("extensions")
@pytest.mark.parametrize(
    ("tex", "drawn"),
    [
        (r"\log p", r"log</mi>\s*<mspace"),  # browsers put no space there
        (r"\log(p)", r"log</mi>\s*<mo>&ApplyFunction;</mo>\s*<mo stretchy=.false.>\("),
        (r"\overline{p}_k", r"<msub>\s*<mrow>\s*</mrow>\s*<mi>k</mi>"),  # beside the letter, not below it
        (r"q \,\|\, p", r"<mo stretchy=.false.>‖</mo>"),
        (r"\lVert x \rVert", r"^(?!.*<mo[^>]*open)"),
        (r"\lvert x \rvert", r"<mo lspace=.0. rspace=.0.>\|</mo>"),
        (r"\tfrac12 \log x", r"<mn>1</mn>\s*<mn>2</mn>\s*</mfrac>"),  # not 12 over the logarithm
        (r"\frac1T \sum_t x", r"<mn>1</mn>\s*<mi>T</mi>\s*</mfrac>"),
        (r"\tfrac h2 s", r"<mi>h</mi>\s*<mn>2</mn>\s*</mfrac>"),
    ],
)
def test_formulas_are_drawn_as_they_are_read(tex: str, drawn: str) -> None:
    mathml = importlib.import_module("mathml")
    assert re.search(drawn, mathml.to_mathml(tex, block=True))


@pytest.mark.usefixtures("extensions")
def test_a_formula_that_cannot_be_drawn_stops_the_build() -> None:
    mathml = importlib.import_module("mathml")
    errors = importlib.import_module("sphinx.errors")
    with pytest.raises(errors.SphinxError, match="nosuchcommand"):
        mathml.to_mathml(r"\nosuchcommand x", block=False)
