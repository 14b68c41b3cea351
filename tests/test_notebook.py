"""What a notebook shows: tables of data, posteriors, predictives and reports, and figures as pictures."""

import math
import sys
import warnings
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from ipykernel.kernelapp import IPKernelApp
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.connect import write_connection_file

import bayesuq as bq
from bayesuq.evaluation import calibration, plots, report
from bayesuq.evaluation.report import comparison
from bayesuq.inference.training import bars
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
from bayesuq.notebook import table

MOST_LINES = 3  # of text below a cell
CELLS = (
    """
import bayesuq as bq
from bayesuq.evaluation import calibration, plots, report
split = bq.datasets.load("digits-0to8")
split
""",
    """
net = bq.models.networks.mlp(64, (20,), 9)
model = bq.models.BayesianNetwork(net, bq.models.priors.Normal(), bq.models.likelihoods.Categorical(), seed=0)
posterior = bq.inference.map_estimate.fit(model, split.train, num_epochs=3, seed=0)
posterior
""",
    "predictive = posterior.predict(split.test.x)\npredictive",
    "report.evaluate(predictive, split.test.y)",
    """
plots.reliability_diagram({"MAP": calibration.reliability(predictive, split.test.y)}).show()
plots.loss_curves({"MAP": posterior.history.loss})
""",
    """
found = report.evaluate_ood(predictive, posterior.predict(split.ood.x))
plots.score_histograms(found, ["predictive_entropy"])
""",
)


def cells(shown: str) -> list[list[str]]:
    """The rows of an HTML table."""
    return [[cell.text or "" for cell in row] for row in ElementTree.fromstring(shown).iter("tr")]


def of_labels() -> bq.CategoricalPredictive:
    generator = torch.Generator().manual_seed(0)
    return bq.CategoricalPredictive.from_logits(torch.randn(5, 8, 3, generator=generator))


def of_real_targets(columns: int = 1) -> bq.GaussianPredictive:
    generator = torch.Generator().manual_seed(0)
    return bq.GaussianPredictive(mean=torch.randn(9, 8, columns, generator=generator), noise_variance=0.3)


def test_text_in_a_table_is_escaped() -> None:
    assert "<script>" not in table("<script>", ["<script>"], [["<script>", "<script>"]], note="<script>")


def test_a_predictive_of_real_targets_has_what_its_mixture_has() -> None:
    predictive = of_real_targets()
    torch.testing.assert_close(predictive.std.square(), predictive.total, rtol=1e-14, atol=0.0)
    torch.testing.assert_close(predictive.cdf(predictive.median), torch.full((8, 1), 0.5, dtype=torch.float64))
    lower, upper = predictive.interval(0.8)
    inside = predictive.cdf(upper) - predictive.cdf(lower)
    torch.testing.assert_close(inside, torch.full((8, 1), 0.8, dtype=torch.float64))
    with pytest.raises(ValueError, match="`level` must lie strictly between 0 and 1; got 90"):
        predictive.interval(90)


def test_data_frames_hold_the_numbers_in_the_rows_order() -> None:
    predictive, labels, two = of_real_targets(), of_labels(), of_real_targets(2)
    frame = predictive.to_pandas()
    assert list(frame) == ["mean", "std", "aleatoric_std", "epistemic_std", "median", "lower", "upper"]
    assert frame["mean"].tolist() == predictive.mean[:, 0].tolist()
    assert frame["upper"].tolist() == predictive.quantile(0.95)[:, 0].tolist()
    parts = frame["aleatoric_std"] ** 2 + frame["epistemic_std"] ** 2
    assert parts.tolist() == pytest.approx((frame["std"] ** 2).tolist(), rel=1e-12)
    frame = labels.to_pandas()
    assert frame["p_2"].tolist() == labels.mean[:, 2].tolist()
    assert frame["label"].tolist() == labels.mean.argmax(dim=1).tolist()
    assert frame["epistemic"].tolist() == labels.epistemic.tolist()
    assert two.to_pandas()["std_1"].tolist() == two.std[:, 1].tolist()


def test_data_frames_of_maps_have_a_row_for_each_image() -> None:
    maps = bq.CategoricalPredictive.from_logits(torch.randn(3, 2, 4, 5, 6, generator=torch.Generator().manual_seed(0)))
    frame = maps.to_pandas()
    assert frame.shape == (2, 3)
    assert frame["total"].tolist() == pytest.approx(maps.total.mean(dim=(1, 2)).tolist(), rel=1e-12)


@pytest.mark.parametrize("make", [of_labels, of_real_targets], ids=["labels", "real targets"])
def test_a_predictive_is_shown_by_its_first_points(make: Any) -> None:
    predictive = make()
    header, *rows, note = cells(predictive._repr_html_())
    assert note == ["3 more"]
    columns = predictive.to_pandas()
    name = "total" if "total" in header else "std"
    assert [float(row[header.index(name)]) for row in rows] == pytest.approx(columns[name][:5].tolist(), rel=1e-3)


def test_reports_and_comparisons_are_tables_of_what_they_print() -> None:
    predictive, y = of_labels(), torch.arange(8) % 3
    measured = report.evaluate(predictive, y)
    differences = comparison.compare_predictives(predictive, predictive, y)
    found = report.evaluate_misclassification(predictive, y)
    shown = cells(measured._repr_html_())
    assert [row[0] for row in shown[1:]] == [measure.name for measure in measured.measures]
    words = str(measured).split()
    assert all(word in words for row in shown[1:] for cell in row for word in cell.split())
    assert [row[0] for row in cells(differences._repr_html_())[1:]] == [each.name for each in differences.differences]
    assert [row[0] for row in cells(found.table._repr_html_())[1:]] == list(found.scores)
    assert found._repr_html_().endswith("</p>")


def test_data_and_posteriors_are_tables() -> None:
    x = torch.linspace(-1, 1, 20)[:, None]
    split = bq.data.split_dataset(bq.Dataset(x, x.squeeze(1)))
    assert [row[:2] for row in cells(split._repr_html_())[1:]] == [["train", "14"], ["val", "2"], ["test", "4"]]
    assert cells(split.train._repr_html_())[1:] == [["x", "(14, 1)", "float32"], ["y", "(14, 1)", "float32"]]
    model = BayesianNetwork(networks.mlp(1, (3,), 1), priors.Normal(), likelihoods.Normal(scale=0.1))
    member = bq.inference.map_estimate.fit(model, split.train, num_epochs=1, seed=0)
    both = bq.inference.ensemble.fit(model, split.train, num_members=2, num_epochs=1, seed=0)
    process = bq.inference.gp.fit(bq.models.gp.GaussianProcess(), split.train, max_iterations=1)
    facts = dict(cells(both._repr_html_())[1:])
    assert dict(cells(member._repr_html_())[1:])["random weights"] == f"{1 * 3 + 3 + 3 + 1}"
    assert facts["members"] == "2 of MapPosterior"
    assert dict(cells(process._repr_html_())[1:])["device"] == "cpu"


def test_a_figure_is_a_picture_and_shows_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    predictive, y = of_labels(), torch.arange(8) % 3
    figure = plots.reliability_diagram({"one": calibration.reliability(predictive, y)})
    picture = figure._repr_png_()
    width = int.from_bytes(picture[16:20], "big")
    assert picture.startswith(b"\x89PNG")
    assert math.isclose(width, 120 * figure.get_figwidth(), rel_tol=0.01)
    with pytest.raises(RuntimeError, match=r"no screen.*savefig"):
        figure.show()
    shown: list[Any] = []
    shell = SimpleNamespace(get_ipython=object, display=SimpleNamespace(display=shown.append))
    monkeypatch.setitem(sys.modules, "IPython", shell)  # type: ignore[arg-type]
    figure.show()
    assert shown == [figure]


def test_bars_show_in_a_notebook_and_not_in_a_log(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not bars.is_shown(None)

    class ZMQInteractiveShell:
        """Of Jupyter's kernel."""

    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=ZMQInteractiveShell))  # type: ignore[arg-type]
    assert bars.is_shown(None)
    assert not bars.is_shown(False)


def serve(connection: Path) -> None:
    """What the kernel's process does."""
    warnings.simplefilter("default")
    IPKernelApp.launch_instance(["-f", str(connection)])


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[BlockingKernelClient]:
    """A client of Jupyter's kernel, which is a copy of this process and so has imported what this one has."""
    connection, _ = write_connection_file(str(tmp_path / "kernel.json"))
    process = get_context("fork").Process(target=serve, args=(tmp_path / "kernel.json",))
    process.start()
    client = BlockingKernelClient(connection_file=connection)
    client.load_connection_file()
    client.start_channels()
    client.wait_for_ready(timeout=60)
    yield client
    client.shutdown()
    process.join(20)
    client.stop_channels()
    if process.is_alive():
        process.kill()


def run(client: BlockingKernelClient, cell: str) -> list[dict[str, Any]]:
    """What a cell shows: messages of Jupyter, those that tell of the kernel's state left out.

    Raises:
        AssertionError: The cell failed.
    """
    messages: list[dict[str, Any]] = []
    answer = client.execute_interactive(cell, timeout=120, output_hook=messages.append)
    assert answer["content"]["status"] == "ok", "\n".join(answer["content"].get("traceback", []))
    return [message for message in messages if message["msg_type"] in {"execute_result", "display_data", "stream"}]


@pytest.mark.slow
def test_a_kernel_runs_a_notebook_that_shows_tables_and_pictures_and_no_wall_of_text(
    kernel: BlockingKernelClient,
) -> None:
    outputs = [output for cell in CELLS for output in run(kernel, cell)]
    shown = [output["content"]["data"] for output in outputs if output["msg_type"] != "stream"]
    assert sum("image/png" in data for data in shown) == 3
    assert sum("<table>" in data.get("text/html", "") for data in shown) == 4
    bare = [data["text/plain"] for data in shown if not {"text/html", "image/png"} & set(data)]
    assert all(text.count("\n") < MOST_LINES for text in bare)
    streams = [output["content"] for output in outputs if output["msg_type"] == "stream"]
    assert [stream["text"] for stream in streams if stream["name"] == "stdout"] == []
