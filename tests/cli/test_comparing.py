"""`bayesuq compare` from end to end, and its page as a reader, a screen reader and an attacker would find it."""

import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

import bayesuq as bq
from bayesuq import datasets
from bayesuq.cli import page
from bayesuq.cli.examples import Examples, least_sure
from bayesuq.cli.figures import UNSEEN, Picture, draw
from bayesuq.cli.judging import Judged, judge
from bayesuq.cli.main import main
from bayesuq.cli.methods import Fitted, Method
from bayesuq.cli.paired import Standing
from bayesuq.cli.settings import PredictionOptions
from bayesuq.data import Dataset, Split
from bayesuq.evaluation.report.measure import Measure
from bayesuq.evaluation.report.reporting import Report, evaluate
from bayesuq.inference import dropout, map_estimate
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.predictive.categorical import CategoricalPredictive
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.predictive.thinned import ThinnedPredictive
from bayesuq.to_arviz.groups import Drawn
from tests.cli.rendering import not_drawn, not_rendered

__all__ = ["not_drawn", "not_rendered"]  # fixtures
HOSTILE = """<script>alert('x')</script><img src=x onerror="alert(1)">"' & {{ 7 * 7 }}"""
VOID = {"meta", "img", "wbr", "link", "br", "input"}
METHODS = ["temperature:ensemble", "map", "ensemble", "temperature", "dropout"]


class Reader(HTMLParser):
    """Every element with its attributes, its text, and the elements around it."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, "elements are closed in order"

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text_of(self, tag: str) -> list[str]:
        return [text for around, text in self.texts if around == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(text for _, text in self.texts).split())


def run(out: Path, *arguments: str, data: str = "digits-0to8", methods: str = ",".join(METHODS)) -> int:
    short = ["--num_epochs", "3", "--hidden", "16", "--num_members", "2", "--num_samples", "5"]
    return main(["compare", "--data", data, "--methods", methods, "--out", str(out), *short, *arguments])


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits") / "run"
    assert run(folder) == 0
    return folder


@pytest.fixture(scope="module")
def digits_page(digits: Path) -> str:
    return (digits / "report.html").read_text(encoding="utf-8")


def check_self_contained(text: str) -> Reader:
    """The page loads nothing and runs nothing."""
    reader = Reader(text)
    assert not reader.open
    assert not {"script", "link", "iframe", "object", "embed", "form", "base"} & {tag for tag, _ in reader.elements}
    for tag, attributes in reader.elements:
        assert not [name for name in attributes if name.startswith("on")], tag
        assert {"href", "srcset", "action", "style"}.isdisjoint(attributes)
        assert attributes.get("src", "data:image/").startswith("data:image/")
    assert not re.search(r"@import|url\(", text.partition("</style>")[0])
    assert any("default-src 'none'" in meta.get("content", "") for meta in reader.all("meta"))
    return reader


def test_all_results_are_written(digits: Path) -> None:
    written = {str(path.relative_to(digits)) for path in digits.rglob("*") if path.is_file()}
    named = [name.replace(":", "-") for name in METHODS]
    assert written == {
        *("report.html", "run.json", "settings.yaml"),
        *(f"reports/{name}.json" for name in named),
        *(f"posteriors/{name}.safetensors" for name in named),
    }


def test_the_numbers_are_those_of_the_saved_posteriors(digits: Path, digits_page: str) -> None:
    split = datasets.load("digits-0to8")
    values = {text.strip() for text in Reader(digits_page).text_of("span")}
    for name in METHODS:
        file = name.replace(":", "-")
        posterior = bq.load(digits / "posteriors" / f"{file}.safetensors")
        predictive = posterior.predict(split.test.x, num_samples=5, seed=0)
        written = json.loads((digits / "reports" / f"{file}.json").read_text())["measures"]
        for measure in evaluate(predictive, split.test.y).measures:
            (value,) = [entry["value"] for entry in written if entry["name"] == measure.name]
            assert value == pytest.approx(measure.value, abs=1e-12)
            assert measure.cells[0] in values
        entropies = torch.cat([predictive.total, posterior.predict(split.ood.x, num_samples=5, seed=0).total])
        area = bq.evaluation.detection.auroc(entropies, torch.arange(len(entropies)) >= len(split.test))
        (value,) = [entry["value"] for entry in written if entry["name"] == "ood_predictive_entropy_auroc"]
        assert value == pytest.approx(float(area), abs=1e-12)


def test_a_temperature_over_one_network_leaves_its_accuracy(digits: Path) -> None:
    found = {
        name: json.loads((digits / "reports" / f"{name}.json").read_text())["measures"]
        for name in ("map", "temperature")
    }
    values = {name: {m["name"]: m["value"] for m in measures} for name, measures in found.items()}
    assert values["map"]["accuracy"] == values["temperature"]["accuracy"]
    assert values["map"]["negative_log_likelihood"] != values["temperature"]["negative_log_likelihood"]
    assert values["temperature"]["temperature"] > 0


@pytest.mark.usefixtures("not_drawn")
def test_methods_stand_in_the_order_in_which_they_were_named(
    tmp_path: Path, digits_page: str, capsys: pytest.CaptureFixture[str]
) -> None:
    cells = [attributes["data-method"] for attributes in Reader(digits_page).all("td") if "data-method" in attributes]
    assert cells[: len(METHODS)] == [name.replace(":", ":\u200b") for name in METHODS]  # a narrow column breaks there
    assert run(tmp_path / "run", methods="temperature,map") == 0
    printed = capsys.readouterr().out
    assert printed.split()[:2] == ["temperature", "map"]
    assert f"Report: {(tmp_path / 'run' / 'report.html').resolve()}" in printed


def test_the_page_needs_no_other_file_and_no_script(digits_page: str) -> None:
    reader = check_self_contained(digits_page)
    assert [len(reader.all(tag)) for tag in ("main", "h1", "title", "table", "img")] == [1, 1, 1, 2, 7]
    for picture in reader.all("img"):
        assert len(picture["alt"]) > 40
        content = base64.b64decode(picture["src"].partition("base64,")[2])
        assert ElementTree.fromstring(content).tag == "{http://www.w3.org/2000/svg}svg"


def test_tables_have_headers_and_a_cell_for_every_method(digits: Path, digits_page: str) -> None:
    reader = check_self_contained(digits_page)
    assert all(header.get("scope") in ("col", "row", "rowgroup") for header in reader.all("th"))
    assert reader.all("html") == [{"lang": "en"}]
    table = digits_page.partition('class="measures"')[2].partition("</table>")[0]
    rows = [part for part in table.split("<tr ")[1:] if 'scope="row"' in part]
    written = {m["name"] for path in (digits / "reports").iterdir() for m in json.loads(path.read_text())["measures"]}
    assert len(rows) == len(written)
    assert {row.count("<td ") for row in rows} == {len(METHODS)}
    assert "@media (prefers-color-scheme: dark)" in digits_page
    longest = len("temperature")  # of the words in methods' names, which no column of a page may break
    assert f".measures {{ --columns: {len(METHODS)}; --letters: {longest}; }}" in digits_page
    assert 'name="viewport"' in digits_page


@pytest.mark.usefixtures("not_drawn")
def test_every_measure_of_the_page_is_explained(tmp_path: Path, digits_page: str) -> None:
    assert run(tmp_path / "run", data="toy/sine-gap", methods="map,variational") == 0
    for text in (digits_page, (tmp_path / "run" / "report.html").read_text()):
        table = text.partition('class="measures"')[2].partition("</table>")[0]
        explanations = re.findall(r'scope="row".*?<small>(.*?)</small>', table, re.DOTALL)
        assert len(explanations) > 5
        assert min(map(len, explanations)) > 30
        assert "Further measures" not in table


def test_settings_versions_seed_and_times_are_on_the_page(digits: Path, digits_page: str) -> None:
    shown = Reader(digits_page).text
    circumstances = json.loads((digits / "run.json").read_text())["circumstances"]
    for text in ("seed 0", "num_epochs 3", "hidden 16", f"torch {version('torch')}", circumstances["device"]):
        assert text in shown
    assert f"wall time {circumstances['wall time']}" in shown
    assert "1,132 rows" in shown
    assert "323 test rows" in shown
    assert "180 rows of another kind" in shown


def labels_content(name: str = "map", *, remark: str = "", warning: str = "", data: str = "digits") -> page.Content:
    """A page of one method with one measure."""
    rows = Dataset(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))
    measures = (Measure("accuracy", 0.5, 0.1, "fraction", remark), Measure(f"odd{remark}", float("nan"), None, ""))
    return page.Content(
        data=data,
        split=Split(rows, rows, rows),
        num_classes=2,
        methods={name: Method(name, "map")},
        fitted={name: Fitted(None, 1.0, (warning,))},  # type: ignore[arg-type]
        reports={name: Report(measures, 4, 1)},
        standings={},
        pictures=[Picture(data, data, data, "data:image/png;base64,", 10)],
        examples=Examples(name, (data,), ((data,),), 1),
        settings={"data": data, "num_members": 5, "seed": 0, "methods": [name]},
        circumstances={"when": "now", "wall time": "1 s", "device": data, "bayesuq": "0"},
    )


def test_hostile_names_are_shown_not_run() -> None:
    text = page.render(labels_content(HOSTILE, remark=HOSTILE, warning=HOSTILE, data=HOSTILE))
    reader = check_self_contained(text)
    assert HOSTILE not in text
    assert [attributes["alt"] for attributes in reader.all("img")] == [HOSTILE]
    assert HOSTILE in [attributes.get("data-method") for attributes in reader.all("td")]
    assert f"1 method on {HOSTILE}" in " ".join(reader.text_of("h1"))
    assert any(HOSTILE in shown for shown in reader.text_of("div"))  # the warning
    assert any(HOSTILE in shown for shown in reader.text_of("span"))  # the remark
    assert reader.text_of("th").count(HOSTILE) >= 2  # an example, and its column
    assert "49" not in reader.text


def test_names_break_between_their_words_on_a_phone() -> None:
    name = "quantile_calibration:variational"
    text = page.render(labels_content(name, remark="", warning="", data="digits"))
    labels = {attributes.get("data-method") for attributes in check_self_contained(text).all("td")} - {None}
    assert labels == {"quantile_\u200bcalibration:\u200bvariational"}


def test_a_measure_that_the_glossary_lacks_is_shown_under_its_name() -> None:
    text = page.render(labels_content())
    assert "Further measures" in text
    assert "Odd" in Reader(text).text
    assert "undefined" in Reader(text).text
    assert "nan" not in Reader(text).text


def test_only_what_is_clearly_apart_is_marked() -> None:
    content = labels_content()
    both = {"map": Method("map", "map"), "dropout": Method("dropout", "dropout")}
    content = replace(
        content,
        methods=both,
        fitted=dict.fromkeys(both, content.fitted["map"]),
        reports=dict.fromkeys(both, content.reports["map"]),
        standings={"accuracy": Standing("dropout", "map")},
    )
    table = page.render(content).partition('class="measures"')[2].partition("</table>")[0]
    marked = re.findall(r'data-method="(\w+)" class="(\w+)"', table)
    assert sorted(marked) == [("dropout", "best"), ("map", "worst")]
    assert [table.count(f"clearly {rank}</span>") for rank in ("best", "worst")] == [1, 1]
    told = Reader(page.render(content)).text
    assert "Dropout predicts clearly best (accuracy) and map predicts clearly worst (accuracy)." in told
    none = page.render(replace(content, standings={}))
    assert "clearly best</span>" not in none
    assert "No method predicts clearly better" in Reader(none).text


def test_pictures_and_examples_come_first_then_the_verdict_then_the_table(digits_page: str) -> None:
    heads = Reader(digits_page).text_of("h2")
    assert heads[:4] == ["At a glance", "In short", "Measures", "More figures"]
    first = digits_page.partition('id="verdict"')[0]
    titles = Reader(first.partition("<body>")[2].partition("<main>")[2]).text_of("h3")
    assert titles == ["Does confidence come true?", "Is it unsure where it is wrong?", "What is it least sure of?"]


@pytest.mark.parametrize("columns", [1, 2])
def test_the_rows_of_largest_variance_are_shown_with_what_was_predicted(columns: int) -> None:
    x, y = torch.arange(80.0).reshape(10, 8), torch.arange(10.0 * columns).reshape(10, columns)
    spread = torch.tensor([3.0, 1, 9, 2, 8, 4, 7, 5, 6, 0.5])[:, None].expand(10, columns)
    predictive = GaussianPredictive(mean=y[None] + 0.25, noise_variance=spread[None].square())
    part = Dataset(x, y)
    judged = {"map": Judged(predictive, y, None, Report((), 10, 1))}
    shown = least_sure("uci/made", Split(part, part, part), judged)
    assert shown is not None
    assert [row[0] for row in shown.rows] == ["2", "4", "6", "8", "7", "5", "0", "3"]
    ends = [f"{2 * columns + 0.25 + side * 1.6448536 * 9:.4g}" for side in (-1, 1)]
    assert shown.rows[0][1:4] == (f"{2 * columns}", f"{2 * columns + 0.25:.4g}", f"{ends[0]} to {ends[1]}")
    assert len(shown.header) == len(shown.rows[0]) == 1 + 3 * columns + 6
    assert shown.num_hidden == 2


def test_rows_of_labels_are_shown_by_the_names_of_their_labels() -> None:
    part = Dataset(torch.zeros(2, 3), torch.tensor([0, 1]))
    predictive = CategoricalPredictive.from_probs(torch.tensor([[[0.9, 0.1], [0.6, 0.4]]])).named(["calm", "rough"])
    shown = least_sure("seas.csv", Split(part, part, part), {"map": Judged(predictive, part.y, None, Report((), 2, 1))})
    assert shown is not None
    assert [row[1:4] for row in shown.rows] == [("calm", "0.60", "rough"), ("calm", "0.90", "calm")]


def test_images_and_maps_are_shown_as_pictures_instead() -> None:
    rows = Dataset(torch.rand(4, 16), torch.tensor([0, 1, 0, 1]))
    assert least_sure("digits", Split(rows, rows, rows), {}) is None


def titles_of(data: str, split: Split, predictive: PredictiveDistribution, *, ood: bool) -> list[str]:
    """The titles of the figures of two methods that predict the same."""
    judged = Judged(predictive, split.test.y, predictive if ood else None, Report((), 20, 2))
    split = replace(split, ood=split.test if ood else None)
    fitted = Fitted(MAP, 1.0, ())
    return [picture.title for picture in draw(data, split, {"a": judged, "b": judged}, {"a": fitted, "b": fitted})]


MAP = map_estimate.fit(
    BayesianNetwork(networks.mlp(1, (), 1), priors.Normal(), likelihoods.Normal(scale=1.0)),
    Dataset([[0.0], [1.0]], [0.0, 1.0]),
    num_epochs=2,
)
CONFIDENCE, WRONG, REFUSAL, PAST = (
    "Does confidence come true?",
    "Is it unsure where it is wrong?",
    "What if it may refuse to answer?",
    "Was it trained long enough?",
)
BANDS, INTERVALS = "What does it predict, and how surely?", "Do its intervals hold what they promise?"
LEAST, EACH = "What is it least sure of?", "What does each method say of them?"


@pytest.mark.usefixtures("not_rendered")
@pytest.mark.parametrize(
    ("data", "shape", "ood", "titles"),
    [
        ("uci/labels", (16,), False, [CONFIDENCE, WRONG, REFUSAL, PAST]),
        ("uci/labels", (16,), True, [CONFIDENCE, WRONG, REFUSAL, UNSEEN, PAST]),
        ("digits", (16,), False, [CONFIDENCE, WRONG, REFUSAL, LEAST, EACH, PAST]),
        ("digits", (15,), False, [CONFIDENCE, WRONG, REFUSAL, PAST]),
        ("mnist", (1, 4, 4), True, [CONFIDENCE, WRONG, REFUSAL, UNSEEN, LEAST, EACH, PAST]),
        ("maps", (7, 4, 4), False, [CONFIDENCE, WRONG, REFUSAL, PAST]),
    ],
)
def test_figures_of_labels_are_those_that_the_data_allow(
    data: str, shape: tuple[int, ...], ood: bool, titles: list[str]
) -> None:
    noise = torch.Generator().manual_seed(0)
    rows = Dataset(torch.rand(20, *shape, generator=noise), torch.randint(3, (20,), generator=noise))
    predictive = CategoricalPredictive.from_logits(torch.randn(2, 20, 3, generator=noise))
    assert titles_of(data, Split(rows, rows, rows), predictive, ood=ood) == titles


@pytest.mark.usefixtures("not_rendered")
@pytest.mark.parametrize(
    ("num_inputs", "num_targets", "ood", "titles"),
    [
        (1, 1, False, [BANDS, INTERVALS, WRONG, PAST]),
        (1, 1, True, [BANDS, INTERVALS, WRONG, UNSEEN, PAST]),
        (2, 2, True, [INTERVALS, WRONG, UNSEEN, PAST]),
    ],
)
def test_figures_of_real_targets_are_those_that_the_data_allow(
    num_inputs: int, num_targets: int, ood: bool, titles: list[str]
) -> None:
    noise = torch.Generator().manual_seed(0)
    rows = Dataset(torch.rand(20, num_inputs, generator=noise), torch.randn(20, num_targets, generator=noise))
    predictive = GaussianPredictive(mean=torch.randn(2, 20, num_targets, generator=noise), noise_variance=1.0)
    for each in (predictive, ThinnedPredictive.of(predictive, 1)):
        assert titles_of("uci/made", Split(rows, rows, rows), each, ood=ood) == titles


def test_the_losses_of_a_scaled_method_are_not_drawn_twice(digits_page: str) -> None:
    (alternative,) = [picture["alt"] for picture in Reader(digits_page).all("img") if "Training loss" in picture["alt"]]
    assert re.findall(r"(\w+) from", alternative) == ["map", "ensemble", "dropout"]


def test_a_figure_of_very_many_marks_becomes_a_bitmap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bayesuq.cli.figures.LARGEST_SVG", 10)
    figure = bq.evaluation.plots.loss_curves({"map": [1.0, 0.5]})
    picture = Picture.of(figure, "title", "caption", "alternative")
    assert base64.b64decode(picture.source.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")


def test_rows_of_another_kind_are_told_apart_by_what_the_report_says() -> None:
    split = datasets.load("toy/sine-gap")

    class Gap(bq.Posterior):
        """Disagrees where there were no training inputs."""

        device = torch.device("cpu")

        def to(self, _: object) -> "Gap":
            return self

        def save(self, path: object) -> None:
            raise NotImplementedError

        def drawn(self, wanted: object) -> Drawn:
            raise NotImplementedError

        def predict(self, x: torch.Tensor, **_: object) -> GaussianPredictive:
            spread = (x.abs() < 1).to(x) * torch.tensor([1.0, -1.0])[:, None, None]
            return GaussianPredictive(mean=torch.sin(2 * x) + spread, noise_variance=0.01)

    judged = judge(Gap(), split.test, split.ood, None, PredictionOptions())
    assert judged.report["ood_epistemic_variance_auroc"].value == 1
    assert judged.report["ood_total_variance_auroc"].value == 1
    assert judged.sought["ood"].positives.sum() == len(split.ood)
    assert judged.report["root_mean_squared_error"].value == pytest.approx(0.1, abs=0.01)


def test_failed_work_leaves_what_was_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise FloatingPointError("The loss stopped being finite at step 3.")

    monkeypatch.setattr(dropout, "fit", fail)
    assert run(tmp_path / "run", methods="map,dropout") == 1
    assert (tmp_path / "run" / "posteriors" / "map.safetensors").is_file()
    assert not (tmp_path / "run" / "report.html").exists()
