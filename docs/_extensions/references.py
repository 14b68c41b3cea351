"""A name of bayesuq that a page or a docstring writes must exist, or the build fails.

Most names in backticks are code and no links. Sphinx asks here about each that it finds no page for: those of other
libraries and arguments pass, and so do names of bayesuq that can be imported but have no page of their own.
"""

from pkgutil import resolve_name
from typing import Any

from sphinx.domains.python import PythonDomain


def exists(target: str) -> bool:
    """Whether a reference is none to bayesuq, or to something that is there."""
    name = target.partition("(")[0]  # of a call
    if not name.startswith("bayesuq."):
        return True
    try:
        resolve_name(name)
    except (ImportError, AttributeError, ValueError):
        return False
    return True


def is_known(_app: Any, domain: Any, node: Any) -> bool | None:
    """What Sphinx asks before it warns of a missing reference; true where it need not."""
    return True if domain is not None and domain.name == "py" and exists(node["reftarget"]) else None


class QuickPythonDomain(PythonDomain):
    """Sphinx's own, which goes through all objects for each type that it finds no page of, such as `int`."""

    def find_obj(self, env: Any, modname: Any, classname: Any, name: str, *others: Any) -> Any:
        """The objects that a name may mean: none where no object's name ends as it does."""
        if len(self.objects) != getattr(self, "num_known", None):
            self.endings = {known.rpartition(".")[2] for known in self.objects}
            self.num_known = len(self.objects)
        if name.removesuffix("()").rpartition(".")[2] not in self.endings:
            return []
        return super().find_obj(env, modname, classname, name, *others)


def setup(app: Any) -> dict[str, bool]:
    """Connect the above."""
    app.add_domain(QuickPythonDomain, override=True)
    app.connect("warn-missing-reference", is_known)
    return {"parallel_read_safe": True}
