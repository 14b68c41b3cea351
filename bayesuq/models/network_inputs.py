"""Inputs as a network takes them: real numbers in its own dtype, or whole numbers.

Whole numbers are places in a table (tokens, categories) or quantities (years, counts), and only the network knows
which. So it is asked: where it runs on whole numbers they stay whole, and else they are cast to its dtype.
"""

import torch
from torch import Tensor

from bayesuq.inputs import Inputs, described, in_dtype, named_leaves
from bayesuq.models.bnn import BayesianNetwork


def takes_whole_numbers(model: BayesianNetwork, x: Inputs) -> bool:
    """Whether a network runs on the first rows, at most two, of inputs whose whole numbers stay as they are."""
    if all(leaf.is_floating_point() for leaf in named_leaves(x).values()):
        return False
    few = in_dtype(x[:2], model.device, model.dtype, whole=True)
    try:
        with torch.no_grad():
            return model.forward(model.initial(), few).is_floating_point()
    except IndexError:  # a table that is too small for them: the network does take whole numbers
        return True
    except (RuntimeError, TypeError, AttributeError):
        return False


def cast_inputs(model: BayesianNetwork, x: Inputs, *, whole: bool | None = None) -> Inputs:
    """Checked inputs on the model's device, as it takes them.

    Args:
        model: Whose device and dtype count.
        x: From `bayesuq.inputs.checked`.
        whole: What `takes_whole_numbers` said, where it has been asked.

    Raises:
        ValueError: Values that are not finite in the model's dtype; noise scales that the likelihood needs and that
            are missing, or the reverse.

    Warns:
        UserWarning: Whole numbers that the model's dtype does not hold.
    """
    model.check_scale(x)
    whole = takes_whole_numbers(model, x) if whole is None else whole
    return in_dtype(x, model.device, model.dtype, whole=whole)


def refusal(x: Inputs, error: Exception) -> ValueError:
    """What to raise where a network fails at the first rows."""
    message = f"The network does not take {described(x)}: {error}"
    if isinstance(x, Tensor) and x.is_floating_point() and "ndices" in str(error):
        message += ". Places in a table, such as tokens, are whole numbers: pass `x.long()`."
    if isinstance(x, Tensor) and x.ndim > 2 and " channels, but got " in str(error):
        message += (
            ". Images are (N, channels, ...): where channels come last pass `x.movedim(-1, 1)`, where there is none "
            "`x.unsqueeze(1)`."
        )
    if isinstance(error, AssertionError):  # of a program of torch.export
        message += (
            ". A network runs on any number of rows here: export it with `dynamic_shapes`, in which the first "
            "dimension is torch.export.Dim.DYNAMIC."
        )
    return ValueError(message)
