"""`bayesuq compare`: several methods on one data set, side by side in one page that needs no other file."""

from bayesuq.cli import examples, figures, map_figures, page
from bayesuq.cli.judging import judge_fit
from bayesuq.cli.launched import are_several
from bayesuq.cli.methods import FitOptions, Fitted, Method, fit, read_methods, write_posterior
from bayesuq.cli.output import Output, by_name, file_name, tell, tell_table, tell_warnings
from bayesuq.cli.paired import find_standings
from bayesuq.cli.problem import Problem, load_data, use_computer, write_standardizer
from bayesuq.cli.settings import (
    ChainOptions,
    CheckpointOption,
    DataOptions,
    MethodsOption,
    ModelOptions,
    OutputOptions,
    PredictionOptions,
    TrainingOptions,
)
from bayesuq.cli.sharing import fit_shared_out
from bayesuq.evaluation.report.reporting import side_by_side
from bayesuq.inference.training.workers import Workers
from bayesuq.writing import write_text


def run(
    data: DataOptions,
    names: MethodsOption,
    model: ModelOptions,
    training: TrainingOptions,
    chains: ChainOptions,
    prediction: PredictionOptions,
    checkpoints: CheckpointOption,
    output: OutputOptions,
) -> None:
    """Fit each method, evaluate it on the test rows, write all, print the measures side by side.

    Raises:
        UsageError: Options that do not go together, before anything is done.
        ValueError: Data that cannot be fitted.
        FloatingPointError: The loss stopped being finite.
        OSError: The folder cannot be written.
    """
    use_computer(prediction)
    loaded = load_data(data)
    problem = Problem.of(data.data, loaded.split, model, loaded.columns)
    methods = read_methods(names.methods, problem)
    settings = by_name(data, names, problem.options, training, chains, prediction, output)
    workers = Workers.of(are_several())
    elsewhere = checkpoints.checkpoint is not None
    output_folder = workers.agreed(lambda: Output.prepare(output, settings, fits_lie_elsewhere=elsewhere))

    tell_table(loaded)
    options = FitOptions(training, chains, prediction, output_folder.checkpoints(checkpoints), workers.are_together)
    shared = fit_shared_out(methods, problem, options, workers) if workers.are_together else {}
    if not workers.is_first:
        return
    fitted = _fit_all(methods, problem, options, output_folder, shared)
    judged = {name: judge_fit(result, problem, prediction) for name, result in fitted.items()}
    reports = output_folder.folder / "reports"
    reports.mkdir()
    for name, result in judged.items():
        result.report.save(reports / f"{file_name(name)}.json")
    circumstances = output_folder.circumstances(prediction.device)
    output_folder.write_run(settings, circumstances, {name: result.to_dict() for name, result in fitted.items()})
    text = page.render(
        page.Content(
            data=data.data,
            split=problem.split,
            num_classes=next(iter(judged.values())).num_classes,
            methods={method.name: method for method in methods},
            fitted=fitted,
            reports={name: result.report for name, result in judged.items()},
            standings=find_standings(judged),
            pictures=(map_figures.draw if problem.is_map else figures.draw)(data.data, problem.split, judged, fitted),
            examples=examples.least_sure(data.data, problem.split, judged, problem.columns),
            settings=settings,
            circumstances=circumstances,
        )
    )
    write_text(output_folder.folder / "report.html", text)
    output_folder.end()
    print(side_by_side({name: result.report for name, result in judged.items()}))
    print(f"\nReport: {(output_folder.folder / 'report.html').resolve()}")


def _fit_all(
    methods: list[Method], problem: Problem, options: FitOptions, output_folder: Output, shared: dict[str, Fitted]
) -> dict[str, Fitted]:
    """Each posterior is on the disk as soon as it is fitted; what several processes have fitted, when all are."""
    posteriors = output_folder.folder / "posteriors"
    posteriors.mkdir()
    write_standardizer(problem.beside_posteriors, posteriors)
    fitted = dict(shared)
    # What others stand on comes first, so that it is fitted once.
    for method in sorted(methods, key=lambda method: method.wraps):
        if method.key not in fitted:
            fitted[method.key] = fit(method, problem, options, fitted)
        file = posteriors / f"{file_name(method.name)}.safetensors"
        write_posterior(fitted[method.key].posterior, file, problem)
        tell(f"{method.name}: fitted in {fitted[method.key].seconds:.1f} s")
        tell_warnings(method.name, fitted[method.key].warnings)
    return {method.name: fitted[method.key] for method in methods}
