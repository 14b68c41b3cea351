"""The methods of the MNIST table: one setting each, the network of Blundell et al. 2015, and what is measured."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

import bayesuq as bq
from bayesuq.arrays import check_count, check_positive, check_probability
from bayesuq.evaluation.calibration import expected_calibration_error
from bayesuq.evaluation.detection import auroc
from bayesuq.evaluation.scores import accuracy, negative_log_likelihood
from bayesuq.inference import dropout, ensemble, ivon, map_estimate, microcanonical, variational
from bayesuq.inference.training.options import Callback
from bayesuq.models import BayesianNetwork, likelihoods, networks, priors
from bayesuq.randomness import derive_seed, isolated

Part = Literal["val", "test"]
PIXEL_SCALE = 255 / 126  # images are in [0, 1] here; the paper divides bytes by 126
METHODS = {
    "map": map_estimate.fit,
    "dropout": dropout.fit,
    "ensemble": ensemble.fit,
    "variational": variational.fit,
    "ivon": ivon.fit,
    "microcanonical": microcanonical.fit,
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How one method is fitted.

    Attributes:
        method: One of `METHODS`.
        prior_scales: Of the prior of every weight: one is a normal, several a mixture of centred normals.
        prior_weights: Shares of that mixture's parts; None is equal ones.
        num_epochs: Passes over the images.
        learning_rate: Of Adam at the start, or of `ivon`'s steps; it falls to 0 along a cosine.
        batch_size: Images in a minibatch.
        hidden: Widths of the hidden layers.
        dropout: Probability of dropping a hidden unit.
        num_members: Of an ensemble, or chains, which begin at its members.
        num_warmup: Steps of chains in which they are tuned; `num_kept` draws follow.
        num_kept: Draws of each chain that are kept.
        thinning: Steps of a chain for each of these.
        initial_scale: Of a mean-field posterior, as a share of the prior's.
        scale_rate: Rate at which its log scales learn, over that of the means.
        memory: Steps that the curvature of `ivon` remembers; None is its default.
        num_draws: Draws of a step of `ivon`.
        num_samples: Draws of a prediction, where there is no end of them.
    """

    method: Literal["map", "dropout", "ensemble", "variational", "ivon", "microcanonical"]
    prior_scales: Sequence[float]
    num_epochs: int
    learning_rate: float
    batch_size: int = 128
    hidden: Sequence[int] = (400, 400)
    prior_weights: Sequence[float] | None = None
    dropout: float = 0.0
    num_members: int = 5
    num_warmup: int = 3000
    num_kept: int = 200
    thinning: int = 10
    initial_scale: float = 0.05
    scale_rate: float = 1.0
    memory: float | None = None
    num_draws: int = 1
    num_samples: int = 100

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"`method` must be one of {', '.join(METHODS)}; got {self.method!r}.")
        for name in ("num_epochs", "batch_size", "num_members", "num_draws", "num_samples", "num_warmup", "num_kept"):
            check_count(getattr(self, name), name)
        for name in ("learning_rate", "initial_scale", "scale_rate"):
            check_positive(getattr(self, name), name)
        check_probability(self.dropout, "dropout")

    def model(self, seed: int) -> BayesianNetwork:
        """The network at initial weights that the seed decides."""
        with isolated(seed):
            net = networks.mlp(28 * 28, self.hidden, 10, self.dropout)
        count = len(self.prior_scales)
        prior: priors.Prior = priors.Normal(scale=self.prior_scales[0])
        if count > 1:
            prior = priors.ScaleMixture(tuple(self.prior_scales), tuple(self.prior_weights or (1 / count,) * count))
        return BayesianNetwork(net, prior, likelihoods.Categorical())


def read_settings(path: Path) -> dict[str, Setting]:
    """Settings by name, from a TOML file with a table for each.

    Raises:
        TypeError: Unknown or missing options.
    """
    return {name: Setting(**table) for name, table in tomllib.loads(path.read_text(encoding="utf-8")).items()}


@dataclass(frozen=True, eq=False)
class Images:
    """What is fitted, judged by, and told from other images.

    Attributes:
        train: To fit: all 60,000 to test, all but the validation images to choose.
        val: To watch while fitting; None to test.
        judged: To judge by.
        others: Images of another kind, (N, 1, 28, 28); none to choose.
    """

    train: bq.Dataset
    val: bq.Dataset | None
    judged: bq.Dataset
    others: torch.Tensor | None

    @classmethod
    def load(cls, part: Part) -> "Images":
        """MNIST beside Fashion-MNIST, its pixels as the paper scales them."""
        split = bq.datasets.load("mnist")
        if part == "val":
            train, val = _scaled(split.train), _scaled(split.val)
            return cls(train, val, val, None)
        others = None if split.ood is None else split.ood.x * PIXEL_SCALE
        return cls(_scaled(split.refit), None, _scaled(split.test), others)


def _scaled(images: bq.Dataset) -> bq.Dataset:
    return bq.Dataset(images.x * PIXEL_SCALE, images.y)


def fit(setting: Setting, images: Images, seed: int, checkpoint: Path, callbacks: Sequence[Callback]) -> bq.Posterior:
    """Fit the method, from the checkpoint where it is there."""
    options: dict[str, Any] = {}
    if setting.method == "variational":
        options["guide"] = partial(variational.mean_field, initial_scale=setting.initial_scale)
        options["scale_rate"] = setting.scale_rate
    if setting.method in ("ensemble", "microcanonical"):
        options["num_members"] = setting.num_members
    if setting.method == "microcanonical":
        options |= {"num_warmup": setting.num_warmup, "num_samples": setting.num_kept, "thinning": setting.thinning}
    if setting.method == "ivon":
        options |= {"memory": setting.memory, "num_draws": setting.num_draws}
    return METHODS[setting.method](
        setting.model(derive_seed(seed, 0)),
        images.train,
        num_epochs=setting.num_epochs,
        batch_size=setting.batch_size,
        learning_rate=setting.learning_rate,
        validation=images.val,
        seed=derive_seed(seed, 1),
        progress=False,
        callbacks=callbacks,
        checkpoint=checkpoint,
        **options,
    )


def measures(setting: Setting, posterior: bq.Posterior, images: Images, seed: int) -> dict[str, Any]:
    """Of the images to judge by; how well others are told from them; and what the fit itself tells."""
    draws = setting.num_samples if setting.method in ("dropout", "variational", "ivon") else None
    predictive = posterior.predict(images.judged.x, num_samples=draws, seed=derive_seed(seed, 2))
    found = {
        "error": 1 - float(accuracy(predictive, images.judged.y)),
        "negative_log_likelihood": float(negative_log_likelihood(predictive, images.judged.y)),
        "expected_calibration_error": float(expected_calibration_error(predictive, images.judged.y)),
        "median_scale": None,
    }
    if isinstance(posterior, variational.VariationalPosterior):
        found["median_scale"] = float(posterior.scale.median())
    if images.others is not None:
        others = posterior.predict(images.others, num_samples=draws, seed=derive_seed(seed, 3))
        is_other = torch.arange(len(images.judged) + len(images.others)) >= len(images.judged)
        for name in ("total", "epistemic"):
            scores = torch.cat([getattr(predictive, name), getattr(others, name)])
            found[f"auroc_{name}"] = float(auroc(scores, is_other))
    fits = [] if isinstance(posterior, microcanonical.MicrocanonicalPosterior) else [posterior]
    return {**found, "curve": [_losses(one) for one in getattr(posterior, "members", fits)]}


def _losses(posterior: Any) -> dict[str, list[float]]:
    """Over the epochs, from the first, also where a fit was stopped and went on."""
    return {"loss": list(posterior.history.loss), "validation_loss": list(posterior.history.validation_loss)}
