"""Checkpoints of L-BFGS: what it was told, so that it can be told it again.

L-BFGS, SciPy's as well as torch's, gives no state away that one could save. But it is a deterministic function of the
values and gradients that it is given. So the file holds these in order, and the results of the searches that are over.
A search that was stopped is run again from its start; as long as it asks for the same points, bit for bit, it is
answered from the file, and from then on by computing. It ends with the same bits, and computes no point twice.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from bayesuq.fit_warnings import warn_of_fit
from bayesuq.inference.training.checkpoint import Checkpoint, State, put_back
from bayesuq.inference.training.identity import Identity, digest
from bayesuq.inference.training.resumable import Resumable
from bayesuq.storage import below, named

Evaluation = tuple[Tensor, Tensor]  # a value, 0-d, and its gradient, (P,)
Recall = Callable[[Tensor, Callable[[], Evaluation]], Evaluation]
Result = Mapping[str, Tensor]


@dataclass(eq=False)
class Course:
    """The evaluations of one search, in order.

    Attributes:
        points: Digests of the points that were asked for.
        found: What they gave, on the CPU.
        place: How many were asked for since this process began.
    """

    points: list[str] = field(default_factory=list)
    found: list[Evaluation] = field(default_factory=list)
    place: int = 0

    def recall(self, asked: str) -> Evaluation | None:
        """What the file has for this point; None where it has nothing yet.

        Warns:
            UserWarning: The file has another point here; what follows in it is dropped.
        """
        if self.place == len(self.points):
            return None
        if self.points[self.place] != asked:
            warn_of_fit(
                "The checkpoint comes from another version's search, or from arithmetic that differs from this "
                f"machine's in its last bits: the fit is computed anew from evaluation {self.place} of the search on.",
                UserWarning,
            )
            del self.points[self.place :], self.found[self.place :]
            return None
        self.place += 1
        value, gradient = self.found[self.place - 1]
        return value.clone(), gradient.clone()

    def note(self, asked: str, found: Evaluation) -> None:
        """Write one more down."""
        self.points.append(asked)
        self.found.append((found[0].detach().cpu().clone(), found[1].detach().cpu().clone()))
        self.place += 1


class Evaluations:
    """The searches of one fit: the results of those that are over, the evaluations of the one under way.

    The file takes as many numbers as the search under way has had evaluations times parameters.

    Attributes:
        start: Where searches begin whose start is the user's own, by name: as in the file, where there is one.
    """

    def __init__(self, checkpoint: Checkpoint | None, fit: Identity, start: Mapping[str, Tensor] | None = None) -> None:
        """Read the file, if there is one.

        Args:
            checkpoint: Where they are written, its steps counting evaluations; None remembers nothing.
            fit: What tells this fit from others, the seed among it.
            start: See the attribute.

        Raises:
            OSError: The file cannot be written.
            ValueError: A truncated file, one of another kind, or of another fit.
        """
        self.checkpoint, self.fit = checkpoint, fit
        self.start = dict(start or {})
        self.results: dict[str, dict[str, Tensor]] = {}
        self.courses: dict[str, Course] = {}
        self.count = 0
        self.resumable = Resumable(checkpoint, fit, self._state)
        with self.resumable.reading() as found:
            if found is not None:
                self._put_back(*found)

    def _put_back(self, values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        for name, value in below("start.", tensors).items():
            self.start[name] = self.start[name].detach().clone()
            put_back(self.start[name], value, name, must_be_finite=True)
        for name, keys in values["results"].items():
            self.results[name] = {key: tensors[f"result.{name}.{key}"] for key in keys}
        for name, points in values["points"].items():
            each = zip(tensors[f"values.{name}"].unbind(), tensors[f"gradients.{name}"].unbind(), strict=True)
            self.courses[name] = Course(points, list(each))

    def search(self, name: str, run: Callable[[Recall], Result]) -> Result:
        """The result of one search, which is run unless the file has it.

        Args:
            name: That no other search of this fit has.
            run: The search, O(1) tensors as its result. It is given a function that takes a point and how to compute
                its value and gradient, and gives them, on the CPU where they come from the file.
        """
        if self.checkpoint is None:
            with self.resumable.alone():
                return run(lambda _, compute: self._counted(compute()))
        if name not in self.results:
            course = self.courses.setdefault(name, Course())
            course.place = 0
            with self.resumable.alone():
                found = run(lambda point, compute: self._at(course, point, compute))
                self.results[name] = {key: value.detach().cpu().clone() for key, value in found.items()}
                del self.courses[name]
                self.resumable.write(self.count, len(self.results))
        return self.results[name]

    def _at(self, course: Course, point: Tensor, compute: Callable[[], Evaluation]) -> Evaluation:
        asked = digest({"point": point})
        known = course.recall(asked)
        if known is not None:
            return known
        found = compute()
        course.note(asked, found)
        return self._counted(found)

    def _counted(self, found: Evaluation) -> Evaluation:
        """The same, as one more step of the fit."""
        self.count += 1
        self.resumable.note(self.count)
        return found

    def _state(self) -> State:
        """All that a checkpoint holds."""
        under_way = {name: course for name, course in self.courses.items() if course.points}
        values = {
            "results": {name: list(result) for name, result in self.results.items()},
            "points": {name: course.points for name, course in under_way.items()},
        }
        tensors = {
            f"result.{name}.{key}": value for name, result in self.results.items() for key, value in result.items()
        }
        tensors |= named("start.", self.start)
        for name, course in under_way.items():
            tensors[f"values.{name}"] = torch.stack([value for value, _ in course.found])
            tensors[f"gradients.{name}"] = torch.stack([gradient for _, gradient in course.found])
        return values, tensors
