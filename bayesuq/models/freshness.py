"""Whether weights look as their layers' own initialisation makes them, or trained.

Nothing in a network says that it was trained. But `reset_parameters` says what fresh weights are, and some networks
that it was run on show it: the network's own weights are held against theirs. Entries that every reset sets to one
value must have it. The others must have one distribution with those of the resets, by the two-sample test of Kolmogorov
and Smirnov and by the number of entries beyond all that the resets drew, for each parameter and for all together in
units of their spread. The false-alarm rate is `LEVEL` a test. A few steps of training, or some dozens of weights, go
unnoticed: a name that is given is all but certain, and none given says nothing.

Reference:
    Hodges 1958, The significance probability of the Smirnov two-sample test.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bayesuq.models.rules import trainable_parameters

LEVEL = 1e-8
MOST_ENTRIES = 2_000  # of a parameter and network that are looked at, evenly spread


def not_fresh(net: nn.Module, resets: Sequence[nn.Module]) -> list[str]:
    """Names of the trainable parameters of `net` that are not as fresh ones; all where only their whole shows it.

    Args:
        net: The network to judge, on any device.
        resets: Copies of it, initialised anew by one seed each.
    """
    others = [trainable_parameters(reset) for reset in resets]
    names, units = [], []
    for name, parameter in trainable_parameters(net).items():
        own, fresh = _thinned(parameter), torch.stack([_thinned(other[name]) for other in others])
        if fresh.numel() == 1:
            continue  # whose spread is not known
        spread = fresh.std(correction=0)
        if (len(fresh) > 1 and (fresh == fresh[0]).all()) or spread == 0:
            if not torch.equal(own, fresh[0]):
                names.append(name)
            continue
        if len(own) > 1 and (own == own[0]).all():  # as an adapter starts, and no random numbers do
            names.append(name)
            continue
        centre = fresh.mean()
        units.append(((own - centre) / spread, ((fresh - centre) / spread).flatten()))
        if _differ(*units[-1]):
            names.append(name)
    if not names and units and _differ(*(torch.cat(parts) for parts in zip(*units, strict=True))):
        return list(trainable_parameters(net))
    return names


def _thinned(parameter: nn.Parameter) -> Tensor:
    """Some entries, float64, on the CPU."""
    flat = parameter.detach().flatten()
    return flat[:: max(1, math.ceil(len(flat) / MOST_ENTRIES))].double().cpu()


def _differ(own: Tensor, fresh: Tensor) -> bool:
    """Whether two samples are of two distributions, at `LEVEL`."""
    n, m = len(own), len(fresh)
    beyond = int(((own > fresh.max()) | (own < fresh.min())).sum())
    # The outermost k of n + m exchangeable numbers are all of the n with probability (n / (n + m))^k or less, and there
    # are k + 1 ways to share k between both ends.
    if beyond * math.log((n + m) / n) - math.log(beyond + 1) > -math.log(LEVEL / 2):
        return True
    points = torch.cat([own, fresh])
    own, fresh = own.sort().values, fresh.sort().values
    shares = (torch.searchsorted(sample, points, right=True) / len(sample) for sample in (own, fresh))
    distance = float((next(shares) - next(shares)).abs().max())
    return distance > math.sqrt(-0.5 * math.log(LEVEL / 2) * (n + m) / (n * m))
