"""Numbers that are a function of their key, whatever else runs, and global states that stay as they were."""

import random
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import numpy as np
import pytest
import torch

from bayesuq.randomness import derive_seed, generator, isolated, resolve_seed


def draw(*key):
    return torch.randn(8, generator=generator(*key)).tolist()


def test_the_same_key_gives_the_same_numbers():
    assert draw(3, 1, 4) == draw(3, 1, 4)
    assert draw(np.int64(3), np.int32(1), 4) == draw(3, 1, 4)


def test_different_keys_give_different_numbers():
    keys = [
        (0,),
        (5,),
        (5, 0),
        (5, 0, 0),
        (5, 0, 0, 0, 0, 0),
        (5, 0, 1),
        (5, 1, 0),
        (0, 5),
        (5, 2**32),  # as a list of 32-bit words this is (5, 0, 1)
        (5, 2**32, 0),
        (2**32 + 5,),
        (2**63 - 1,),
        (2**63 - 1, 2**64 - 1),
    ]
    assert len({derive_seed(*key) for key in keys}) == len(keys)
    assert len({tuple(draw(*key)) for key in keys}) == len(keys)


def test_seeds_are_those_of_numpys_seed_sequence():
    numbers = [0, 1, 7, 2**32 - 1, 2**32, 2**63 + 5, 2**64 - 1, 2**100 + 3]
    for key in [(a,) for a in [*numbers, 2**130 + 1]] + [
        (a, b, 3, c) for a in numbers for b in numbers for c in (0, 9)
    ]:
        words = [word for part in key[1:] for word in divmod(part, 2**32)]
        sequence = np.random.SeedSequence(key[0], spawn_key=words)
        assert derive_seed(*key) == int(sequence.generate_state(1, np.uint64)[0])


def test_neighbouring_keys_give_uncorrelated_numbers():
    n = 4000
    first = [torch.randn(n, generator=generator(0, k)) for k in range(6)]
    for one, other in combinations(first, 2):
        assert abs(float((one * other).mean())) < 4.5 / n**0.5  # standard error of the mean of a product is n^-1/2


def test_seeds_fill_64_bits_evenly():
    seeds = [derive_seed(0, k) for k in range(4000)]
    assert len(set(seeds)) == 4000
    for bit in range(64):
        share = sum(seed >> bit & 1 for seed in seeds) / 4000
        assert abs(share - 0.5) < 4.5 * 0.5 / 4000**0.5


def test_a_key_is_made_of_whole_numbers_from_zero():
    for key in [(-1,), (0, -1), (0, 1, -(2**40))]:
        with pytest.raises(ValueError, match="non-negative"):
            derive_seed(*key)
    for key in [(0.5,), (0, 1.0), ("0",), (None,)]:
        with pytest.raises(TypeError):
            derive_seed(*key)


def test_numbers_do_not_depend_on_thread_or_order():
    keys = [(seed, block) for seed in range(10) for block in range(10)]
    alone = [draw(*key) for key in keys]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda key: draw(*key), reversed(keys)))
    assert together == alone[::-1]


def test_generators_leave_every_global_state_as_found():
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002 - the state to protect
    draw(1, 2)
    derive_seed(3)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    np.testing.assert_array_equal(np.random.get_state()[1], states[2][1])  # noqa: NPY002


def test_isolated_code_is_a_function_of_its_key_and_leaves_the_state_as_found():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with isolated(7, 1):
        first = torch.randn(5)
    assert torch.equal(torch.get_rng_state(), before)
    torch.randn(3)
    with isolated(7, 1):
        again = torch.randn(5)
    with isolated(7, 2):
        other = torch.randn(5)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_isolated_restores_the_state_after_an_error_and_when_nested():
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError), isolated(1):
        torch.randn(2).view(3)
    assert torch.equal(torch.get_rng_state(), before)
    with isolated(1):
        torch.randn(2)
        with isolated(2):
            torch.randn(5)
        nested = torch.randn(2)
    with isolated(1):
        torch.randn(2)
        plain = torch.randn(2)
    assert torch.equal(nested, plain)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_isolated_covers_the_device_too():
    before = torch.get_rng_state(), torch.cuda.get_rng_state()
    with isolated(7):
        first = torch.randn(5), torch.randn(5, device="cuda")
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.equal(torch.cuda.get_rng_state(), before[1])
    torch.randn(3, device="cuda")
    with isolated(7):
        again = torch.randn(5), torch.randn(5, device="cuda")
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


def test_a_given_seed_is_kept_and_draws_nothing():
    before = torch.get_rng_state()
    assert resolve_seed(5) == 5
    assert resolve_seed(np.int64(2**62)) == 2**62
    assert torch.equal(torch.get_rng_state(), before)


def test_no_seed_takes_exactly_one_draw_from_torch_and_nothing_else():
    states = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    torch.manual_seed(3)
    first = resolve_seed(None)
    after = torch.get_rng_state()
    second = resolve_seed(None)
    torch.manual_seed(3)
    assert first == int(torch.randint(0, 2**63 - 1, (), dtype=torch.int64))
    assert torch.equal(torch.get_rng_state(), after)
    assert first != second
    assert first >= 0
    assert random.getstate() == states[0]
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002


@pytest.mark.parametrize(
    ("seed", "error"), [(-1, ValueError), (1.0, TypeError), (True, TypeError), ("1", TypeError), ([1], TypeError)]
)
def test_a_seed_is_a_whole_number_from_zero(seed, error):
    with pytest.raises(error, match="`seed` must be"):
        resolve_seed(seed)
