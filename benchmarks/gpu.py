"""Everything on a GPU, for the first time that one can be had: what comes out, and how long it takes.

    python -m benchmarks.gpu [--device cuda] [--minutes 7] [--quick] [--out FILE]

Each method fits on the device, predicts there, and is measured there. Where no noise is drawn, what comes out is held
against the same on the CPU; else it must be finite, there, and as good in log score within one nat, but for chains,
which are too short for that. Then steps, predictions of 100 draws and measures are timed beside plain torch's on the
same device, alternately, as medians, and steps as a captured graph beside the same one by one. A line of JSON for each;
the exit code is 1 where a check fails. What the minutes do not suffice for is named at the end.
"""

import argparse
import json
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, TextIO

import torch
from torch import Tensor, nn

from bayesuq.data import Dataset
from bayesuq.evaluation import calibration, scores
from bayesuq.evaluation.report.reporting import evaluate
from bayesuq.inference import (
    dropout,
    ensemble,
    gp,
    hmc,
    ivon,
    laplace,
    map_estimate,
    microcanonical,
    sgmcmc,
    swag,
    variational,
)
from bayesuq.models import gp as processes
from bayesuq.models import likelihoods, networks, priors
from bayesuq.models.bnn import BayesianNetwork
from bayesuq.predictive.categorical import CategoricalPredictive

CHAINS: dict[str, Any] = {"num_samples": 10, "num_warmup": 20, "num_chains": 2}
NUM_ROWS, NUM_FEATURES = 512, 8
METHODS: dict[str, Callable[..., Any]] = {
    "map_estimate": map_estimate.fit,
    "variational": variational.fit,
    "variational, local": partial(variational.fit, estimator="local"),
    "variational, flipout": partial(variational.fit, estimator="flipout"),
    "variational, low rank": partial(variational.fit, guide=variational.low_rank(4)),
    "variational, full rank": partial(variational.fit, guide=variational.full_rank),
    "ivon": ivon.fit,
    "dropout": dropout.fit,
    "swag": partial(swag.fit, rank=5, swa_learning_rate=1e-3),
    "ensemble": partial(ensemble.fit, num_members=3),
    "laplace, diagonal": partial(laplace.fit, structure="diagonal", subset="all"),
    "laplace, kronecker": partial(laplace.fit, structure="kronecker", subset="all"),
    "laplace, full": partial(laplace.fit, structure="full", subset="all"),
}
SAMPLERS: dict[str, Callable[..., Any]] = {
    "sgmcmc": partial(sgmcmc.fit, step_size=1e-4, batch_size=128, **CHAINS),
    "hmc": partial(hmc.fit, kernel="hmc", num_steps=10, **CHAINS),
    "nuts": partial(hmc.fit, num_samples=5, num_warmup=10, num_chains=1),
    "microcanonical": partial(microcanonical.fit, num_members=2, num_samples=10, num_warmup=20, num_epochs=5),
}
PROCESSES: dict[str, dict[str, Any]] = {
    "exact": {"approximation": "exact", "max_iterations": 10, "num_restarts": 1},
    "sparse": {"approximation": "sparse", "num_inducing": 32, "num_epochs": 5},
}
STEPS = ("map_estimate", "variational", "variational, local", "ivon", "dropout")
SAME = ("map_estimate", "laplace, diagonal", "laplace, kronecker", "laplace, full", "exact process")  # draw no noise
CLOSE = 0.02  # of a standardised target, after epochs in float32 whose sums are made in another order
WORST = 1.0  # nats a row


def rows(device: torch.device | str = "cpu") -> Dataset:
    """Noisy sines of the first feature."""
    noise = torch.Generator().manual_seed(0)
    x = torch.randn(NUM_ROWS, NUM_FEATURES, generator=noise)
    y = x[:, :1].sin() + 0.1 * torch.randn(NUM_ROWS, 1, generator=noise)
    return Dataset(x.to(device), y.to(device))


def model(widths: tuple[int, ...] = (32, 32), rate: float = 0.0, num_features: int = NUM_FEATURES) -> BayesianNetwork:
    """A perceptron, the same each time."""
    torch.manual_seed(0)
    net = networks.mlp(num_features, widths, 1, dropout=rate)
    return BayesianNetwork(net, priors.Normal(), likelihoods.Normal(scale=0.2))


def fits(num_epochs: int) -> Iterator[tuple[str, Callable[[torch.device], Any]]]:
    """A fit for each method, which takes the device."""
    for name, fit in METHODS.items():
        options = {"num_epochs": num_epochs, "batch_size": 128, "seed": 0, "progress": False}
        yield name, partial(_fit, fit, 0.1 if name == "dropout" else 0.0, options)
    for name, fit in SAMPLERS.items():
        yield name, partial(_fit, fit, 0.0, {"seed": 0, "progress": False})
    for name, options in PROCESSES.items():
        yield f"{name} process", partial(_process, options)


def _fit(fit: Callable[..., Any], rate: float, options: Mapping[str, Any], device: torch.device) -> Any:
    return fit(model(rate=rate), rows(), device=device, **options)


def _process(options: Mapping[str, Any], device: torch.device) -> Any:
    return gp.fit(processes.GaussianProcess(processes.RBF()), rows(), device=device, seed=0, progress=False, **options)


def check(name: str, fit: Callable[[torch.device], Any], device: torch.device) -> dict[str, Any]:
    """Fit, predict and measure there and here; what is told has `ok`."""
    begin = perf_counter()
    there = measured(fit(device), device)
    seconds = perf_counter() - begin
    here = measured(fit(torch.device("cpu")), torch.device("cpu"))
    apart = float((there["mean"] - here["mean"]).abs().max())
    as_good = name in SAMPLERS or abs(there["log_score"] - here["log_score"]) <= WORST
    ok = there["ok"] and (apart <= CLOSE if name in SAME else as_good)
    told = {"ok": bool(ok), "largest_difference": apart, "log_score": there["log_score"], "on_cpu": here["log_score"]}
    return told | {"seconds": round(seconds, 2)}


def measured(posterior: Any, device: torch.device) -> dict[str, Any]:
    """What it predicts at the rows on the device, and whether that and its measures are there and finite."""
    data = rows(device)
    predictive = posterior.predict(data.x, num_samples=10, seed=0)
    parts = [predictive.mean, predictive.total, predictive.epistemic, scores.crps(predictive, data.y)]
    log_score = scores.negative_log_likelihood(predictive, data.y)
    parts += [log_score, calibration.probability_integral_transform(predictive, data.y)]
    evaluate(predictive, data.y)
    ok = all(part.device.type == device.type and bool(part.isfinite().all()) for part in parts)
    return {"ok": ok, "mean": predictive.mean.cpu(), "log_score": float(log_score)}


def alternately(device: torch.device, rounds: int, steps: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each, all that the device has to do included."""

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():
        step()
    for _ in range(rounds):
        for name, step in steps.items():
            wait()
            begin = perf_counter()
            step()
            wait()
            seconds[name].append(perf_counter() - begin)
    return {name: statistics.median(values) for name, values in seconds.items()}


def plain_steps(net: nn.Module, x: Tensor, y: Tensor, number: int) -> None:
    """So many steps of Adam on squared errors, by plain torch."""
    optimizer = torch.optim.Adam(net.parameters(), fused=x.device.type == "cuda")
    for start in range(number):
        chosen = slice(128 * (start % (len(x) // 128)), 128 * (start % (len(x) // 128) + 1))
        optimizer.zero_grad()
        (net(x[chosen]) - y[chosen]).square().mean().backward()
        optimizer.step()


def timed_steps(device: torch.device, name: str, widths: tuple[int, ...], quick: bool) -> dict[str, Any]:
    """A step beside one of plain torch: fits of two lengths, of which the difference counts."""
    few, many = (1, 3) if quick else (5, 55)
    data, own = rows(device), model(widths, 0.1 if name == "dropout" else 0.0)
    fit = partial(METHODS[name], own, data, batch_size=128, seed=0, progress=False, device=device)
    net, a_pass = own.to(device).net, NUM_ROWS // 128
    found = alternately(
        device,
        1 if quick else 5,
        {
            "few": lambda: fit(num_epochs=few),
            "many": lambda: fit(num_epochs=many),
            "plain": lambda: plain_steps(net, data.x, data.y, a_pass * (many - few)),
        },
    )
    ours, plain = found["many"] - found["few"], found["plain"]
    return {"microseconds": 1e6 * ours / (a_pass * (many - few)), "ratio": ours / plain, "widths": list(widths)}


def captured_steps(device: torch.device, name: str, widths: tuple[int, ...], quick: bool) -> dict[str, Any]:
    """Steps as a captured graph beside steps one by one: the same fit, whether it was one, and how long each takes."""
    few, many = (1, 3) if quick else (5, 55)
    data, own = rows(device), model(widths, 0.1 if name == "dropout" else 0.0)
    fit = partial(METHODS[name], own, data, batch_size=128, seed=0, progress=False, device=device)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        fits = [fit(num_epochs=many, captured=captured) for captured in (True, False)]
    means = [posterior.predict(data.x, num_samples=10, seed=0).mean for posterior in fits]
    apart = float((means[0] - means[1]).abs().max())
    why = [str(warning.message) for warning in told if "not as a captured graph" in str(warning.message)]
    steps = {
        f"{captured} {number}": partial(fit, num_epochs=number, captured=captured)
        for captured in (True, False)
        for number in (few, many)
    }
    found = alternately(device, 1 if quick else 5, steps)
    seconds = {captured: found[f"{captured} {many}"] - found[f"{captured} {few}"] for captured in (True, False)}
    return {
        "ok": apart <= CLOSE and (not why or device.type != "cuda"),
        "largest_difference": apart,
        "not_captured": why,
        "microseconds": 1e6 * seconds[True] / (NUM_ROWS // 128 * (many - few)),
        "ratio_to_one_by_one": seconds[True] / seconds[False],
        "widths": list(widths),
    }


def timed_prediction(device: torch.device, num_rows: int, quick: bool) -> dict[str, Any]:
    """100 draws by mean field beside 100 passes."""
    number = 5 if quick else 100
    posterior = variational.fit(model((400, 400)), rows(), num_epochs=1, seed=0, progress=False, device=device)
    net, x = model((400, 400)).to(device).net, torch.randn(num_rows, NUM_FEATURES, device=device)

    def passes() -> None:
        with torch.no_grad():
            for _ in range(number):
                net(x)

    steps = {"ours": lambda: posterior.predict(x, num_samples=number, seed=0), "plain": passes}
    found = alternately(device, 1 if quick else 7, steps)
    return {"milliseconds": 1e3 * found["ours"], "ratio": found["ours"] / found["plain"], "rows": num_rows}


def timed_measures(device: torch.device, quick: bool) -> dict[str, Any]:
    """Of a million rows of ten classes, milliseconds each."""
    number = 2_000 if quick else 1_000_000
    noise = torch.Generator(device).manual_seed(0)
    logits = torch.randn(1, number, 10, device=device, generator=noise)
    labels = torch.randint(10, (number,), device=device, generator=noise)
    predictive = CategoricalPredictive.from_logits(logits)
    steps: dict[str, Callable[[], object]] = {
        each.__name__: partial(each, predictive, labels)
        for each in (
            scores.negative_log_likelihood,
            scores.brier_score,
            scores.accuracy,
            calibration.expected_calibration_error,
        )
    }
    steps["plain negative_log_likelihood"] = lambda: float(nn.functional.cross_entropy(logits[0], labels))
    found = alternately(device, 1 if quick else 5, steps)
    return {name: round(1e3 * seconds, 3) for name, seconds in found.items()}


def jobs(device: torch.device, quick: bool) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """All there is to do, what tells most first."""
    for name, fit in fits(1 if quick else 20):
        yield f"check {name}", partial(check, name, fit, device)
    for widths in ((32, 32), (400, 400)):
        for name in STEPS:
            yield f"step {name} {widths}", partial(timed_steps, device, name, widths, quick)
            yield f"captured {name} {widths}", partial(captured_steps, device, name, widths, quick)
    for num_rows in (100, 1_000, 10_000):
        yield f"predict {num_rows}", partial(timed_prediction, device, num_rows, quick)
    yield "measures", partial(timed_measures, device, quick)


def run(device: torch.device, seconds: float, quick: bool, out: TextIO | None) -> bool:
    """Do the jobs within the time, and say whether nothing failed."""
    begin, failed, left = perf_counter(), [], []
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    tell({"device": name, "torch": str(torch.__version__)}, out)
    for job, work in jobs(device, quick):
        if perf_counter() - begin > seconds:
            left.append(job)
            continue
        try:
            found = work()
        except Exception as error:  # one that fails must not hide the others
            found = {"ok": False, "error": f"{type(error).__name__}: {error}"}
        failed += [job] if not found.get("ok", True) else []
        tell({"job": job, **found}, out)
    tell({"failed": failed, "no_time_for": left, "seconds": round(perf_counter() - begin, 1)}, out)
    return not failed


def tell(line: Mapping[str, Any], out: TextIO | None) -> None:
    """A line of JSON."""
    for stream in (sys.stdout, out):
        if stream is not None:
            print(json.dumps(line), file=stream, flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=7.0)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does the command itself work?")
    parser.add_argument("--out", type=Path, help="file of JSON lines, added to")
    chosen = parser.parse_args()
    if torch.device(chosen.device).type == "cuda" and not torch.cuda.is_available():
        parser.error("There is no CUDA device here; --device cpu --quick tries the command.")
    warnings.simplefilter("ignore")
    file = chosen.out.open("a") if chosen.out else None
    sys.exit(0 if run(torch.device(chosen.device), 60 * chosen.minutes, chosen.quick, file) else 1)
