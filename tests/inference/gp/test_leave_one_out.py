"""Each row as all the others predict it, in closed form: the same as conditioning on the others."""

from typing import Any

import pytest
import torch
from torch import Tensor

from bayesuq.data import Dataset
from bayesuq.inference.gp.exact import ExactGpPosterior
from bayesuq.inference.gp.fitting import fit
from bayesuq.models import gp, likelihoods
from tests.inference.examples import noise

X = noise(0, 12, 2)
Y = torch.stack([torch.sin(X.sum(dim=1)), torch.cos(X[:, 0])], dim=1) + 0.1 * noise(2, 12, 2)
SCALES = 0.1 + noise(3, 12).abs()
EXACT = {"rtol": 1e-9, "atol": 1e-9}


def fitted(x: Tensor, y: Tensor, **options: Any) -> ExactGpPosterior:
    parts = options.pop("parts", {})
    kernel = gp.Scale(gp.RBF(lengthscale=0.8), variance=1.5)
    process = gp.GaussianProcess(
        **{"kernel": kernel, "mean": gp.ZeroMean(), "likelihood": likelihoods.Normal(scale=0.2), **parts}
    )
    found = fit(process, Dataset(x, y), seed=0, **options)
    assert isinstance(found, ExactGpPosterior)
    return found


@pytest.mark.parametrize("options", [{}, {"parts": {"shares_kernel": True}}, {"noise_scale": SCALES}], ids=str)
def test_each_row_is_predicted_as_by_conditioning_on_the_others(options: dict[str, Any]) -> None:
    found = fitted(X, Y, **options).leave_one_out()
    known = options.get("noise_scale")
    for row in range(len(X)):
        others = torch.arange(len(X)) != row
        rest = options if known is None else {"noise_scale": known[others]}
        alone = fitted(X[others], Y[others], **rest).predict(X[row : row + 1])
        own = 0.0 if known is None else float(known[row]) ** 2  # of the row, which `predict` knows nothing of
        torch.testing.assert_close(found.mean[row], alone.mean[0], **EXACT)
        torch.testing.assert_close(found.epistemic[row], alone.epistemic[0], **EXACT)
        torch.testing.assert_close(found.aleatoric[row], alone.aleatoric[0] + own, **EXACT)


def test_what_has_no_closed_form_is_refused() -> None:
    coregionalised = fitted(X, Y, parts={"kernel": gp.Coregionalised(gp.RBF(lengthscale=0.8))})
    with pytest.raises(NotImplementedError, match="independent outputs with normal noise only"):
        coregionalised.leave_one_out()
    weight = torch.ones_like(Y)
    weight[3, 1] = 0.0
    process = gp.GaussianProcess(gp.RBF(lengthscale=0.8), likelihood=likelihoods.Normal(scale=0.2))
    with pytest.raises(ValueError, match="of rows that have all targets"):
        fit(process, Dataset(X, Y, weight), seed=0).leave_one_out()
