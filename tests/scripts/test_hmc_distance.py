"""Distance from HMC: a line for the chains and for each method, and that a second call adds none."""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bayesuq.inference import hmc, map_estimate
from scripts import hmc_distance
from scripts.hmc_distance import REFERENCE, main
from scripts.recording import Records
from tests.scripts.test_uci import folder

__all__ = ["folder"]  # a fixture


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_method_is_held_against_the_chains(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short: dict[str, Any] = {"num_chains": 2, "num_warmup": 12, "num_samples": 15, "max_tree_depth": 4}
    again = partial(hmc.fit, chain_method="sequential", **short)
    methods = {"MAP": partial(map_estimate.fit, num_epochs=20), "NUTS again": again}
    monkeypatch.setattr(hmc_distance, "CHAINS", {**short, "chain_method": "sequential"})
    monkeypatch.setattr(hmc_distance, "METHODS", methods)
    options = argparse.Namespace(count=1, methods=["MAP"], out=folder / "lines.jsonl", work=folder / "chains")
    main(["curve"], options)
    assert [line["method"] for line in Records(options.out).read()] == [REFERENCE, "MAP"]
    options.methods = list(methods)
    main(["curve"], options)
    lines = {line["method"]: line for line in Records(options.out).read()}
    assert list(lines) == [REFERENCE, *methods]
    assert lines[REFERENCE]["worst_r_hat"] > 0.9
    assert lines[REFERENCE]["least_ess"] > 0
    for name in methods:
        line = lines[name]
        assert 0 < line["total_variation"] <= 1
        assert line["wasserstein"] > 0
        lost = line["negative_log_likelihood"] - lines[REFERENCE]["negative_log_likelihood"]
        assert line["log_score_lost"] == pytest.approx(lost)
    # Other chains of the same kind are nearer than one network without any uncertainty.
    assert lines["NUTS again"]["total_variation"] < lines["MAP"]["total_variation"]
    content = options.out.read_bytes()
    main(["curve"], options)
    assert options.out.read_bytes() == content


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_digits_are_held_against_the_chains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short: dict[str, Any] = {"num_chains": 2, "num_warmup": 3, "num_samples": 4, "max_tree_depth": 3}
    again = partial(hmc.fit, chain_method="sequential", **short)
    monkeypatch.setattr(hmc_distance, "CHAINS", {**short, "chain_method": "sequential"})
    monkeypatch.setattr(hmc_distance, "METHODS", {"MAP": partial(map_estimate.fit, num_epochs=2), "NUTS again": again})
    options = argparse.Namespace(count=1, methods=["NUTS again", "MAP"], out=tmp_path / "lines.jsonl", work=tmp_path)
    main(["digits"], options)
    lines = {line["method"]: line for line in Records(options.out).read()}
    assert lines[REFERENCE]["accuracy"] > 0.5
    assert lines["NUTS again"]["total_variation"] < lines["MAP"]["total_variation"]
    assert lines["NUTS again"]["agreement"] > lines["MAP"]["agreement"]
