"""Curvature matrices with few blocks, and the normal laws that they are the precisions of.

        | A    B_1^T  B_2^T  .. |        A: the head's, (G, G)
    H = | B_1  D_1              |        D_i: of block i, (b, b), which no other block is coupled to
        | B_2         D_2       |        B_i: what couples block i to the head, (b, G)

    S = A - sum_i B_i^T D_i^-1 B_i,      log |H| = log |S| + sum_i log |D_i|
    head ~ N(0, S^-1),      block i given the head ~ N(-D_i^-1 B_i head, D_i^-1)

A dense matrix is a head alone, a block-diagonal one has no head. Numbers that are stored grow with G^2 + n b (b + G).

Reference:
    Golub & Van Loan 2013, Matrix Computations, section 4.3; Rue & Held 2005, Gaussian Markov Random Fields, chapter 2.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

Products = Callable[[Tensor], Tensor]  # rows (K, P) times a symmetric matrix, (K, P), float64, on the CPU
CLOSE = 1e-3  # relatively, of a product's terms: what float32 leaves of zeros
AT_A_TIME = 64  # columns that are held whole where blocks alone are kept


@dataclass(frozen=True, eq=False)
class Pattern:
    """Which numbers of a vector make the head, and which the blocks.

    Attributes:
        head: Their places, (G,), int64.
        blocks: Groups of blocks of one size: their places, (n, b) each, int64.
        is_whole: Whether all that stands outside is zero, or else left out.
    """

    head: Tensor
    blocks: tuple[Tensor, ...] = ()
    is_whole: bool = True

    @classmethod
    def dense(cls, size: int) -> "Pattern":
        """All numbers in the head."""
        return cls(torch.arange(size))

    @classmethod
    def around(cls, blocks: tuple[Tensor, ...], size: int, *, is_whole: bool) -> "Pattern":
        """What is in no block is the head, in its order."""
        is_head = torch.ones(size, dtype=torch.bool)
        for places in blocks:
            is_head[places] = False
        return cls(is_head.nonzero().squeeze(1), blocks, is_whole)

    @property
    def size(self) -> int:
        """P, numbers of the vector."""
        return len(self.head) + sum(places.numel() for places in self.blocks)

    @property
    def num_stored(self) -> int:
        """Numbers of a matrix that has this pattern."""
        head = len(self.head)
        return head**2 + sum(places.numel() * (places.shape[1] + head) for places in self.blocks)


class CoupledError(ValueError):
    """A matrix has other numbers than its pattern."""


@dataclass(frozen=True, eq=False)
class Arrowhead:
    """A symmetric matrix of a pattern, in float64.

    Attributes:
        pattern: Of its P lines.
        head: A, (G, G).
        cross: B_i of each group, (n, b, G).
        blocks: D_i of each group, (n, b, b).
    """

    pattern: Pattern
    head: Tensor
    cross: tuple[Tensor, ...] = ()
    blocks: tuple[Tensor, ...] = ()

    @classmethod
    def measured(cls, products: Products, pattern: Pattern) -> "Arrowhead":
        """The matrix behind a product with it: G + b products where nothing is left out, else one a number.

        Raises:
            CoupledError: A pattern that is to be whole, and is not.
        """
        places = pattern.head
        lines = products(_units(places.unsqueeze(1), pattern.size))
        head = lines[:, places]
        cross = tuple(lines[:, group].movedim(0, -1) for group in pattern.blocks)
        each = _together if pattern.is_whole else _one_by_one
        blocks = tuple(each(products, pattern.size, group) for group in pattern.blocks)
        found = cls(pattern, _symmetric(head), cross, tuple(map(_symmetric, blocks)))
        if pattern.is_whole and pattern.blocks:
            found._check(products)
        return found

    def times(self, vectors: Tensor) -> Tensor:
        """Rows (K, P) times this matrix."""
        found = torch.zeros_like(vectors)
        head = vectors[:, self.pattern.head]
        of_head = head @ self.head
        for places, cross, block in zip(self.pattern.blocks, self.cross, self.blocks, strict=True):
            own = vectors[:, places]
            found[:, places] = torch.einsum("nbc,knc->knb", block, own) + torch.einsum("nbg,kg->knb", cross, head)
            of_head = of_head + torch.einsum("nbg,knb->kg", cross, own)
        found[:, self.pattern.head] = of_head
        return found

    def square(self, vector: Tensor) -> float:
        """v^T H v of a vector (P,)."""
        return float(self.times(vector.double().unsqueeze(0))[0] @ vector.double())

    @cached_property
    def root(self) -> "Root | None":
        """A root of the inverse; None of a matrix that is not positive definite."""
        head, blocks = self.head, []
        for places, cross, block in zip(self.pattern.blocks, self.cross, self.blocks, strict=True):
            covariance, factor = _inverse(block)
            if covariance is None or factor is None:
                return None
            slope = -covariance @ cross
            head = head + torch.einsum("nbg,nbh->gh", cross, slope)
            blocks.append(RootBlocks(places, factor, slope))
        _, factor = _inverse(_symmetric(head))
        return None if factor is None else Root(factor, tuple(blocks))

    def is_flat(self, where: slice) -> bool:
        """Whether the matrix is not positive along some of these lines."""
        places = torch.arange(self.pattern.size)[where]
        block = self.times(_units(places.unsqueeze(1), self.pattern.size))[:, places]
        return not bool(block.isfinite().all()) or float(torch.linalg.eigvalsh(block).min()) <= 0

    def _check(self, products: Products) -> None:
        """Hold products with two vectors without zeros against what is stored."""
        shares = torch.rand(2, self.pattern.size, generator=torch.Generator().manual_seed(0))
        signs = torch.stack([torch.ones(self.pattern.size), (shares[1] - 0.5).sign()])
        vectors = ((0.5 + shares) * signs).double()
        gap = (products(vectors) - self.times(vectors)).abs()
        sizes = Arrowhead(self.pattern, self.head.abs(), *(tuple(map(torch.abs, g)) for g in (self.cross, self.blocks)))
        is_apart = gap > CLOSE * sizes.times(vectors.abs())
        if any(bool(is_apart[:, places].any()) for places in self.pattern.blocks):
            raise CoupledError("Blocks are coupled to each other.")


@dataclass(frozen=True, eq=False)
class RootBlocks:
    """Of a group of blocks: where they stand, and their law given the head.

    Attributes:
        places: In the vector, (n, b).
        factor: Lower triangular F_i with D_i^-1 = F_i F_i^T, (n, b, b).
        slope: -D_i^-1 B_i, (n, b, G).
    """

    places: Tensor
    factor: Tensor
    slope: Tensor


@dataclass(frozen=True, eq=False)
class Root:
    """M with H^-1 = M M^T: white vectors in, draws of the normal law around 0 out.

    Attributes:
        factor: Lower triangular L with S^-1 = L L^T, (G, G).
        blocks: The groups of blocks.
    """

    factor: Tensor
    blocks: tuple[RootBlocks, ...] = ()

    @classmethod
    def of_tensors(cls, factor: Tensor, tensors: Mapping[str, Tensor]) -> "Root":
        """The inverse of `tensors`."""
        groups = range(len(tensors) // 3)
        return cls(factor, tuple(RootBlocks(*(tensors[f"{k}.{name}"] for name in BLOCK_NAMES)) for k in groups))

    def tensors(self) -> dict[str, Tensor]:
        """All but `factor`, by name."""
        return {f"{k}.{name}": getattr(group, name) for k, group in enumerate(self.blocks) for name in BLOCK_NAMES}

    @property
    def size(self) -> int:
        """P, numbers of the vector."""
        return len(self.factor) + sum(group.places.numel() for group in self.blocks)

    @cached_property
    def head(self) -> Tensor:
        """Places of the head, (G,)."""
        return Pattern.around(tuple(group.places.cpu() for group in self.blocks), self.size, is_whole=True).head

    @property
    def log_volume(self) -> float:
        """log |M|: minus half the log determinant of H."""
        return float(sum(factor.diagonal(dim1=-2, dim2=-1).log().sum() for factor in self._factors()))

    def coloured(self, white: Tensor) -> Tensor:
        """M w of rows (K, P)."""
        found = torch.empty_like(white)
        head = white[:, self.head] @ self.factor.T
        found[:, self.head] = head
        for group in self.blocks:
            own = torch.einsum("nbc,knc->knb", group.factor, white[:, group.places])
            found[:, group.places] = own + torch.einsum("nbg,kg->knb", group.slope, head)
        return found

    def whitened(self, steps: Tensor) -> Tensor:
        """M^-1 v of rows (K, P)."""
        found = torch.empty_like(steps)
        head = steps[:, self.head]
        found[:, self.head] = torch.linalg.solve_triangular(self.factor, head.T, upper=False).T
        for group in self.blocks:
            own = steps[:, group.places] - torch.einsum("nbg,kg->knb", group.slope, head)
            found[:, group.places] = torch.linalg.solve_triangular(
                group.factor, own.unsqueeze(-1), upper=False
            ).squeeze(-1)
        return found

    def solved(self, vector: Tensor) -> Tensor:
        """H^-1 v of a vector (P,)."""
        return self.coloured(self._pulled(vector.unsqueeze(0)))[0]

    def _pulled(self, vectors: Tensor) -> Tensor:
        """M^T v of rows (K, P)."""
        found = torch.empty_like(vectors)
        head = vectors[:, self.head]
        for group in self.blocks:
            own = vectors[:, group.places]
            head = head + torch.einsum("nbg,knb->kg", group.slope, own)
            found[:, group.places] = torch.einsum("ncb,knc->knb", group.factor, own)
        found[:, self.head] = head @ self.factor
        return found

    def _factors(self) -> Iterator[Tensor]:
        yield self.factor
        yield from (group.factor for group in self.blocks)


BLOCK_NAMES = ("places", "factor", "slope")


def _units(places: Tensor, size: int) -> Tensor:
    """Rows that are 1 at places (K, n), else 0."""
    return torch.zeros(len(places), size, dtype=torch.float64).scatter_(1, places, 1.0)


def _together(products: Products, size: int, places: Tensor) -> Tensor:
    """Blocks that nothing couples to each other, (n, b, b): one product gives a column of all of them."""
    columns = products(_units(places.T, size))
    return columns[:, places].permute(1, 2, 0)


def _one_by_one(products: Products, size: int, places: Tensor) -> Tensor:
    """Blocks of a matrix that has more, (n, b, b), some columns at a time."""
    width = places.shape[1]
    lines = []
    for some in torch.arange(places.numel()).split(AT_A_TIME):
        columns = products(_units(places.reshape(-1, 1)[some], size))
        lines.append(columns.gather(1, places[some // width]))
    return torch.cat(lines).view(*places.shape, width)


def _symmetric(matrices: Tensor) -> Tensor:
    return 0.5 * (matrices + matrices.mT)


def _inverse(matrices: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Of positive definite matrices: their inverses, and lower triangular factors of these; else nothing."""
    factor, info = torch.linalg.cholesky_ex(matrices)
    if bool((info != 0).any()) or not bool(factor.isfinite().all()):
        return None, None
    inverse = torch.cholesky_inverse(factor)
    root, info = torch.linalg.cholesky_ex(_symmetric(inverse))
    return (None, None) if bool((info != 0).any()) or not bool(root.isfinite().all()) else (inverse, root)
