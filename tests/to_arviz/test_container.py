"""The container of draws: what goes in comes out, by plain ArviZ and plain xarray. Runs under ArviZ 1.x, too."""

import subprocess
import sys
from pathlib import Path

import arviz
import numpy as np
import pytest
import xarray

from bayesuq.to_arviz.container import Variable, build, group, group_names, native


def draws(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def container():
    groups = {
        "posterior": {
            "1.weight": Variable.of_draws(draws(12, 2, 3), 4, ("1.weight_dim_0", "1.weight_dim_1")),
            "mu": Variable.of_draws(draws(12, 5), 4, ("point",)),
        },
        "sample_stats": {"diverging": Variable(draws(4, 3) > 1, ("chain", "draw"))},
        "observed_data": {"y": Variable(draws(5, seed=1), ("point",))},
        "prior": {},
    }
    return build(groups, attributes={"method": "Test", "seed": 2**62, "independent_draws": 0})


def test_draws_stand_chain_by_chain():
    values = draws(12, 5)
    variable = Variable.of_draws(values, 4, ("point",))
    assert variable.dims == ("chain", "draw", "point")
    np.testing.assert_array_equal(variable.values[2, 1], values[2 * 3 + 1])


def test_a_file_opens_with_plain_arviz_and_plain_xarray(tmp_path: Path):
    container().to_netcdf(str(tmp_path / "draws.nc"))
    by_arviz = arviz.from_netcdf(str(tmp_path / "draws.nc"))
    assert type(by_arviz) is type(container())
    with xarray.open_datatree(tmp_path / "draws.nc") as by_xarray:
        for read in (by_arviz, by_xarray):
            np.testing.assert_array_equal(read["posterior"]["1.weight"].values, draws(12, 2, 3).reshape(4, 3, 2, 3))
            assert read["posterior"]["mu"].dims == ("chain", "draw", "point")
            np.testing.assert_array_equal(read["sample_stats"]["diverging"].values, draws(4, 3) > 1)
            assert read["sample_stats"]["diverging"].dtype == bool
            attributes = read["posterior"].attrs
            assert attributes["method"] == "Test"
            assert attributes["seed"] == 2**62
            assert attributes["independent_draws"] == 0
            assert attributes["inference_library"] == "bayesuq"
            assert {"inference_library_version", "created_at"} <= set(attributes)


def test_groups_are_reached_in_every_kind_of_container(tmp_path: Path):
    container().to_netcdf(str(tmp_path / "draws.nc"))
    with xarray.open_datatree(tmp_path / "draws.nc") as tree:
        for data in (container(), tree, native(tree)):
            assert set(group_names(data)) == {"posterior", "sample_stats", "observed_data"}  # none for an empty one
            assert isinstance(group(data, "posterior"), xarray.Dataset)
            assert set(group(data, "posterior").data_vars) == {"1.weight", "mu"}
            assert not group(data, "predictions").data_vars
    with pytest.raises(TypeError, match=r"what `posterior\.to_arviz` gives; got int"):
        group(3, "posterior")


def test_arviz_summarises_it():
    table = arviz.summary(container(), var_names=["mu"], round_to="none")
    np.testing.assert_allclose(table["mean"].to_numpy(dtype=float), draws(12, 5).mean(axis=0), rtol=1e-12)


def test_a_variable_that_is_named_as_a_dimension_is_refused():
    with pytest.raises(ValueError, match="posterior, draw names both a variable and a dimension"):
        build({"posterior": {"draw": Variable.of_draws(draws(4), 1, ())}}, attributes={})


def test_the_container_needs_no_torch():
    code = (
        "import sys, bayesuq.to_arviz.container; sys.exit(1 if {'torch', 'arviz', 'xarray'} & set(sys.modules) else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
