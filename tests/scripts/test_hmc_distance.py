"""Distance from HMC: a line for the chains and for each method, and that a second call adds none."""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import bayesuq as bq
from bayesuq.inference import hmc, map_estimate
from scripts import hmc_collapsed, hmc_distance
from scripts.hmc_distance import COLLAPSED, NUTS, main
from scripts.hmc_problems import problem
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
    options = argparse.Namespace(
        count=1, reference=NUTS, methods=["MAP"], out=folder / "lines.jsonl", work=folder / "chains"
    )
    main(["curve"], options)
    assert [line["method"] for line in Records(options.out).read()] == [NUTS, "MAP"]
    options.methods = list(methods)
    main(["curve"], options)
    lines = {line["method"]: line for line in Records(options.out).read()}
    assert list(lines) == [NUTS, *methods]
    assert lines[NUTS]["worst_r_hat"] > 0.9
    assert lines[NUTS]["least_ess"] > 0
    for name in methods:
        line = lines[name]
        assert 0 < line["total_variation"] <= 1
        assert line["wasserstein"] > 0
        lost = line["negative_log_likelihood"] - lines[NUTS]["negative_log_likelihood"]
        assert line["log_score_lost"] == pytest.approx(lost)
    # Other chains of the same kind are nearer than one network without any uncertainty.
    assert lines["NUTS again"]["total_variation"] < lines["MAP"]["total_variation"]
    content = options.out.read_bytes()
    main(["curve"], options)
    assert options.out.read_bytes() == content


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_chains_without_the_last_layer_are_a_reference_of_their_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short: dict[str, Any] = {"num_chains": 4, "num_warmup": 20, "num_samples": 20}
    again = partial(hmc_collapsed.fit, **short)
    monkeypatch.setattr(hmc_collapsed, "MOST_STEPS", 16)
    monkeypatch.setattr(hmc_distance, "COLLAPSED_CHAINS", short)
    monkeypatch.setattr(hmc_distance, "LEFT_OUT_DRAWS", {"curve": 4})
    monkeypatch.setattr(hmc_distance, "METHODS", {"MAP": partial(map_estimate.fit, num_epochs=20), "again": again})
    options = argparse.Namespace(count=1, methods=["MAP", "again"], out=folder / "lines.jsonl", work=folder / "chains")
    Records(options.out).append({"data": "curve", "split": 0, "method": "MAP"})  # beside the chains of NUTS
    options.reference = COLLAPSED
    main(["curve"], options)
    lines = {line["method"]: line for line in Records(options.out).read()[1:]}
    assert list(lines) == [COLLAPSED, "MAP", "again"]
    assert {line["reference"] for line in lines.values()} == {COLLAPSED}
    whole, kept = (
        hmc_collapsed.fit(problem("curve", 0).model, problem("curve", 0).train, **short),
        bq.load(options.work / "curve-0-collapsed.safetensors"),
    )
    assert torch.equal(kept.draws, whole.draws[:, 4:])
    assert kept.statistics["n_steps"].shape == (4, 16)
    for name in ("halves", "times"):
        assert 0 < lines[COLLAPSED][f"total_variation_between_{name}"] < lines["MAP"]["total_variation"]
    assert lines["again"]["total_variation"] < lines["MAP"]["total_variation"]
    content = options.out.read_bytes()
    main(["curve"], options)
    assert options.out.read_bytes() == content


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_digits_are_held_against_the_chains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short: dict[str, Any] = {"num_chains": 2, "num_warmup": 3, "num_samples": 4, "max_tree_depth": 3}
    again = partial(hmc.fit, chain_method="sequential", **short)
    monkeypatch.setattr(hmc_distance, "CHAINS", {**short, "chain_method": "sequential"})
    monkeypatch.setattr(hmc_distance, "METHODS", {"MAP": partial(map_estimate.fit, num_epochs=2), "NUTS again": again})
    options = argparse.Namespace(
        count=1, reference=NUTS, methods=["NUTS again", "MAP"], out=tmp_path / "lines.jsonl", work=tmp_path
    )
    main(["digits"], options)
    lines = {line["method"]: line for line in Records(options.out).read()}
    assert lines[NUTS]["accuracy"] > 0.5
    assert lines["NUTS again"]["total_variation"] < lines["MAP"]["total_variation"]
    assert lines["NUTS again"]["agreement"] > lines["MAP"]["agreement"]
