"""Libraries that are imported late: a broken one is told of where it is needed, and hurts nothing else."""

import sys
from pathlib import Path

import pytest

import bayesuq as bq
from bayesuq import optional
from bayesuq.evaluation.diagnostics.leave_one_out import loo
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors


def test_other_names_are_not_there() -> None:
    with pytest.raises(AttributeError, match=r"bayesuq\.optional.*no attribute 'polars'"):
        _ = optional.polars


@pytest.mark.parametrize("cause", [ImportError("parts do not fit"), FileNotFoundError("cache")], ids=repr)
def test_fitting_and_predicting_work_without_arviz(
    cause: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an ArviZ that cannot be imported; that no fit imports it is what `test_imports` says."""
    (tmp_path / "arviz.py").write_text(f"raise {cause!r}", encoding="utf-8")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "arviz", raising=False)
    model = BayesianNetwork(networks.mlp(1, (), 1), priors.Normal(), likelihoods.Normal(scale=0.1))
    data = bq.Dataset([[0.0], [1.0]], [0.0, 1.0])
    posterior = bq.inference.variational.fit(model, data, num_epochs=1, seed=0)
    posterior.predict(data.x)
    with pytest.raises(ImportError, match=r"need ArviZ.*Fitting and predicting work without it") as raised:
        loo(posterior.to_arviz(data.x, data.y, num_samples=30))  # 1.x has no container of its own, and is needed later
    assert type(raised.value.__cause__) is type(cause)
    assert str(cause) in str(raised.value)
