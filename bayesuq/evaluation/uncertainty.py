"""How uncertain each predicted label is, as one number a point. Larger is more uncertain, everywhere.

The entropies split: predictive entropy = expected entropy + mutual information, in nats,

    H[E_s p_s] = E_s H[p_s] + I(y; theta),

that is total = aleatoric + epistemic. Maximum probability, margin and variation ratio are turned round (1 - ...), so
that they too grow with uncertainty. Real targets have variances instead, which are the attributes `total`, `aleatoric`
and `epistemic` of a GaussianPredictive.

Reference: Smith and Gal, "Understanding measures of uncertainty for adversarial example detection", UAI 2018.
"""

from torch import Tensor

from bayesuq.evaluation.kinds import check_categorical
from bayesuq.predictive import CategoricalPredictive

REMEDY = "For real targets take the variances `predictive.total`, `.aleatoric` and `.epistemic`."


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
    return mean.scatter(1, mean.argmax(dim=1, keepdim=True), 0.0).sum(dim=1)


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
