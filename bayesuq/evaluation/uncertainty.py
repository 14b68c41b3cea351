"""How uncertain each predicted label is, as one number a point. Larger is more uncertain, everywhere.

The entropies split: predictive entropy = expected entropy + mutual information, in nats,

    H[E_s p_s] = E_s H[p_s] + I(y; theta),

that is total = aleatoric + epistemic. Maximum probability, margin and variation ratio are turned round (1 - ...), so
that they too grow with uncertainty. Variances split as well, of real targets and of labels alike, by the law of total
variance, with y a vector of 0 and 1 for a label:

    Var y = E_s Var[y | theta_s] + Var_s E[y | theta_s].

References:
    Smith and Gal, "Understanding measures of uncertainty for adversarial example detection", UAI 2018.
    Kwon, Won, Kim and Paik, "Uncertainty quantification using Bayesian neural networks in classification: application
    to biomedical image segmentation", CSDA 2020, eq. (4), whose traces the variances of a label are.
"""

from torch import Tensor

from bayesuq.evaluation.kinds import check_categorical, check_known
from bayesuq.predictive.base import RealPredictive
from bayesuq.predictive.categorical import CategoricalPredictive

__all__ = [
    "aleatoric_variance",
    "epistemic_variance",
    "expected_entropy",
    "margin",
    "maximum_probability",
    "mutual_information",
    "predictive_entropy",
    "predictive_variance",
    "variation_ratio",
]
__dir__ = __all__.copy

REMEDY = "For real targets take `predictive_variance`, `aleatoric_variance` and `epistemic_variance`."


def maximum_probability(predictive: CategoricalPredictive) -> Tensor:
    """1 - max_k p_k of the mean: the predicted probability that the predicted label is wrong.

    Args:
        predictive: Of labels, at N points.

    Returns:
        Fraction in [0, 1 - 1/C], (N, ...), float64.

    Raises:
        TypeError: Not a CategoricalPredictive.

    Example:
        >>> import torch
        >>> maximum_probability(CategoricalPredictive.from_probs(torch.tensor([[[0.75, 0.25]]])))
        tensor([0.2500], dtype=torch.float64)
    """
    check_categorical(predictive, REMEDY)
    mean = predictive.mean
    # The sum of the others keeps apart points that 1 - max would round to the same 0, so that they can still be ranked.
    return mean.scatter(1, mean.max(dim=1, keepdim=True).indices, 0.0).sum(dim=1)


def margin(predictive: CategoricalPredictive) -> Tensor:
    """1 - (p_1 - p_2), the closeness of the two most probable labels; see `maximum_probability` for the rest.

    Returns:
        Fraction in [0, 1], (N, ...), float64; 1 is a tie.
    """
    check_categorical(predictive, REMEDY)
    second = predictive.mean.topk(2, dim=1).values[:, 1]
    return maximum_probability(predictive) + second  # (1 - p_1) + p_2


def predictive_entropy(predictive: CategoricalPredictive) -> Tensor:
    """Entropy of the mean, H[E_s p_s]: total uncertainty; see `maximum_probability` for the rest.

    Returns:
        Nats, in [0, log C], (N, ...), float64.
    """
    check_categorical(predictive, REMEDY)
    return predictive.total


def expected_entropy(predictive: CategoricalPredictive) -> Tensor:
    """Mean entropy of the draws, E_s H[p_s]: aleatoric uncertainty; see `maximum_probability` for the rest.

    Returns:
        Nats, in [0, log C], (N, ...), float64.
    """
    check_categorical(predictive, REMEDY)
    return predictive.aleatoric


def mutual_information(predictive: CategoricalPredictive) -> Tensor:
    """I(y; theta) = H[E_s p_s] - E_s H[p_s]: epistemic uncertainty (BALD); see `maximum_probability` for the rest.

    From few draws it is biased towards 0: compare only predictives of the same number of draws S.

    Returns:
        Nats, in [0, log min(S, C)], (N, ...), float64.
    """
    check_categorical(predictive, REMEDY)
    return predictive.epistemic


def variation_ratio(predictive: CategoricalPredictive) -> Tensor:
    """1 - the share of draws that vote for the modal label; see `maximum_probability` for the rest.

    Returns:
        Fraction in [0, 1 - 1/C], (N, ...), float64; 0 where all draws predict the same label.
    """
    check_categorical(predictive, REMEDY)
    return 1 - predictive.votes.amax(dim=1).double() / predictive.num_samples


def predictive_variance(predictive: CategoricalPredictive | RealPredictive) -> Tensor:
    """Var y*, total uncertainty; of a label sum_k Var 1[y* = k] = 1 - sum_k p_k^2, the chance that two draws differ.

    Args:
        predictive: Of labels or real targets, at N points.

    Returns:
        Of real targets in units of y squared, (N, D); of labels in [0, 1 - 1/C], (N, ...). float64.

    Raises:
        TypeError: Another kind of predictive.

    Example:
        >>> predictive_variance(CategoricalPredictive.from_probs(torch.tensor([[[0.75, 0.25]]])))  # 2 x .75 x .25
        tensor([0.3750], dtype=torch.float64)
    """
    check_known(predictive)
    return predictive.total if isinstance(predictive, RealPredictive) else _gini(predictive.mean, dim=1)


def aleatoric_variance(predictive: CategoricalPredictive | RealPredictive) -> Tensor:
    """E_s Var[y* | theta_s], what remains when the weights are known; see `predictive_variance` for the rest.

    Raises:
        ValueError: The single draws of a label's predictive were not kept.
    """
    check_known(predictive)
    if isinstance(predictive, RealPredictive):
        return predictive.aleatoric
    return _gini(predictive.samples, dim=2).mean(dim=0)


def epistemic_variance(predictive: CategoricalPredictive | RealPredictive) -> Tensor:
    """Var_s E[y* | theta_s], the disagreement of the draws (ddof 0); see `aleatoric_variance` for the rest."""
    check_known(predictive)
    if isinstance(predictive, RealPredictive):
        return predictive.epistemic
    return predictive.samples.var(dim=0, correction=0).sum(dim=1)


def _gini(probs: Tensor, dim: int) -> Tensor:
    return (probs * (1 - probs)).sum(dim)
