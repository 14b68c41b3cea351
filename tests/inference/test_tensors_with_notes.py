"""Batches, outputs and arrays of a tensor class of somebody's own, such as MONAI's, which carries notes along."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import bayesuq as bq
from bayesuq.inference import dropout, ensemble, features, hmc, laplace, map_estimate, swag, temperature, variational
from bayesuq.models import likelihoods
from tests.inference.examples import SHORT_FIT, built, labelled

pytestmark = pytest.mark.filterwarnings(*SHORT_FIT, "ignore:R-hat", "ignore:The held-out labels")


class Noted(Tensor):
    """Keeps what is noted of it through every operator, as `monai.data.MetaTensor` does."""

    notes: dict[str, Any]

    @staticmethod
    def __new__(cls, x: Any, notes: dict[str, Any] | None = None) -> "Noted":
        found = torch.as_tensor(x).as_subclass(cls)
        found.notes = dict(notes or {})
        return found

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = super().__torch_function__(function, types, args, kwargs or {})
        if isinstance(found, Noted):
            found.notes = next((one.notes for one in args if isinstance(one, Noted) and hasattr(one, "notes")), {})
        return found


class Answering(nn.Module):
    """Gives its outputs as tensors of that class, too."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(3, 8), nn.Tanh()), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return Noted(self.head(self.body(x)), {"made by": "Answering"})


ROWS = labelled(40)
X, Y = ROWS.x.float(), ROWS.y
SHORT: dict[str, Any] = {"num_epochs": 2, "seed": 0}
FITS: dict[str, Callable[[Any, Any], Any]] = {
    "laplace": laplace.fit,
    "dropout": lambda adopted, _: dropout.around(adopted, put_in={"head": 0.2}),
    "map": lambda adopted, data: map_estimate.fit(adopted.model, data, **SHORT),
    "variational": lambda adopted, data: variational.fit(adopted.model, data, **SHORT),
    "ensemble": lambda adopted, data: ensemble.fit(
        adopted.model, data, num_members=2, initialise="keep", bootstrap=isinstance(data, bq.Dataset), **SHORT
    ),
    "swag": lambda adopted, data: swag.fit(adopted.model, data, rank=2, num_epochs=8, seed=0),
    "hmc": lambda adopted, data: hmc.fit(
        adopted.model, data, num_samples=3, num_warmup=3, num_chains=1, max_tree_depth=3, seed=0
    ),
    "temperature": temperature.fit,
}


def network(*, notes: bool) -> nn.Module:
    net = built(Answering).float()
    if not notes:
        net.forward = partial(lambda own, x: own.head(own.body(x)), net)  # type: ignore[method-assign]
    return net


def items() -> list[dict[str, Any]]:
    """As a loader of dictionaries has them: an image, a label, and what else is known."""
    return [{"image": Noted(X[n], {"path": f"{n}.nii"}), "label": Y[n], "index": n} for n in range(40)]


def gathered(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "image": Noted(torch.stack([row["image"] for row in rows])),
        "label": torch.stack([r["label"] for r in rows]),
    }


def picked(batch: dict[str, Any]) -> bq.Batch:
    return bq.Batch(batch["image"], batch["label"])


@pytest.mark.parametrize("name", FITS)
def test_arrays_and_outputs_with_notes_give_the_numbers_of_plain_ones(name: str) -> None:
    def predicted(notes: bool) -> Any:
        adopted = bq.adopt(network(notes=notes), likelihoods.Categorical())
        x = Noted(X, {"path": "all.nii"}) if notes else X
        y = Noted(Y) if notes else Y
        return FITS[name](adopted, bq.Dataset(x, y)).predict(x, num_samples=4, seed=0)

    noted, plain = predicted(True), predicted(False)
    assert type(noted.mean) is Tensor
    torch.testing.assert_close(noted.mean, plain.mean, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(noted.epistemic, plain.epistemic, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", FITS)
def test_loaders_of_dictionaries_are_read_by_a_function(name: str) -> None:
    adopted = bq.adopt(network(notes=True), likelihoods.Categorical())
    loader = bq.Loader(DataLoader(items(), batch_size=16, collate_fn=gathered), batch=picked)
    posterior = FITS[name](adopted, loader)
    one, other = posterior.predict(loader, num_samples=4, seed=0), posterior.predict(X, num_samples=4, seed=0)
    torch.testing.assert_close(one.mean, other.mean, rtol=1e-6, atol=1e-7)
    assert type(one.mean) is Tensor


def test_features_and_measures_take_them() -> None:
    adopted = bq.adopt(network(notes=True), likelihoods.Categorical())
    scores = features.fit(adopted, bq.Dataset(Noted(X), Noted(Y)), scores=["mahalanobis", "energy"])
    for values in scores(Noted(X[:5])).values():
        assert type(values) is Tensor
    predictive = adopted.predict(Noted(X))
    assert str(bq.evaluation.report.evaluate(predictive, Noted(Y))) == str(bq.evaluation.report.evaluate(predictive, Y))
