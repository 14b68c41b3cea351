"""`bayesuq diagnose` from end to end: its page says what was found, and its files open with ArviZ."""

from pathlib import Path

import arviz
import numpy as np
import pytest
import torch
import yaml

from bayesuq import datasets
from bayesuq.cli.main import main
from bayesuq.cli.output import FIRST_LINE
from bayesuq.inference.joint.layout import Layout
from bayesuq.inference.posteriors.chains import ChainPosterior
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
from bayesuq.to_arviz.container import group, group_names
from tests.cli.rendering import not_drawn, not_rendered, nothing_drawn

SHORT = ["--num_epochs", "2", "--hidden", "8", "--num_members", "2", "--num_samples", "4"]
__all__ = ["not_drawn", "not_rendered"]  # fixtures
FEW = ["--num_samples", "40", "--num_rows", "30"]


def fit(out: Path, data: str, method: str) -> Path:
    assert main(["fit", "--data", data, "--method", method, "--out", str(out), *SHORT]) == 0
    return out


def page(folder: Path) -> str:
    """Its text, on one line."""
    return " ".join((folder / "diagnostics.html").read_text(encoding="utf-8").split())


def write_chains(folder: Path, *, apart: float) -> None:
    """A run of four hand-made chains on toy/linear, the first one `apart` from the others."""
    model = BayesianNetwork(networks.mlp(1, (), 1), priors.Normal(), likelihoods.Normal(scale=0.5))
    noise = torch.Generator().manual_seed(0)
    line = torch.tensor([2.0, 1.0])  # of toy/linear, whose noise is .5: the posterior is about this wide
    draws = line + 0.05 * torch.randn(4, 200, Layout.of(model).size, generator=noise)
    draws[0] += apart
    statistics = {"energy": torch.randn(4, 200, generator=noise), "diverging": torch.zeros(4, 200, dtype=torch.bool)}
    statistics["diverging"][1, 7] = apart > 0
    posterior = ChainPosterior(model=model, draws=draws, buffers={}, statistics=statistics, warmup_statistics={})
    folder.mkdir()
    settings = {"data": "toy/linear", "method": "chains", "seed": 0}
    (folder / "settings.yaml").write_text(FIRST_LINE + yaml.safe_dump(settings))
    (folder / "run.json").write_text('{"fits": {}}')
    (folder / "posterior.safetensors").write_text("loaded by a stand-in")
    CHAINS[folder / "posterior.safetensors"] = posterior


CHAINS: dict[Path, ChainPosterior] = {}  # a class that no file names


@pytest.mark.slow
def test_a_variational_fit_is_told_to_be_independent_draws_and_its_file_opens(tmp_path: Path) -> None:
    run = fit(tmp_path / "run", "toy/linear", "variational")
    assert main(["diagnose", str(run), *FEW]) == 0
    text = page(run)
    for words in (
        "40 independent draws",
        "R-hat and effective sample sizes do not apply",
        "pareto_k",
        "elpd",
        "LOO-PIT",
    ):
        assert words in text
    assert "No problem was found" not in text
    assert 'src="data:image/' in text
    data = arviz.from_netcdf(str(run / "inference_data.nc"))
    split = datasets.load("toy/linear")
    assert set(group_names(data)) == {
        *("posterior", "posterior_predictive", "log_likelihood", "observed_data", "constant_data"),
        *("predictions", "predictions_constant_data", "prior", "prior_predictive"),
    }
    y = split.train.y[:, 0].double()
    rows = [(2 * k + 1) * len(y) // 60 for k in range(30)]
    expected = ((y - y.mean()) / y.std(correction=0))[rows]  # in the units that were fitted
    np.testing.assert_allclose(group(data, "observed_data")["y"].values, expected.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("not_drawn")
def test_a_comparison_is_ranked_by_leave_one_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    methods = ["--methods", "map,variational,ensemble:dropout"]
    assert main(["compare", "--data", "digits-0to8", *methods, "--out", str(run), *SHORT]) == 0
    capsys.readouterr()
    assert main(["diagnose", str(run), *FEW]) == 0
    told = capsys.readouterr().out
    assert "below the best" in told
    assert "LOO needs at least 25 draws; there are 1" in told
    text = page(run)
    ranked = text.partition("Leave-one-out comparison")[2].partition("</table>")[0]
    assert "variational" in ranked
    assert "ensemble:dropout" in ranked
    assert ">map<" not in ranked
    files = sorted(path.name for path in (run / "inference_data").iterdir())
    assert files == ["ensemble-dropout.nc", "map.nc", "variational.nc"]


@pytest.mark.slow
@pytest.mark.usefixtures("not_rendered")
def test_chains_that_agree_have_no_problem_and_others_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bayesuq.cli.diagnosing.read_fitted", lambda path, *_: (CHAINS[path], None))
    for name, apart in (("bad", 2.0), ("good", 0.0)):
        write_chains(tmp_path / name, apart=apart)
        assert main(["diagnose", str(tmp_path / name), "--num_rows", "20"]) == 0
        text = page(tmp_path / name)
        for title in ("Trace", "Ranks", "Energy", "Forest", "Pairs"):
            assert f"<h3>{title}</h3>" in text
        assert "4 chains of 200 draws" in text  # all that are stored
        assert f"Divergent draws: {int(apart > 0)}." in text
        assert "BFMI, chain by chain: " in text
        assert ("No problem was found" in text) == (apart == 0)
        assert ("1 of 800 draws diverged" in text) == (apart > 0)
        assert ("mu: R-hat is above 1.01 in 20 of 20 entries" in text) == (apart > 0)
        data = arviz.from_netcdf(str(tmp_path / name / "inference_data.nc"))
        assert group(data, "sample_stats")["energy"].shape == (4, 200)
        monkeypatch.setattr("bayesuq.cli.diagnosis._told", nothing_drawn)  # the good chains' figures are of one kind


@pytest.mark.slow
@pytest.mark.usefixtures("not_drawn")
def test_earlier_diagnostics_are_not_replaced_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit(tmp_path / "run", "toy/linear", "map")
    assert main(["diagnose", str(run), *FEW]) == 0
    assert "1 independent draw." in page(run)
    (run / "diagnostics.html").write_text("mine")
    assert main(["diagnose", str(run), *FEW]) == 2
    assert "pass --overwrite" in capsys.readouterr().err
    assert page(run) == "mine"
    assert main(["diagnose", str(run), "--overwrite", *FEW]) == 0
    assert page(run) != "mine"
    assert main(["fit", "--data", "toy/linear", "--method", "map", "--out", str(run), "--overwrite", *SHORT]) == 0
    assert not (run / "diagnostics.html").exists()  # it told of another posterior
    assert not (run / "inference_data.nc").exists()


def test_a_folder_without_a_posterior_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", str(tmp_path)]) == 2
    assert "holds no posterior" in capsys.readouterr().err
    assert main(["diagnose", str(tmp_path / "nowhere")]) == 2
    write_chains(tmp_path / "stopped", apart=0.0)
    (tmp_path / "stopped" / "run.json").write_text("{")
    assert main(["diagnose", str(tmp_path / "stopped")]) == 2
    assert "run.json is not as a run wrote it" in capsys.readouterr().err
    (tmp_path / "stopped" / "run.json").unlink()
    assert main(["diagnose", str(tmp_path / "stopped")]) == 2
    assert "did not come to its end" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["diagnose"])
    assert ended.value.code == 2
