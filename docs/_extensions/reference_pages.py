"""A page of the reference for each public module, so that a new module needs no new line, and no page grows too long.

The pages are written beside those that list them, into `api/modules`, which git does not keep. An override is told of
where its name is declared first, but for what a reader seeks at the class itself. Below what a module offers stand the
types of what its functions return, which nobody calls: the first page that needs one has it.
"""

import re
import sys
from collections.abc import Iterator
from importlib import import_module
from inspect import getdoc, isfunction, unwrap
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_origin, get_type_hints

FACES = ("bayesuq.models", "bayesuq.inference", "bayesuq.evaluation")
FIRST = (
    *("map_estimate", "variational", "dropout", "ensemble", "temperature"),
    *("report", "uncertainty", "scores", "calibration", "detection", "plots"),
)
WHERE = re.compile(r"; (?:`fit` stands in|see) `fitting`")
# Names that subclasses document anew: what is known of a prediction, and how it is made.
OF_EACH = ("mean", "total", "aleatoric", "epistemic", "log_prob", "predict", "functions")
# What predictives fill in for one another, and nobody calls.
OF_SUBCLASSES = (
    *("at", "check_columns", "columns", "components_at", "crps_basis", "density_basis", "has_steps", "interval_remark"),
    *("joined", "moments_basis", "shown_columns", "transform_ends", "without_density", "without_split"),
)
OF_OTHERS = (  # scikit-learn, and Matplotlib
    *("get_metadata_routing", "set_fit_request", "set_predict_request", "set_score_request"),
    *("get_params", "set_params", "set"),
)


def public_modules(face: str) -> list[str]:
    """The modules that a package hands on, in full: those with a `fit` first, then those that a reader seeks first.

    Each is followed by the modules that it hands on itself.
    """
    package = import_module(face)
    names = [f"{face}.{name}" for name in package.__all__ if isinstance(getattr(package, name), ModuleType)]
    names.sort(key=lambda name: (not hasattr(import_module(name), "fit"), _rank(name.rpartition(".")[2])))
    return [found for name in names for found in (name, *public_modules(name))]


def _rank(name: str) -> int:
    return FIRST.index(name) if name in FIRST else len(FIRST)


# What each page lists: modules, and after a colon the names of one that are meant, where not all are.
LISTS = {
    "core": (
        *("bayesuq.posterior", "bayesuq.functions", "bayesuq.summary", "bayesuq.predictive"),
        *("bayesuq.inference.posteriors.units", "bayesuq.inference.posteriors.tables"),
        *("bayesuq.conformal", "bayesuq.estimators", "bayesuq.active"),
        *("bayesuq.bridges.botorch", "bayesuq.bridges.onnx:to_onnx", "bayesuq.notebook", "bayesuq.to_arviz.container"),
        *("bayesuq.inference.posteriors.saved:load", "bayesuq.inference.hmc.from_samples"),
    ),
    "data": (
        *("bayesuq.data", "bayesuq.inputs", "bayesuq.loaders", "bayesuq.tables", "bayesuq.datasets"),
        "bayesuq.datasets.fetching:FetchError",
    ),
    "models": ("bayesuq.models.bnn", "bayesuq.models.rules", *public_modules("bayesuq.models")),
    "inference": (*public_modules("bayesuq.inference"), "bayesuq.inference.training"),
    "evaluation": tuple(public_modules("bayesuq.evaluation")),
    "parts": (
        *("bayesuq.inference.catalogue:Method", "bayesuq.inference.joint.layout:Layout"),
        *("bayesuq.inference.posteriors.weights:WeightPosterior", "bayesuq.inference.variational.guides"),
        *(
            "bayesuq.inference.variational.elbo:MeanFieldELBO, Divergence",
            "bayesuq.evaluation.diagnostics.pareto:pareto_k",
        ),
    ),
}


def write_pages(app: Any) -> None:
    """Write the page of each module, and leave those alone that say the same already."""
    folder = Path(app.srcdir) / "api" / "modules"
    folder.mkdir(exist_ok=True)
    results = result_types()
    pages = {f"{module}.rst": _page(module, names, results[module]) for module, names in _entries()}
    for path in set(folder.glob("*.rst")) - {folder / name for name in pages}:
        path.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def _entries() -> list[tuple[str, str]]:
    """Modules and the names of each that are told of; empty where all are."""
    parts = [entry.partition(":") for listed in LISTS.values() for entry in listed]
    return [(module, names) for module, _, names in parts]


def result_types() -> dict[str, list[type]]:
    """Of each module of the reference, the types that its functions return and no page offers.

    What these and the module's own classes hand out is told beside them where it is of the same package.
    """
    offered = {module: _offered(module, names) for module, names in _entries()}
    told = {value for values in offered.values() for value in values if isinstance(value, type)}
    results: dict[str, list[type]] = {}
    for module, values in offered.items():
        ahead = [cls for value in values if isfunction(value) for cls in _returned(value)]
        ahead += [cls for value in values if isinstance(value, type) for cls in _handed_out(value, within=module)]
        results[module] = []
        while ahead:
            cls = ahead.pop(0)
            if cls not in told:
                told.add(cls)
                results[module].append(cls)
                ahead += _handed_out(cls, within=module)
    return results


def _offered(module: str, names: str) -> list[Any]:
    found = import_module(module)
    return [getattr(found, name) for name in (names.split(", ") if names else found.__all__)]


def _handed_out(cls: type, *, within: str) -> list[type]:
    """The types of a class's fields, properties and of what its methods return, those of a package alone."""
    public = {name: value for name, value in vars(cls).items() if not name.startswith("_")}
    members = [getattr(one, "fget", None) or getattr(one, "func", None) or one for one in public.values()]
    found = [one for member in members if isfunction(unwrap(member)) for one in _returned(unwrap(member))]
    found += [one for name, hint in _hints(cls).items() if not name.startswith("_") for one in _classes(hint)]
    return [one for one in found if one.__module__.startswith(within)]


def _returned(function: Any) -> Iterator[type]:
    yield from _classes(_hints(function).get("return"))


def _hints(annotated: Any) -> dict[str, Any]:
    """The types that are written; none where one is known to type checkers only."""
    try:
        return get_type_hints(annotated)
    except NameError:
        return {}


def _classes(hint: Any) -> Iterator[type]:
    """The public classes of this package in a type."""
    cls = get_origin(hint) or hint
    if isinstance(cls, type) and cls.__module__.partition(".")[0] == "bayesuq" and not cls.__name__.startswith("_"):
        yield cls
    for part in get_args(hint):
        yield from _classes(part)


def _page(module: str, names: str, results: list[type]) -> str:
    common = [":show-inheritance:", f":exclude-members: {', '.join(OF_OTHERS)}"]
    options = [f":members: {names}".rstrip(), *common]
    lines = [module, "=" * len(module), "", f".. automodule:: {module}", *(f"   {option}" for option in options), ""]
    if results:
        lines += [".. rubric:: What is returned", ""]
    for cls in results:
        lines += [f".. autoclass:: {cls.__module__}.{cls.__qualname__}", "   :members:"]
        lines += [*(f"   {option}" for option in common), ""]
    return "\n".join(lines)


def fill_lists(_app: Any, page: str, source: list[str]) -> None:
    """Put a table of modules, each with its first sentence, where a page of the reference asks for it."""
    listed = LISTS.get(page.removeprefix("api/"))
    if listed is not None:
        modules = [entry.partition(":")[0] for entry in listed]
        rows = [f"| [{module}](modules/{module}.rst) | {_sentence(module)} |" for module in modules]
        short = [module.removeprefix("bayesuq.").removeprefix(f"{page.removeprefix('api/')}.") for module in modules]
        links = [f"{name} <modules/{module}>" for name, module in zip(short, modules, strict=True)]
        tree = ["```{toctree}", ":hidden:", "", *links, "```"]
        source[0] = source[0].replace("{{ modules }}", "\n".join(["| module | |", "|---|---|", *rows, "", *tree]))


def _sentence(module: str) -> str:
    """What a module's docstring opens with, but for the file in which its `fit` stands."""
    paragraph = (getdoc(import_module(module)) or "").partition("\n\n")[0]
    return WHERE.sub("", " ".join(paragraph.split())).replace("|", "\\|")


def leave_out(_app: Any, _what: str, name: str, found: Any, _skip: bool, _options: Any) -> bool | None:
    """What autodoc asks of each member: True leaves it out, None lets the others say."""
    return True if name in OF_SUBCLASSES or (name not in OF_EACH and is_override(name, found)) else None


def is_override(name: str, member: Any) -> bool:
    """Whether a class of this package, of which another one is derived, has declared a member's name before."""
    function = unwrap(getattr(member, "fget", None) or getattr(member, "func", None) or member)
    owner = getattr(function, "__qualname__", "").rpartition(".")[0]
    cls = getattr(sys.modules.get(getattr(function, "__module__", None) or ""), owner, None) if owner else None
    bases = cls.__mro__[1:] if isinstance(cls, type) else ()
    return any(name in vars(base) for base in bases if base.__module__.partition(".")[0] == "bayesuq")


def setup(app: Any) -> dict[str, bool]:
    """Connect the above."""
    app.connect("builder-inited", write_pages)
    app.connect("source-read", fill_lists)
    app.connect("autodoc-skip-member", leave_out)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
