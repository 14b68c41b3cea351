"""Gaussians of features, one a class: the Mahalanobis distance under one covariance, and a density under each its own.

With m_c the mean of the features z of class c, n_c its rows, and

    Sigma = 1/N sum_n (z_n - m_{y_n}) (z_n - m_{y_n})^T,

the distance is min_c (z - m_c)^T Sigma^-1 (z - m_c), and relative to the background it has that of one Gaussian of all
rows subtracted. The density is p(z) = sum_c n_c / N N(z; m_c, Sigma_c), whose score is -log p(z).

Both read the features through the root of Sigma^-1, so that neither changes where features are mixed, scaled or moved.
Directions in which no feature varies within the classes, such as units that are always 0, say nothing and are left out.

References:
    Lee, Lee, Lee & Shin 2018, A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial
    Attacks, eq. (1) and (2).
    Ren et al. 2021, A Simple Fix to Mahalanobis Distance for Improving Near-OOD Detection.
    Mukhoti, Kirsch, van Amersfoort, Torr & Gal 2023, Deep Deterministic Uncertainty, algorithm 1.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from bayesuq.inference.features.taken import Features, FeatureScore, check_width

SMALLEST = 1e-12  # of the largest eigenvalue of a correlation matrix; the rounding of float32 features is 4e-15
DEFINITE = 1e-6  # smallest eigenvalue of a class's covariance in units of the shared one that needs no ridge
RIDGE = 1e-3  # what is added where one needs it, in the same units
LARGEST = 2**29  # numbers in the covariances of all classes: 4 GiB in float64


@dataclass(frozen=True, eq=False, kw_only=True)
class Mahalanobis(FeatureScore):
    """The squared Mahalanobis distance to the nearest class, without unit.

    Attributes:
        means: Of the classes, (C, D), float64.
        root: W with Sigma^-1 = W W^T, (D, R), R being the directions that vary.
        background_mean: Of all rows, (D,); None where the distance is not relative.
        background_root: As `root`, of the covariance of all rows.

    Example:
        >>> taken = Features([[-1.0], [1.0], [9.0], [11.0]], labels=[0, 0, 1, 1])
        >>> Mahalanobis.of(taken)(Features([[0.0], [3.0]]))
        tensor([0., 9.], dtype=torch.float64)
    """

    means: Tensor
    root: Tensor
    background_mean: Tensor | None = None
    background_root: Tensor | None = None

    @classmethod
    def of(cls, taken: Features, *, relative: bool = False) -> Self:
        """Fit it.

        Args:
            taken: Features with labels.
            relative: Whether the distance from all rows is subtracted.

        Raises:
            ValueError: No labels; features that do not vary within any class.
        """
        labels = taken.needed("labels", "A Mahalanobis distance")
        means, _ = class_means(taken, labels)
        root = root_of_inverse(scatter(taken, means[labels.unique(return_inverse=True)[1]]))
        if not relative:
            return cls(means=means, root=root)
        centre = sum_of(taken) / len(taken)
        background = root_of_inverse(scatter(taken, centre.expand(len(taken), -1)))
        return cls(means=means, root=root, background_mean=centre, background_root=background)

    def __call__(self, taken: Features) -> Tensor:
        """The distance to the nearest class, (N,), float64."""
        check_width(taken, len(self.root))
        return torch.cat([self._distance(block) for block in taken.blocks()])

    def _distance(self, z: Tensor) -> Tensor:
        centre = self.means.mean(dim=0)
        mine, theirs = (z - centre) @ self.root, (self.means - centre) @ self.root
        nearest = (mine.square().sum(1, keepdim=True) - 2 * mine @ theirs.T + theirs.square().sum(1)).amin(dim=1)
        if self.background_mean is None or self.background_root is None:
            return nearest.clamp(min=0)
        return nearest - ((z - self.background_mean) @ self.background_root).square().sum(dim=1)


@dataclass(frozen=True, eq=False, kw_only=True)
class ClassDensity(FeatureScore):
    """Minus the log density of features under a Gaussian for each class, in nats (DDU).

    Attributes:
        root: Of the shared inverse covariance, (D, R); the classes' own are of the features times this.
        means: Of the classes, (C, R), float64.
        factors: L_c with Sigma_c = L_c L_c^T, (C, R, R).
        log_shares: Of the classes among the rows, (C,), nats.
        log_volume: log |det W|, of the directions that vary, nats.
    """

    root: Tensor
    means: Tensor
    factors: Tensor
    log_shares: Tensor
    log_volume: float

    @classmethod
    def of(cls, taken: Features, *, ridge: float | None = None) -> Self:
        """Fit it: C R^2 numbers of memory, in float64.

        Args:
            taken: Features with labels.
            ridge: A share of the shared covariance that is added to that of each class. None adds nothing where each
                class's is definite, and .001 where one is not, as for a class of fewer rows than features.

        Raises:
            ValueError: No labels; more than 4 GiB of covariances; covariances that are singular at a ridge that was
                given.
        """
        labels = taken.needed("labels", "A density of classes")
        means, counts = class_means(taken, labels)
        place = labels.unique(return_inverse=True)[1]
        root = root_of_inverse(scatter(taken, means[place]))
        if len(means) * root.shape[1] ** 2 > LARGEST:
            raise ValueError(
                f"The covariances of {len(means)} classes over {root.shape[1]} features take more than 4 GiB. Take "
                "'mahalanobis', which has one for all."
            )
        covariances = torch.zeros(len(means), root.shape[1], root.shape[1], dtype=root.dtype, device=root.device)
        first = 0
        for block in taken.blocks():
            own = place[first : first + len(block)]
            centred = (block - means[own]) @ root
            for label in own.unique():
                some = centred[own == label]
                covariances[label] += some.T @ some / counts[label]
            first += len(block)
        factors = _factored(covariances, ridge)
        signs = torch.linalg.svdvals(root)
        return cls(
            root=root,
            means=means @ root,
            factors=factors,
            log_shares=(counts / counts.sum()).log(),
            log_volume=float(signs.log().sum()),
        )

    def __call__(self, taken: Features) -> Tensor:
        """Minus log p(z), (N,), float64, in nats; of the directions that vary."""
        check_width(taken, len(self.root))
        return torch.cat([self._score(block @ self.root) for block in taken.blocks()])

    def _score(self, z: Tensor) -> Tensor:
        constant = 0.5 * z.shape[1] * math.log(2 * math.pi) - self.log_volume
        terms = []
        for mean, factor, log_share in zip(self.means, self.factors, self.log_shares, strict=True):
            white = torch.linalg.solve_triangular(factor, (z - mean).T, upper=False)
            terms.append(log_share - 0.5 * white.square().sum(dim=0) - factor.diagonal().log().sum())
        return constant - torch.stack(terms).logsumexp(dim=0)


def sum_of(taken: Features) -> Tensor:
    """Over rows, (D,), float64."""
    return torch.stack([block.sum(dim=0) for block in taken.blocks()]).sum(dim=0)


def class_means(taken: Features, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of each class that is there, (C, D), and its rows, (C,), float64, in the order of the labels.

    Raises:
        ValueError: Labels below 0, which are of no class.
    """
    classes, place, counts = labels.unique(return_inverse=True, return_counts=True)
    if classes[0] < 0:
        raise ValueError(f"`labels` must be classes from 0 on; got {int(classes[0])}. Leave void rows out.")
    sums = torch.zeros(len(counts), taken.features.shape[1], dtype=torch.float64, device=labels.device)
    first = 0
    for block in taken.blocks():
        sums.index_add_(0, place[first : first + len(block)], block)
        first += len(block)
    return sums / counts.unsqueeze(1), counts.double()


def scatter(taken: Features, centres: Tensor) -> Tensor:
    """1/N sum (z - centre) (z - centre)^T, (D, D), float64.

    Args:
        taken: The features.
        centres: Of each row, (N, D), float64.
    """
    width = taken.features.shape[1]
    total, first = torch.zeros(width, width, dtype=torch.float64, device=centres.device), 0
    for block in taken.blocks():
        centred = block - centres[first : first + len(block)]
        total += centred.T @ centred
        first += len(block)
    return total / len(taken)


def root_of_inverse(covariance: Tensor) -> Tensor:
    """W, (D, R), with W^T Sigma W = 1 over the R directions that vary.

    Columns are put to unit variance before, so that their units do not decide which directions are none.

    Raises:
        ValueError: Nothing varies.
    """
    scale = covariance.diagonal().sqrt()
    varies = scale > 0
    if not varies.any():
        raise ValueError("The features must vary within classes; all rows of each class have the same.")
    inverse = torch.where(varies, 1 / scale, 0.0)
    values, vectors = torch.linalg.eigh(covariance * inverse * inverse.unsqueeze(1))
    kept = values > SMALLEST * values[-1]
    return inverse.unsqueeze(1) * vectors[:, kept] * values[kept] ** -0.5


def _factored(covariances: Tensor, ridge: float | None) -> Tensor:
    """Their Cholesky factors, (C, R, R)."""
    unit = torch.eye(covariances.shape[1], dtype=covariances.dtype, device=covariances.device)
    if ridge is None:
        smallest = min(float(torch.linalg.eigvalsh(one)[0]) for one in covariances)
        ridge = 0.0 if smallest > DEFINITE else RIDGE
    factors, failed = torch.linalg.cholesky_ex(covariances + ridge * unit)
    if bool((failed > 0).any()):
        raise ValueError(
            f"The covariances of {int((failed > 0).sum())} of {len(failed)} classes are singular at ridge={ridge}: "
            "they have too few rows. Pass a larger `ridge`, or None."
        )
    return factors
