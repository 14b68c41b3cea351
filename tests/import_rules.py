"""The rules of who may import whom, and of what no module does, as functions over source text.

Each takes a module's dotted name and its source, and gives one line for every violation.
"""

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

TOP = "top"  # the files directly in bayesuq/
FACE = "face"  # the __init__ files, which hand on names and do nothing else
EVERYTHING = "everything"

# What a file may import from bayesuq, by the folder that it is in: whole folders, or files directly in bayesuq/.
ALLOWED: dict[str, set[str]] = {
    TOP: {TOP, "predictive", "to_arviz"},
    "predictive": {"predictive", "arrays", "gradients", "notebook", "optional", "randomness", "waiting"},
    "datasets": {"datasets", "arrays", "data", "optional", "options", "randomness", "writing"},
    "tables": {"tables", "arrays", "data", "optional", "options"},
    "to_arviz": {"to_arviz", "predictive", "arrays", "inputs", "optional", "randomness"},
    "models": {
        "models",
        "predictive",
        "arrays",
        "fit_warnings",
        "inputs",
        "optional",
        "options",
        "randomness",
        "waiting",
    },
    "inference": {
        *("tables", "inference", "models", "posterior", "predictive", "data", "loaders", "to_arviz"),
        *(
            "arrays",
            "columns",
            "deadline",
            "fit_warnings",
            "functions",
            "gradients",
            "inputs",
            "once",
            "options",
            "pareto",
        ),
        *("randomness", "storage", "subnormals", "waiting", "windows", "writing"),
    },
    "bridges": {"bridges", "functions", "posterior", "predictive", "arrays", "randomness"},
    "evaluation": {
        *("evaluation", "predictive", "to_arviz"),
        *("arrays", "notebook", "optional", "options", "pareto", "randomness", "storage", "waiting", "writing"),
    },
    EVERYTHING: {
        *(TOP, "predictive", "datasets", "tables", "to_arviz", "models", "inference", "evaluation", "bridges", "cli")
    },
}
ALSO_ALLOWED = {
    "bayesuq.evaluation.simulation": {"posterior"},
    "bayesuq.estimators": {"models", "inference"},
    "bayesuq.bridges.onnx": {"data", "models", "inference", "optional"},  # which writes out networks and likelihoods
    "bayesuq.inference.posteriors.tables": {"optional"},  # whose answers are data frames
}
# The floors of inference, from below: what the files of each may import from the others. What stands on no floor is a
# method, and may import all floors, and the methods that its theory stands on.
FLOORS: dict[str, set[str]] = {
    "catalogue": set(),
    "joint": set(),
    "training": set(),
    "posteriors": {"catalogue", "joint", "training"},
    "chains": {"joint", "training", "posteriors"},
}
STANDS_ON = {
    "automatic": {  # what is tried on a table
        *("dropout", "ensemble", "gp", "laplace"),
        *("microcanonical", "quantile_calibration", "stacking", "temperature"),
    },
    "adoption": {"gp"},  # what a trained model of GPyTorch's already is
    "ensemble": {"map_estimate"},  # of which it takes several
    "ivon": {"variational"},
    "microcanonical": {"ensemble"},
}
# Who may load a module by name, and in which function.
LOADERS = {
    "bayesuq.inference.posteriors.saved": "_module",
    "bayesuq.inference.adoption": "_processes",  # when a model of GPyTorch's is there
    "bayesuq.cli.own_network": "_imported",  # what whoever calls the command has named on its line, and nothing else
    "bayesuq.faces": "lazy",
    "bayesuq.moved": "exec_module",
}
WRITERS = {"bayesuq.inference.joint.tape"}  # who may run source, which it writes itself of operators and numbers
PICKLES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
PROCESSES = {
    ("joblib", "Parallel"),
    ("joblib", "delayed"),
    ("joblib.externals.loky.backend", "resource_tracker"),
}  # which read nothing from a file
NO = ast.Constant(False)
NAMELESS = {"utils", "util", "common", "helpers", "helper", "misc"}


@dataclass(frozen=True)
class Import:
    """One imported thing: a module, or a name in it."""

    module: str
    name: str | None
    line: int
    for_types_only: bool
    inside_function: str | None  # its name, dotted if the function is not at the top of the module


@cache
def parsed(source: str) -> ast.Module:
    """The tree of a module, which every rule looks at."""
    return ast.parse(source)


@cache
def nodes(source: str) -> list[ast.AST]:
    """All that a module's tree is made of."""
    return list(ast.walk(parsed(source)))


@cache
def calls(source: str) -> list[tuple[ast.Call, str]]:
    """Every call, with what it calls as it is written."""
    return [(node, _written(node.func)) for node in nodes(source) if isinstance(node, ast.Call)]


@cache
def imports(source: str) -> list[Import]:
    """Every import statement, wherever it stands."""
    found: list[Import] = []

    def visit(node: ast.AST, for_types: bool, scope: tuple[str, ...], function: str | None) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, None, node.lineno, for_types, function) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found.extend(Import(module, alias.name, node.lineno, for_types, function) for alias in node.names)
        elif isinstance(node, ast.If) and _written(node.test).endswith("TYPE_CHECKING"):
            for child in node.body:
                visit(child, True, scope, function)
            for child in node.orelse:
                visit(child, for_types, scope, function)
        else:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                scope = (*scope, node.name)
                function = ".".join(scope)
            elif isinstance(node, ast.ClassDef):
                scope = (*scope, node.name)
            for child in ast.iter_child_nodes(node):
                if not isinstance(child, ast.expr):  # in which no statement can stand
                    visit(child, for_types, scope, function)

    visit(parsed(source), False, (), None)
    return found


def layer(module: str, packages: set[str]) -> str:
    """The folder that decides what a module may import."""
    parts = module.split(".")
    if module in packages:
        return FACE
    if parts[0] == "scripts" or _is_command_line(module):
        return EVERYTHING
    return parts[1] if len(parts) > 2 else TOP


def _is_command_line(module: str) -> bool:
    """Whether a module is of the command line: one that prints, and that no other imports."""
    return module == "bayesuq.__main__" or f"{module}.".startswith("bayesuq.cli.")


def targets(imported: Import, sources: Mapping[str, str]) -> str:
    """The module that an import reaches: `from package import module` reaches the module."""
    inner = f"{imported.module}.{imported.name}"
    return inner if imported.name is not None and inner in sources else imported.module


def wrong_directions(module: str, source: str, sources: Mapping[str, str], packages: set[str]) -> list[str]:
    """Imports of bayesuq's modules from a layer that may not import them."""
    own = layer(module, packages)
    found = []
    for imported in imports(source):
        target = targets(imported, sources)
        parts = target.split(".")
        if parts[0] == "scripts" or (_is_command_line(target) and not _is_command_line(module)):
            found.append(f"{module}:{imported.line} imports {target}, which nothing imports")
            continue
        if parts[0] != "bayesuq" or (own == FACE and (imported.for_types_only or target == "bayesuq.faces")):
            continue
        allowed = ALLOWED.get(own, set()) | ALSO_ALLOWED.get(module, set())
        reached = {layer(target, packages), parts[1] if len(parts) > 1 else ""}
        if own == FACE or target == "bayesuq" or not reached & allowed:
            found.append(f"{module}:{imported.line} imports {target}")
    return found


def floors_and_methods(module: str, source: str, sources: Mapping[str, str]) -> list[str]:
    """Imports within inference from a floor that is not below, or of a method that the theory does not stand on."""
    own = _room(module)
    if own is None:
        return []
    allowed = FLOORS.get(own, {*FLOORS, *STANDS_ON.get(own, ())}) | {own}
    rooms = ((imported, _room(targets(imported, sources))) for imported in imports(source))
    return [
        f"{module}:{imported.line} imports {targets(imported, sources)}"
        for imported, room in rooms
        if room is not None and room not in allowed
    ]


def arrows(sources: Mapping[str, str]) -> set[tuple[str, str]]:
    """From which room of inference's floor to which others something is imported, types alone included."""
    found = {
        (own, _room(targets(imported, sources)))
        for module, source in sources.items()
        if (own := _room(module)) is not None
        for imported in imports(source)
    }
    return {(own, room) for own, room in found if room is not None and room != own}


def _room(module: str) -> str | None:
    """The folder or the file directly in inference that a module is, or is in; None outside of inference."""
    parts = module.split(".")
    return parts[2] if parts[:2] == ["bayesuq", "inference"] and len(parts) > 2 else None


def names_from_elsewhere(module: str, source: str, sources: Mapping[str, str], packages: set[str]) -> list[str]:
    """Names that are imported from another file than the one that defines them, and relative or starred imports."""
    found = []
    for imported in imports(source):
        where = f"{module}:{imported.line}"
        if imported.module.startswith(".") or imported.name == "*":
            found.append(f"{where} imports by {'dots' if imported.module.startswith('.') else 'star'}")
            continue
        if imported.name is None or imported.module.split(".")[0] != "bayesuq" or module in packages:
            continue
        if targets(imported, sources) != imported.module:
            continue
        if imported.module in packages:
            found.append(f"{where} imports {imported.name} from the face {imported.module}")
        elif imported.module in sources and imported.name not in defined(sources[imported.module]):
            found.append(f"{where} imports {imported.name} from {imported.module}, which does not define it")
    return found


@cache
def defined(source: str) -> set[str]:
    """Names that a module binds at its top level other than by importing them."""
    names: set[str] = set()
    for node in parsed(source).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif not isinstance(node, ast.Import | ast.ImportFrom):
            bound = (inner for inner in ast.walk(node) if isinstance(inner, ast.Name))
            names |= {inner.id for inner in bound if isinstance(inner.ctx, ast.Store)}
    return names


def imports_inside_functions(module: str, source: str) -> list[str]:
    """Imports in a function's body, and modules loaded by name, other than by a lazy `__getattr__` and `LOADERS`."""
    found = [
        f"{module}:{imported.line} imports {imported.module} inside {imported.inside_function}"
        for imported in imports(source)
        if imported.inside_function not in (None, "__getattr__")
    ]
    lazy = {
        id(inner)
        for node in nodes(source)
        if isinstance(node, ast.FunctionDef) and node.name in ("__getattr__", LOADERS.get(module))
        for inner in ast.walk(node)
    }
    found += [
        f"{module}:{call.lineno} loads a module by name"
        for call, name in calls(source)
        if name in ("import_module", "importlib.import_module", "__import__") and id(call) not in lazy
    ]
    return found


def forbidden_statements(module: str, source: str) -> list[str]:
    """Bare asserts, printing, unpickling in any guise, running text, and matplotlib outside of plots."""
    asserts = (node for node in nodes(source) if isinstance(node, ast.Assert))
    found = [f"{module}:{node.lineno} asserts" for node in asserts]
    for imported in imports(source):
        root = imported.module.split(".")[0]
        if root in PICKLES and (imported.module, imported.name) not in PROCESSES:
            found.append(f"{module}:{imported.line} imports {root}")
        if root == "matplotlib" and not imported.for_types_only and not module.startswith("bayesuq.evaluation.plots."):
            found.append(f"{module}:{imported.line} imports matplotlib")
    for call, name in calls(source):
        options = {option.arg: option.value for option in call.keywords}
        if name == "print" and not _is_command_line(module):
            found.append(f"{module}:{call.lineno} prints")
        writes = name in ("eval", "exec") and module in WRITERS
        if (name in ("eval", "exec", "os.system") and not writes) or name.endswith("get_param_store().load"):
            found.append(f"{module}:{call.lineno} calls {name}")
        if name == "torch.load" and not _is_constant(options.get("weights_only"), True):
            found.append(f"{module}:{call.lineno} calls torch.load without weights_only=True")
        if name in ("np.load", "numpy.load") and not _is_constant(options.get("allow_pickle", NO), False):
            found.append(f"{module}:{call.lineno} calls {name} with pickles allowed")
    return found


def nameless_files(modules: set[str]) -> list[str]:
    """Modules whose name says nothing of what is in them."""
    return sorted(module for module in modules if NAMELESS & set(module.split(".")))


def circle(sources: Mapping[str, str]) -> list[str]:
    """The modules that import each other in a circle, and those that stand on them."""
    reached = {
        module: {targets(found, sources) for found in imports(source) if not found.for_types_only} & set(sources)
        for module, source in sources.items()
    }
    while True:
        ends = [module for module, others in reached.items() if not others]
        if not ends:
            return sorted(reached)
        reached = {module: others - set(ends) for module, others in reached.items() if module not in ends}


def read(folder: Path) -> tuple[dict[str, str], set[str]]:
    """The source of each module below a folder by dotted name, and which of them are packages."""
    sources: dict[str, str] = {}
    packages: set[str] = set()
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        sources[module] = path.read_text()
        if parts[-1] == "__init__":
            packages.add(module)
    return sources, packages


def _written(node: ast.expr) -> str:
    """An expression's source; that of a dotted name, which most are, without the machinery that writes any."""
    match node:
        case ast.Name():
            return node.id
        case ast.Attribute():
            return f"{_written(node.value)}.{node.attr}"
        case _:
            return ast.unparse(node)


def _is_constant(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value
