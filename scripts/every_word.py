"""The README's example by every method of `bayesuq.inference`, all at their defaults: what a change of one word gives.

A line of JSON a method: accuracy, NLL and ECE on the test rows, CPU seconds of fit and prediction, and what was warned
of. Where the example needs another line than the word, the error shows it, and the line is taken from there. A fit that
says that it takes hours is not waited for.
"""

import argparse
import importlib
import time
import warnings
from pathlib import Path
from typing import Any

import bayesuq as bq
from bayesuq.inference.catalogue import METHODS, Method
from scripts.recording import Record, Records, versions

OUT = Path(__file__).parents[1] / "docs" / "results" / "every-word.jsonl"
HOURS = "to go"  # what fits say that take long
MEASURES = ("accuracy", "negative_log_likelihood", "expected_calibration_error")


def example() -> bq.models.BayesianNetwork:
    """The README's model."""
    net = bq.models.networks.mlp(64, (100, 100), 9, seed=0)
    return bq.models.BayesianNetwork(
        net, prior=bq.models.priors.Normal(scale=1.0), likelihood=bq.models.likelihoods.Categorical()
    )


def line_of(refusal: str) -> Any:
    """The model that the last line of an error makes, of the README's parts."""
    space: dict[str, Any] = {"bayesuq": bq}
    exec(refusal.splitlines()[-1].strip(), space)
    if "model" in space:
        return space["model"]
    model = example()
    return bq.models.BayesianNetwork(space["net"], prior=model.prior, likelihood=model.likelihood)


def fitted(method: Method, split: Any, mode: Any) -> Any:
    """A posterior by one word, or by the line that the word's error shows."""
    fit = importlib.import_module(f"bayesuq.inference.{method.name}").fit
    if method.kind == "wrapper":
        return fit(mode, split.val) if "temperature" in method.name else fit(mode, split.val, seed=0)
    try:
        return fit(example(), split.train, seed=0)
    except (TypeError, ValueError) as error:
        return fit(line_of(str(error)), split.train, seed=0)


def measured(posterior: Any, split: Any) -> dict[str, float]:
    """What the report says of the test rows."""
    found = bq.evaluation.report.evaluate(posterior.predict(split.test.x, num_samples=100, seed=0), split.test.y)
    return {one.name: one.value for one in found.measures if one.name in MEASURES}


def record(method: Method, split: Any, mode: Any) -> Record:
    """Fit, predict, and what it took."""
    begin = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings("error", message=f".*{HOURS}")
        try:
            numbers: dict[str, Any] = measured(fitted(method, split, mode), split)
        except UserWarning as hours:
            numbers = {"not_waited_for": str(hours)}
    told = [str(one.message) for one in caught if issubclass(one.category, bq.ConvergenceWarning)]
    seconds = time.process_time() - begin
    return {"word": method.name, **numbers, "told": told, "cpu_seconds": seconds, "versions": versions()}


def main(out: Path, words: list[str]) -> None:
    """The methods that the file has no line of yet, one after another."""
    records, split = Records(out), bq.datasets.load("digits-0to8")
    left = [method for method in METHODS if method.name in words and not records.has(word=method.name)]
    wraps = any(method.kind == "wrapper" for method in left)
    mode = bq.inference.map_estimate.fit(example(), split.train, seed=0) if wraps else None
    for method in left:
        records.append(record(method, split, mode))
        print(records.read()[-1], flush=True)


if __name__ == "__main__":
    every = [method.name for method in METHODS if method.name != "quantile_calibration"]  # which is for real targets
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=OUT, help="file of JSON lines, which is gone on with")
    parser.add_argument("--words", nargs="+", default=every, choices=every)
    arguments = parser.parse_args()
    main(arguments.out, arguments.words)
