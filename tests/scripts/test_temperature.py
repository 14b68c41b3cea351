"""The claims of `scripts/temperature.py`, for one seed."""

import pytest

from scripts import temperature


@pytest.mark.slow
def test_temperature_scaling_calibrates_and_halves_the_error_of_an_overtrained_network(monkeypatch):
    monkeypatch.setattr(temperature, "NUM_SIMULATIONS", 200)  # five of them beyond either end of the floor
    results = temperature.compare(seed=0, num_epochs=120)
    for _, before, after in results.values():
        assert after.is_calibrated
        assert after.loss <= before.loss
        assert after.accuracy == before.accuracy  # one draw: T changes no label
    t, before, after = results["overtrained"]
    assert t > 2
    assert not before.is_calibrated
    assert after.error <= before.error / 2
