"""Names that have moved: the old ones still work, with a DeprecationWarning, until version 0.3.

Each old module stands for one that looks its names up where they live now. What a face no longer hands on, because it
is not meant to be called, is asked for at the module that has it.
"""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Modules that kept their names, by the folder that they are in now, one deeper than before.
FOLDERS = {
    "datasets": "archive fetching shapes sources",
    "evaluation.diagnostics": "convergence fit_quality leave_one_out predictive_checks quantities worst_entries",
    "evaluation.report": "comparison detection_tasks error_ranks measure score_table standard_measures tables tally",
    "evaluation.segmentation": "image_counts overlap patches pixel_counts",
    "evaluation.standard_errors": "bootstrap intervals sums weighted",
    "evaluation.streaming": "ranking states",
    "inference.chains": "hamiltonian nuts potential",
    "inference.confidence": "true_class",
    "inference.gp": "conjugate_gradients dirichlet expectations inducing marginal_likelihood",
    "inference.joint": "constant perceptrons",
    "inference.laplace": "curvature evidence",
    "inference.posteriors": "importance packing prediction saved tables units wrapping",
    "inference.sgmcmc": "langevin",
    "inference.swag": "iterates",
    "inference.temperature": "scaling",
    "inference.training": (
        "checkpoint convergence first_batches history identity minibatches model_contents stability trend"
    ),
    "inference.variational": (
        "activation_noise correlated elbo guide_posterior guided_program guides program_posterior tempering"
    ),
    "predictive": "broadcasts covariances mixture probability_sums quantiles recalibrated",
}
# From each old module to where its names are now, both below `bayesuq`.
HOMES = {
    f"{folder.rpartition('.')[0]}.{name}".lstrip("."): f"{folder}.{name}"
    for folder, names in FOLDERS.items()
    for name in names.split()
} | {
    "evaluation.segmentation_report": "evaluation.segmentation.reporting",
    "export": "to_arviz.groups",
    "inference.adaptation": "inference.chains.warmup",
    "inference.chain_methods": "inference.chains.processes",
    "inference.chain_run": "inference.chains.run",
    "inference.chain_starts": "inference.chains.starts",
    "inference.collapsed_gp": "inference.gp.collapsed",
    "inference.curvature_factors": "inference.laplace.factors",
    "inference.curvature_layers": "inference.laplace.linearisation",
    "inference.curvature_sketches": "inference.laplace.sketches",
    "inference.curvature_structures": "inference.laplace.structures",
    "inference.data_parallel": "inference.training.workers",
    "inference.evaluations": "inference.training.lbfgs",
    "inference.exact_gp": "inference.gp.exact",
    "inference.from_samples": "inference.hmc.from_samples",
    "inference.gp_algebra": "inference.gp.algebra",
    "inference.gp_convergence": "inference.gp.convergence",
    "inference.gp_data": "inference.gp.data",
    "inference.gp_hyperparameters": "inference.gp.hyperparameters",
    "inference.gp_posterior": "inference.gp.posterior",
    "inference.gp_sampling": "inference.gp.sampling",
    "inference.gp_saved": "inference.gp.saving",
    "inference.gp_search": "inference.gp.search",
    "inference.laplace_posterior": "inference.laplace.posterior",
    "inference.mean_field": "inference.variational.factorised",
    "inference.masks": "inference.joint.masks models.layers",
    "inference.minibatch_potential": "inference.sgmcmc.potential",
    "inference.network_inputs": "models.network_inputs",
    "inference.optimize": "inference.training.loop",
    "inference.prior_draws": "inference.posteriors.prior",
    "inference.programs": "inference.joint.programs models.program",
    "inference.sampled_gp": "inference.gp.sampled",
    "inference.sgmcmc_run": "inference.sgmcmc.run",
    "inference.sparse_gp": "inference.gp.sparse",
    "inference.sparse_gp_posterior": "inference.gp.sparse_posterior",
    "inference.stacked_dropout": "inference.ensemble.stacked_dropout",
    "inference.stacked_mean_field": "inference.variational.together",
    "inference.tensorboard": "inference.callbacks.tensorboard",
    "inference.training_mode": "models.training_mode",
    "inference.training_network": "inference.joint.network models.layers",
    "inference.vectorised": "inference.training.stacking inference.ensemble.together",
    "inference.weights": "inference.joint.layout inference.posteriors.weights",
    "inference_data": "to_arviz.container",
    "to_arviz.optional": "optional",
}

# What a face handed on of each module below it.
LEFT = {
    "datasets.fetching": "FetchError",
    "datasets.named": "IGNORED relative_path",
    "evaluation.diagnostics.pareto": "pareto_k",
    "evaluation.plots.classification": "risk_coverage_curves",
    "evaluation.plots.detection": "score_differences",
    "evaluation.plots.draws": "energy_plot forest_plot pair_plot rank_plot",
    "evaluation.plots.images": "class_probabilities most_uncertain",
    "evaluation.plots.parts": "uncertainty_by_size",
    "evaluation.plots.shift": "shift_curves",
    "evaluation.report.comparison": "Comparison compare_measures",
    "evaluation.report.detection_tasks": "Detection standard_scores",
    "evaluation.report.measure": "Measure",
    "evaluation.report.score_table": "ScoreTable",
    "evaluation.segmentation.failures": "image_uncertainties",
    "evaluation.segmentation.masks": "near_foreground",
    "evaluation.segmentation.measures": "pixel_accuracy pointwise_dice rank_correlation",
    "evaluation.segmentation.overlap": "overlap_sweep",
    "evaluation.segmentation.patches": "patch_sweep",
    "evaluation.segmentation.raters": "rater_entropy",
    "evaluation.segmentation.reporting": "SegmentationResult",
    "evaluation.standard_errors.closed_form": (
        "by_derivative of_aurc of_auroc of_average_precision of_expected_calibration_error of_gap_difference of_mean "
        "of_root_mean"
    ),
    "inference.automatic.posterior": "AutomaticPosterior Candidate",
    "inference.features.energy": "Energy",
    "inference.features.fitting": "FeatureScores",
    "inference.features.gaussians": "ClassDensity Mahalanobis",
    "inference.features.heads": "Head",
    "inference.features.subspace": "VirtualLogit",
    "inference.features.taken": "FeatureScore",
    "inference.gp.sampled": "SampledGpPosterior",
    "inference.laplace.posterior": "SampledLaplacePosterior",
    "inference.microcanonical.sampling": "Samples",
    "inference.temperature.outside": "TemperatureScaling",
    "inference.variational.correlated": "CorrelatedPosterior",
    "inference.variational.guide_posterior": "GuidePosterior",
    "inference.variational.program_posterior": "ProgramPosterior",
    "models.gp.combined": "Product Sum",
    "models.gp.hyperparameters": "Hyperparameter",
    "models.likelihoods.base": "Unknown",
    "predictive.maps": "RealMaps",
    "predictive.recalibrated": "RecalibratedPredictive",
    "tables.encoding": "Columns Notes Target",
    "tables.table": "Table",
}
# Modules that it handed on whole.
MODULES = (
    "datasets.archive datasets.fetching datasets.named datasets.shapes datasets.sources evaluation.binning "
    "evaluation.diagnostics.quantities evaluation.diagnostics.worst_entries evaluation.standard_errors.closed_form "
    "evaluation.standard_errors.weighted evaluation.streaming.ranking"
)
# Where each is, by the name that the face had it by; both below `bayesuq`. Without a colon it is a module.
INTERNAL = {module: module for module in MODULES.split()}
INTERNAL |= {
    f"{module.rpartition('.')[0]}.{name}": f"{module}:{name}" for module in LEFT for name in LEFT[module].split()
}
INTERNAL["RecalibratedPredictive"] = "predictive.recalibrated:RecalibratedPredictive"


class OldNames(MetaPathFinder, Loader):
    """Finds the modules of `HOMES`, after every other finder has not."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None = None,  # noqa: ARG002
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """A module that stands for those that have taken its place; None for any other name."""
        package, _, name = fullname.partition(".")
        return ModuleSpec(fullname, self) if package == "bayesuq" and name in HOMES else None

    def create_module(self, spec: ModuleSpec) -> None:
        """An ordinary one."""

    def exec_module(self, module: ModuleType) -> None:
        """Let it look its names up in its new homes."""
        homes = [f"bayesuq.{home}" for home in HOMES[module.__name__.partition(".")[2]].split()]
        warnings.warn(
            f"{module.__name__} has moved to {' and '.join(homes)}; its old name goes with version 0.3.",
            DeprecationWarning,
            stacklevel=2,
        )

        def get(name: str) -> Any:
            for home in homes:
                if not name.startswith("__") and hasattr(import_module(home), name):
                    return getattr(import_module(home), name)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        module.__dict__["__getattr__"] = get


def warn_of_internal(name: str, home: str) -> None:
    """Warn where a face is asked for a name of `INTERNAL`, at the line that asks."""
    warnings.warn(f"{name} is handed on no longer from version 0.3; it is in {home}.", DeprecationWarning, stacklevel=3)


def is_import_statement(depth: int) -> bool:
    """Whether the caller that many frames up is Python, which asks a package before it imports a module of its own."""
    return sys._getframe(depth + 1).f_code.co_filename.startswith("<frozen importlib")


def install() -> None:
    """Let the old names import."""
    if not any(isinstance(finder, OldNames) for finder in sys.meta_path):
        sys.meta_path.append(OldNames())
