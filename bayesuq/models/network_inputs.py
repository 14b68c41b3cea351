"""Inputs as a network takes them: real numbers in its own dtype, or whole numbers.

Whole numbers are places in a table (tokens, categories) or quantities (years, counts), and only the network knows
which. So it is asked: where it runs on whole numbers they stay whole, and else they are cast to its dtype.
"""

import torch
from torch import Tensor

from bayesuq.arrays import as_real
from bayesuq.models.bnn import BayesianNetwork


def takes_whole_numbers(model: BayesianNetwork, x: Tensor) -> bool:
    """Whether a network runs on the first rows, at most two, of whole-number inputs as they are."""
    if x.is_floating_point():
        return False
    try:
        with torch.no_grad():
            return model.forward(model.initial(), x[:2].to(model.device)).is_floating_point()
    except IndexError:  # a table that is too small for them: the network does take whole numbers
        return True
    except (RuntimeError, TypeError, AttributeError):
        return False


def cast_inputs(model: BayesianNetwork, x: Tensor, *, whole: bool | None = None) -> Tensor:
    """Checked inputs on the model's device, as it takes them.

    Args:
        model: Whose device and dtype count.
        x: From `check_inputs`.
        whole: What `takes_whole_numbers` said, where it has been asked.

    Raises:
        ValueError: Values that are not finite in the model's dtype.

    Warns:
        UserWarning: Whole numbers that the model's dtype does not hold.
    """
    if not x.is_floating_point() and (takes_whole_numbers(model, x) if whole is None else whole):
        return x.to(model.device)
    return as_real(x, model.device, model.dtype)


def refusal(x: Tensor, error: Exception) -> ValueError:
    """What to raise where a network fails at the first rows."""
    message = f"The network does not take `x` of shape {tuple(x.shape)}: {error}"
    if x.is_floating_point() and "ndices" in str(error):
        message += ". Places in a table, such as tokens, are whole numbers: pass `x.long()`."
    return ValueError(message)
