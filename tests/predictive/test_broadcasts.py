import torch

from bayesuq.predictive import broadcasts
from bayesuq.predictive.gaussian import GaussianPredictive
from bayesuq.predictive.mixture import MixturePredictive


def held(predictive: GaussianPredictive) -> int:
    """Bytes of all its tensors' own memory."""
    tensors = [value for value in vars(predictive).values() if isinstance(value, torch.Tensor)]
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


def test_the_core_of_a_broadcast_tensor_is_what_was_broadcast() -> None:
    value = torch.arange(3.0)
    for whole in (value.view(3, 1, 1).expand(3, 5, 2), value.expand(4, 5, 3), torch.tensor(2.0).expand(4, 5, 2)):
        small = broadcasts.core(whole, 3)
        assert small.numel() in (1, 3)
        assert torch.equal(small.expand(whole.shape), whole)


def test_joined_cores_are_the_core_of_the_joined() -> None:
    shapes = [(1, 1, 1), (2, 1, 1), (1, 4, 1), (2, 4, 3), (1, 1, 3)]
    for dim in (0, 1):
        for number, one in enumerate(shapes):
            for other in shapes:
                cores = [torch.full(one, 1.0), torch.full(other, 2.0 if number else 1.0)]
                whole = torch.cat([core.expand(2, 4, 3) for core in cores], dim)
                found = broadcasts.joined(cores, [2, 2] if dim == 0 else [4, 4], dim)
                assert torch.equal(found.expand(whole.shape), whole)
                assert found.numel() <= whole.numel()


def test_a_network_of_one_noise_scale_takes_four_bytes_a_draw_and_row() -> None:
    parts = [
        GaussianPredictive.mixture(
            GaussianPredictive(mean=torch.full((1, 100, 1), float(draw)), noise_variance=0.1 + draw)
            for draw in range(8)
        )
        for _ in range(5)
    ]
    whole = GaussianPredictive.concatenate(parts)
    assert whole.component_means.shape == whole.noise_variance.shape == (8, 500, 1)
    assert held(whole) <= 4 * 8 * 500 + 200
    assert held(whole.to("cpu")) <= 4 * 8 * 500 + 200
    assert held(whole.rescale(torch.tensor(1.0), torch.tensor(2.0))) <= 8 * 8 * 500 + 200
    torch.testing.assert_close(whole.aleatoric, torch.full((500, 1), 3.6, dtype=torch.float64))


def test_a_mixture_of_other_laws_holds_what_is_constant_once() -> None:
    def part(draw: int) -> MixturePredictive:
        law = torch.distributions.StudentT(torch.tensor(4.0), torch.randn(1, 100, 1), torch.tensor(0.1 + draw))
        return MixturePredictive(law)

    rows = [MixturePredictive.mixture(part(draw) for draw in range(8)) for _ in range(5)]
    whole = MixturePredictive.concatenate(rows)
    parameters = [value for name, value in vars(whole.components).items() if name in ("df", "loc", "scale")]
    assert all(value.shape == (8, 500, 1) for value in parameters)
    assert sum(value.untyped_storage().nbytes() for value in parameters) <= 8 * 8 * 500 + 200
    expected = torch.cat([each.log_prob(torch.zeros(100)) for each in rows])
    torch.testing.assert_close(whole.log_prob(torch.zeros(500)), expected)


def test_laws_that_are_alike_at_all_points_stay_at_all_of_them() -> None:
    one, other = (
        MixturePredictive(torch.distributions.Poisson(torch.full((1, 1, 1), rate).expand(2, 3, 1)))
        for rate in (1.0, 3.0)
    )
    both, further = MixturePredictive.mixture([one, other]), MixturePredictive.concatenate([one, other])
    assert torch.equal(both.mean, torch.full((3, 1), 2.0).double())
    assert torch.equal(further.mean.squeeze(1), torch.tensor([1.0, 1, 1, 3, 3, 3]).double())
    assert torch.equal(MixturePredictive.mixture([one, one]).mean, one.mean)
