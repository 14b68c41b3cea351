"""The methods of inference, a row each: read by loading, by the command line, by its glossary, and by the tests.

A method of your own that is to come with bayesuq needs its file or folder, a row here, its tests and its page.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["network", "members", "chains", "process", "wrapper"]


@dataclass(frozen=True)
class Method:
    """A method of inference.

    Attributes:
        name: Of its module or folder, below `bayesuq.inference`; its `fit` is there.
        kind: "network" is fitted to a model by optimising; "members" fits several of another method; "chains" samples;
            "process" takes a Gaussian process in the network's place; "wrapper" is fitted to a posterior that is there.
        posteriors: Where each class that its `fit` returns is defined, below `bayesuq.inference`, by name. A saved file
            can name these classes and nothing else.
        sentence: What it is, for somebody who reads a report.
        command: Its name on the command line; None where it is not there.
    """

    name: str
    kind: Kind
    posteriors: Mapping[str, str]
    sentence: str
    command: str | None


METHODS = (
    Method(
        "map_estimate",
        "network",
        {"MapPosterior": "posteriors.network_mode", "ProgramMode": "posteriors.program_mode"},
        "The one most probable network: the baseline, without any uncertainty about its weights.",
        "map",
    ),
    Method(
        "variational",
        "network",
        {
            "VariationalPosterior": "variational.factorised",
            "CorrelatedPosterior": "variational.correlated",
            "GuidePosterior": "variational.guide_posterior",
            "ProgramPosterior": "variational.program_posterior",
        },
        "A Gaussian for every weight (Bayes by Backprop); each draw is a network from it.",
        "variational",
    ),
    Method(
        "ivon",
        "network",
        {"VariationalPosterior": "variational.factorised"},
        "A Gaussian for every weight, as wide as the curvature that its own draws show (variational online Newton).",
        "ivon",
    ),
    Method(
        "dropout",
        "network",
        {"DropoutPosterior": "dropout"},
        "One network whose units are dropped at random, also when it predicts; each draw drops others.",
        "dropout",
    ),
    Method(
        "laplace",
        "network",
        {
            "LaplacePosterior": "laplace.posterior",
            "SampledLaplacePosterior": "laplace.posterior",
            "ProgramLaplace": "laplace.program",
        },
        "A Gaussian around the most probable network, as wide as the curvature says; the network made linear there.",
        "laplace",
    ),
    Method(
        "swag",
        "network",
        {"SwagPosterior": "swag.fitting"},
        "A Gaussian with the moments of where stochastic gradient descent wanders around a trained network.",
        "swag",
    ),
    Method(
        "sgmcmc",
        "chains",
        {"SgmcmcPosterior": "sgmcmc.fitting"},
        "Chains of weights that read a minibatch a step (SGHMC); each draw is a network that a chain was at.",
        "sgmcmc",
    ),
    Method(
        "hmc",
        "chains",
        {"HmcPosterior": "hmc.posterior", "ProgramChains": "posteriors.program"},
        "Chains of weights by NUTS, over all rows: draws from the posterior itself where the chains agree.",
        "hmc",
    ),
    Method(
        "microcanonical",
        "chains",
        {"MicrocanonicalPosterior": "microcanonical.fitting"},
        "Chains of weights that begin at the networks of an ensemble and refuse no step (MILE), over all rows.",
        "microcanonical",
    ),
    Method(
        "gp",
        "process",
        {
            "ExactGpPosterior": "gp.exact",
            "SparseGpPosterior": "gp.sparse_posterior",
            "SampledGpPosterior": "gp.sampled",
        },
        "A Gaussian process in place of the network: exact for numbers of few rows, else by inducing points.",
        "gp",
    ),
    Method(
        "ensemble",
        "members",
        {"EnsemblePosterior": "posteriors.ensemble", "ProgramEnsemble": "ensemble.program"},
        "Networks trained from different starts; their disagreement is the uncertainty.",
        "ensemble",
    ),
    Method(
        "temperature",
        "wrapper",
        {"TemperaturePosterior": "temperature.fitting"},
        "The logits of each draw divided by one number, the temperature, that fits held-out rows.",
        "temperature",
    ),
    Method(
        "confidence",
        "wrapper",
        {"ConfidencePosterior": "confidence.fitting"},
        "Beside it a second network, which has learned how probable the first makes the true class (ConfidNet).",
        "confidence",
    ),
    Method(
        "local_temperature",
        "wrapper",
        {"LocalTemperaturePosterior": "local_temperature"},
        "The logits of each pixel divided by a number of its own that fits held-out images.",
        None,
    ),
    Method(
        "quantile_calibration",
        "wrapper",
        {"QuantileCalibratedPosterior": "quantile_calibration"},
        "The quantiles of each prediction moved to where held-out rows say that they are.",
        "quantile_calibration",
    ),
)
AROUND = {
    "UnitsPosterior": "posteriors.units",
    "TablePosterior": "posteriors.tables",
    "StackedPosterior": "stacking",
    "AutomaticPosterior": "automatic.posterior",
    "OutlierPosterior": "automatic.outliers",
    "FixedDraws": "posteriors.weights",
}  # classes that no method's `fit` returns, around or made of posteriors of any
HOMES = {posterior: home for method in METHODS for posterior, home in method.posteriors.items()} | AROUND
BY_COMMAND = {method.command: method for method in METHODS if method.command is not None}


def commands(*kinds: Kind) -> tuple[str, ...]:
    """The names on the command line, of these kinds or else of all."""
    return tuple(name for name, method in BY_COMMAND.items() if not kinds or method.kind in kinds)
