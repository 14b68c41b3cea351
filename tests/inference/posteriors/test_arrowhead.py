"""Arrowhead matrices and their normal laws against the same ones written out in full."""

import pytest
import torch

from bayesuq.inference.posteriors.arrowhead import Arrowhead, CoupledError, Pattern, Root

SIZE = 9
PATTERNS = {
    "dense": Pattern.dense(SIZE),
    "arrow": Pattern.around((torch.tensor([[0, 5], [7, 2], [3, 8]]),), SIZE, is_whole=True),
    "two groups": Pattern.around((torch.tensor([[4], [1]]), torch.tensor([[0, 8, 2]])), SIZE, is_whole=True),
    "no head": Pattern.around((torch.tensor([[0, 5, 2], [7, 1, 3]]), torch.tensor([[4, 6, 8]])), SIZE, is_whole=True),
    "blocks of more": Pattern.around((torch.tensor([[0, 5, 2], [7, 1, 3], [4, 6, 8]]),), SIZE, is_whole=False),
    "diagonal of more": Pattern.around((torch.arange(SIZE).unsqueeze(1),), SIZE, is_whole=False),
}


def kept(pattern: Pattern) -> torch.Tensor:
    """Which numbers of a matrix a pattern has."""
    found = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    found[pattern.head], found[:, pattern.head] = True, True
    for places in pattern.blocks:
        for block in places:
            found[block.unsqueeze(1), block] = True
    return found


@pytest.mark.parametrize("name", PATTERNS)
def test_matrix_and_law_are_those_written_out(name: str) -> None:
    pattern = PATTERNS[name]
    torch.manual_seed(1)
    root = torch.randn(SIZE, SIZE, dtype=torch.float64)
    whole = root @ root.T + SIZE * torch.eye(SIZE).double()
    dense = torch.where(kept(pattern), whole, 0.0)
    given = dense if pattern.is_whole else whole
    calls: list[int] = []

    def products(vectors: torch.Tensor) -> torch.Tensor:
        calls.append(len(vectors))
        return vectors @ given

    matrix = Arrowhead.measured(products, pattern)
    if pattern.is_whole and pattern.blocks:
        assert sum(calls) == len(pattern.head) + sum(places.shape[1] for places in pattern.blocks) + 2
    vectors = torch.randn(4, SIZE, dtype=torch.float64)
    torch.testing.assert_close(matrix.times(vectors), vectors @ dense)
    assert matrix.square(vectors[0]) == pytest.approx(float(vectors[0] @ dense @ vectors[0]))
    law = matrix.root
    assert law is not None
    lines = law.coloured(torch.eye(SIZE).double())
    torch.testing.assert_close(lines.T @ lines, dense.inverse())
    torch.testing.assert_close(law.whitened(law.coloured(vectors)), vectors)
    torch.testing.assert_close(law.solved(vectors[1]), torch.linalg.solve(dense, vectors[1]))
    assert law.log_volume == pytest.approx(-0.5 * float(dense.logdet()))
    again = Root.of_tensors(law.factor, law.tensors())
    torch.testing.assert_close(again.coloured(vectors), law.coloured(vectors), rtol=0, atol=0)


def test_a_matrix_with_other_numbers_than_its_pattern_is_none() -> None:
    torch.manual_seed(2)
    pattern = PATTERNS["arrow"]
    dense = torch.where(kept(pattern), 1.0, 0.0).double() + 20 * torch.eye(SIZE).double()
    dense[5, 7] = dense[7, 5] = 0.1
    with pytest.raises(CoupledError):
        Arrowhead.measured(lambda vectors: vectors @ dense, pattern)


@pytest.mark.parametrize("name", ["dense", "arrow", "no head"])
def test_a_matrix_that_is_not_positive_has_no_law_and_says_where(name: str) -> None:
    pattern = PATTERNS[name]
    dense = torch.eye(SIZE).double()
    dense[2, 2] = -1.0
    matrix = Arrowhead.measured(lambda vectors: vectors @ dense, pattern)
    assert matrix.root is None
    assert [matrix.is_flat(slice(k, k + 2)) for k in (0, 2, 4)] == [False, True, False]
