"""`bayesuq fit`: one method on one data set; its posterior, its report and its settings in a folder."""

from bayesuq.cli.judging import judge_fit
from bayesuq.cli.methods import CALIBRATION, FitOptions, chosen_for, fit, read_methods, write_posterior
from bayesuq.cli.output import POSTERIOR, Output, by_name, tell, tell_table, tell_warnings
from bayesuq.cli.problem import Problem, load_data, use_computer, write_standardizer
from bayesuq.cli.settings import (
    AUTO,
    ChainOptions,
    CheckpointOption,
    DataOptions,
    MethodOption,
    ModelOptions,
    OutputOptions,
    PredictionOptions,
    TrainingOptions,
)
from bayesuq.cli.verdict import COVERAGE
from bayesuq.evaluation.report.reporting import Report
from bayesuq.evaluation.report.standard_measures import COVERAGE_LEVEL

REMEDIES = (f"{CALIBRATION}:gp", f"{CALIBRATION}:variational")  # whose intervals hold more often than not
MATTERS = 0.01  # of a coverage: test rows without number prove less, too, which changes no interval to speak of


def run(
    data: DataOptions,
    method: MethodOption,
    model: ModelOptions,
    training: TrainingOptions,
    chains: ChainOptions,
    prediction: PredictionOptions,
    checkpoints: CheckpointOption,
    output: OutputOptions,
) -> None:
    """Fit, evaluate on the test rows, write, print the report.

    Raises:
        UsageError: Options that do not go together, before anything is done.
        ValueError: Data that cannot be fitted.
        FloatingPointError: The loss stopped being finite.
        OSError: The folder cannot be written.
    """
    use_computer(prediction)
    loaded = load_data(data)
    problem = Problem.of(data.data, loaded.split, model, loaded.columns)
    name = chosen_for(problem) if method.method == AUTO else method.method
    (chosen,) = read_methods([name], problem)
    settings = by_name(data, MethodOption(method=name), problem.options, training, chains, prediction, output)
    folder = Output.prepare(output, settings, fits_lie_elsewhere=checkpoints.checkpoint is not None)

    tell_table(loaded)
    options = FitOptions(training, chains, prediction, folder.checkpoints(checkpoints))
    fitted = fit(chosen, problem, options, {})
    tell(f"{chosen.name}: fitted in {fitted.seconds:.1f} s")
    tell_warnings(chosen.name, fitted.warnings)
    write_posterior(fitted.posterior, folder.folder / POSTERIOR, problem)
    write_standardizer(problem.beside_posteriors, folder.folder)

    judged = judge_fit(fitted, problem, prediction)
    judged.report.save(folder.folder / "report.json")
    folder.write_run(settings, folder.circumstances(prediction.device), {chosen.name: fitted.to_dict()})
    folder.end()
    print(f"{chosen.name} on {problem.name}, test rows: {judged.report}")
    tell_warnings(chosen.name, _off_nominal(judged.report, chosen.name))
    tell(f"Written to {folder.folder}.")


def _off_nominal(report: Report, method: str) -> list[str]:
    """What is said of intervals that hold too few of the test rows, or too many."""
    own = method if method.startswith(CALIBRATION) else f"{CALIBRATION}:{method}"
    others = [name for name in dict.fromkeys([*REMEDIES, own]) if name != method]
    return [
        f"The {COVERAGE_LEVEL * 100:.0f} % intervals hold {measure.value * 100:.0f} % of the test rows: they are too "
        f"{'wide' if measure.value > COVERAGE_LEVEL else 'narrow'}, and those of new rows will be, too. Compare it "
        f"with others (`bayesuq compare`), such as {' and '.join(others)}."
        for measure in report.measures
        if measure.name == COVERAGE and measure.off is not None and abs(measure.value - COVERAGE_LEVEL) > MATTERS
    ]
