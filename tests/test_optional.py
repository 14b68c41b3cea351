"""Libraries that are imported late: a broken one is told of where it is needed, and hurts nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

from bayesuq import optional

BROKEN = """
import sys
from pathlib import Path
sys.dont_write_bytecode = True
sys.path.insert(0, {folder!r})
import bayesuq as bq
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
model = BayesianNetwork(networks.mlp(1, (), 1), priors.Normal(), likelihoods.Normal(scale=0.1))
data = bq.Dataset([[0.0], [1.0]], [0.0, 1.0])
posterior = bq.inference.map_estimate.fit(model, data, num_epochs=1, seed=0)
for cause in ("ImportError('parts do not fit')", "FileNotFoundError('cache')"):
    Path({folder!r}, "arviz.py").write_text(f"raise {{cause}}")  # an ArviZ that cannot be imported
    posterior.predict(data.x)
    try:
        posterior.to_arviz(data.x, data.y)
    except ImportError as error:
        message = str(error)
        if "need ArviZ" not in message or "Fitting and predicting work without it" not in message:
            sys.exit(message)
        if type(error.__cause__).__name__ != cause.partition("(")[0]:
            sys.exit(f"the cause is {{error.__cause__!r}}, not {{cause}}")
    else:
        sys.exit("no error")
"""


def test_other_names_are_not_there() -> None:
    with pytest.raises(AttributeError, match=r"bayesuq\.optional.*no attribute 'polars'"):
        _ = optional.polars


@pytest.mark.slow
def test_fitting_and_predicting_work_without_arviz(tmp_path: Path) -> None:
    code = BROKEN.format(folder=str(tmp_path))
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
