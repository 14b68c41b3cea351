"""Curvature of large maps from random combinations of their outputs, in a time linear in pixels.

A map of T pixels has K = C T outputs, and a layer's derivatives in all of them take K backward passes over T positions
each. But Lambda has blocks, one for each pixel, and with v any vector of independent random signs

    E[ (R v) (R v)^T ] = R R^T = Lambda,        R = diag(R_1, ..., R_T)

so that some backward passes from combinations R v give all sums over outputs that the structures need, without bias.
With M of them in all, over rows, each entry of a diagonal has a relative standard error of sqrt(2 / M) or less, and a
Kronecker factor, which is a mean over positions too, much less.

Reference:
    Hutchinson 1990, A Stochastic Estimator of the Trace of the Influence Matrix; Martens & Grosse 2015, section 5, who
    draw one combination a row.
"""

import math

import torch
from torch import Tensor

from bayesuq.models.likelihoods.base import Likelihood
from bayesuq.randomness import generator

EXACT_OUTPUTS = 1024  # of a row, up to which a map's derivatives are taken one by one
COMBINATIONS = 256  # over all rows, at least: a relative standard error of 9 % or less
TOGETHER = 8  # of a row at a time
SIGNS = 1990  # names these random numbers among all


def num_groups(num_data: int) -> int:
    """Groups of `TOGETHER` combinations that each row of the data needs."""
    return math.ceil(COMBINATIONS / (TOGETHER * num_data))


def as_rows(maps: Tensor) -> Tensor:
    """(N, C, H, W) as (N H W, C)."""
    return maps.movedim(1, -1).flatten(0, -2)


def random_columns(likelihood: Likelihood, f: Tensor, first: int, group: int) -> Tensor:
    """R v / sqrt(M) for M = `TOGETHER` vectors of signs, (N, K, M), float64: their squares sum to Lambda, on average.

    Args:
        likelihood: At the values of its unknowns.
        f: Network outputs, (N, C, ...).
        first: Number of the first row among all: the signs depend on a row's number and the group, not on the chunks.
        group: Number of the group.
    """
    num_rows, num_channels, num_pixels = len(f), f.shape[1], f[0, 0].numel()
    signs = torch.stack([_signs(num_pixels * num_channels, first + row, group) for row in range(num_rows)])
    signs = signs.view(-1, num_channels, TOGETHER).to(f.device) / math.sqrt(TOGETHER)
    columns = likelihood.fisher_root(as_rows(f)) @ signs
    return columns.view(num_rows, num_pixels, num_channels, TOGETHER).transpose(1, 2).flatten(1, 2)


def _signs(number: int, row: int, group: int) -> Tensor:
    """(.., M), -1 or 1, float64."""
    noise = generator(SIGNS, row, group)
    return 2.0 * torch.randint(2, (number, TOGETHER), generator=noise).double() - 1.0
