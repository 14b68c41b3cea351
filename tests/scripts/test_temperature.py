"""The claims of `scripts/temperature.py`, for one seed."""

import pytest

from scripts.temperature import compare


@pytest.mark.slow
def test_temperature_scaling_calibrates_and_halves_the_error_of_an_overtrained_network():
    results = compare(seed=0, num_epochs=200)
    for _, before, after in results.values():
        assert after.is_calibrated
        assert after.loss <= before.loss
        assert after.accuracy == before.accuracy  # one draw: T changes no label
    t, before, after = results["overtrained"]
    assert t > 2
    assert not before.is_calibrated
    assert after.error <= before.error / 2
