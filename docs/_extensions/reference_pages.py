"""A page of the reference for each public module, so that a new module needs no new line, and no page grows too long.

The pages are written beside those that list them, into `api/modules`, which git does not keep. An override is told of
where its name is declared first, but for what a reader seeks at the class itself.
"""

import re
import sys
from importlib import import_module
from inspect import getdoc, unwrap
from pathlib import Path
from types import ModuleType
from typing import Any

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
OF_SKLEARN = (
    *("get_metadata_routing", "set_fit_request", "set_predict_request", "set_score_request"),
    *("get_params", "set_params"),
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
        *("bayesuq.posterior", "bayesuq.functions", "bayesuq.summary", "bayesuq.predictive", "bayesuq.inference.units"),
        *("bayesuq.inference.tables", "bayesuq.conformal", "bayesuq.estimators", "bayesuq.active"),
        *("bayesuq.bridges.botorch", "bayesuq.bridges.onnx:to_onnx", "bayesuq.notebook", "bayesuq.to_arviz.container"),
        *("bayesuq.inference.posteriors.saved:load", "bayesuq.inference.from_samples"),
    ),
    "data": ("bayesuq.data", "bayesuq.inputs", "bayesuq.loaders", "bayesuq.tables", "bayesuq.datasets"),
    "models": ("bayesuq.models.bnn", "bayesuq.models.rules", *public_modules("bayesuq.models")),
    "inference": (*public_modules("bayesuq.inference"), "bayesuq.inference.training"),
    "evaluation": tuple(public_modules("bayesuq.evaluation")),
    "parts": (
        *("bayesuq.inference.catalogue:Method", "bayesuq.inference.joint.layout:Layout"),
        *("bayesuq.inference.posteriors.weights:WeightPosterior", "bayesuq.inference.variational.guides"),
        "bayesuq.inference.variational.elbo:MeanFieldELBO, Divergence",
    ),
}


def write_pages(app: Any) -> None:
    """Write the page of each module, and leave those alone that say the same already."""
    folder = Path(app.srcdir) / "api" / "modules"
    folder.mkdir(exist_ok=True)
    pages = {f"{module}.rst": _page(module, names) for module, names in _entries()}
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


def _page(module: str, names: str) -> str:
    options = [f":members: {names}".rstrip(), ":show-inheritance:", f":exclude-members: {', '.join(OF_SKLEARN)}"]
    return "\n".join([module, "=" * len(module), "", f".. automodule:: {module}", *(f"   {o}" for o in options), ""])


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
