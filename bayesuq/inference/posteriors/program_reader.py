"""Rows as a Pyro program takes them: real numbers in its dtype, targets in the shape of what it observes."""

import copy
from functools import cached_property
from typing import Any

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from bayesuq.arrays import as_labels, as_real, check_device
from bayesuq.data import Batch, Dataset
from bayesuq.inference.joint.program_call import USUAL, AtOrigin, ProgramCall
from bayesuq.inference.joint.program_joint import ProgramJoint, running
from bayesuq.inference.joint.programs import data_sites
from bayesuq.inference.training.minibatches import cast_rows
from bayesuq.inputs import as_rows, checked, in_dtype
from bayesuq.models.program import Observed, Program
from bayesuq.predictive.laws import LABELS, unwrapped


class ProgramRows:
    """Reads rows for a program, and learns from the first ones what it observes.

    Attributes:
        device: Where the rows go; the program must compute there.
        call: The program on its device, and how it takes data.
        dtype: Of real numbers: the program's parameters', else torch's default.
        joint: Its flat joint, once rows were opened.
    """

    joint: ProgramJoint

    def __init__(
        self, program: Program, observed: Observed, device: torch.device | str | None, *, learns: bool = False
    ) -> None:
        program = copy.deepcopy(program) if isinstance(program, nn.Module) else program  # the user's stays as it is
        tensors = [*program.parameters(), *program.buffers()] if isinstance(program, nn.Module) else []
        own = next((tensor for tensor in tensors if tensor.is_floating_point()), None)
        usual = torch.device("cpu") if own is None else own.device
        self.device = usual if device is None else check_device(device)
        placed = program.to(self.device) if isinstance(program, nn.Module) else program
        self.call = ProgramCall.of(placed, observed, learns=learns)
        self.dtype = torch.get_default_dtype() if own is None else own.dtype

    @cached_property
    def weighs(self) -> bool:
        """Whether the program multiplies the log-likelihood of the first rows by weights."""
        return self.call.multiplies_weights(self._opened)

    def open(self, first: Dataset) -> Batch:
        """Run the program on the first rows, and hold what it observes against the targets.

        Raises:
            ValueError: See `ProgramJoint.of`; or targets that are no values of what the program observes.
        """
        x = self.inputs(first.x)
        self._shape, self._is_label, self._num_classes = self._kind(x, first)
        rows = self.read(first)
        self.joint = ProgramJoint.of(self.call, rows)
        self._check_values(rows)
        self.call.check_weights(rows)
        self._opened = rows
        return rows

    def read(self, data: Dataset) -> Batch:
        """Rows with targets in the shape of the program's own; nothing is ever broadcast."""
        y = data.y
        shape = (len(y), *self._shape)
        if y.shape != shape and y.numel() != torch.Size(shape).numel():
            raise ValueError(f"`y` of shape {tuple(y.shape)} is no value of what the program observes, {shape}.")
        y = y.reshape(shape)
        y = as_labels(y, num_classes=self._num_classes) if self._is_label else y.to(self.dtype)
        return cast_rows(data, y, self.device, self.dtype, x=self.inputs(data.x))

    def inputs(self, x: Any) -> Any:
        """Inputs as the program takes them."""
        rows = as_rows(checked(x))
        if isinstance(rows, Tensor):
            return as_real(rows, self.device, self.dtype)
        return in_dtype(rows, self.device, self.dtype, whole=True)

    def _kind(self, x: Any, first: Dataset) -> tuple[torch.Size, bool, int | None]:
        """The shape of a row of the targets, whether they are labels, and of how many classes, where that is known."""
        several = self.call.names is not None and len(self.call.names) > 1
        squeezed = first.y.reshape(len(first.y), *first.y.shape[2:]) if first.y.shape[1:2] == (1,) else first.y
        usual = (first.y.shape[1:] if several else squeezed.shape[1:]), first.is_labelled
        site = self._site(x, Batch(x, squeezed, None))
        if several or site is None:
            return torch.Size(usual[0]), False if several else usual[1], None
        law, base = site["fn"], unwrapped(site["fn"])
        shape = law.batch_shape + law.event_shape
        whole = isinstance(base, LABELS) and "Bernoulli" not in type(base).__name__
        num_classes = base.probs.shape[-1] if isinstance(base, dist.Categorical) else None
        return (shape[1:] if shape[:1] == (len(first.y),) else torch.Size(usual[0])), whole, num_classes

    def _site(self, x: Any, rows: Batch) -> Any | None:
        """The observed site, as the program draws it without targets or, where it does not, takes them."""
        wanted = self.call.names
        try:
            with running(), torch.no_grad(), poutine.trace() as tracer, AtOrigin():
                self.call.run_forwards(x)
            found = {name: site for name, site in tracer.trace.nodes.items() if site["type"] == "sample"}
            names = [name for name in (wanted or USUAL) if name in found]
            if names:
                return found[names[0]]
        except (TypeError, AttributeError, IndexError, RuntimeError, ValueError):
            pass  # a program that needs its targets
        try:
            data = data_sites(self.call.trace(rows._replace(weight=None)))
        except (RuntimeError, ValueError, IndexError):
            return None  # told by what follows
        return data[0] if len(data) == 1 else None

    def _is_unchecked(self, name: str, rows: Batch) -> bool:
        """Whether the program asks its law for no check of values, as one does for counts of unlike totals."""
        try:
            law = self.call.trace(rows, checked=True).nodes[name]["fn"]
        except ValueError:
            return False
        return not unwrapped(law)._validate_args

    def _check_values(self, rows: Batch) -> None:
        """Refuse targets outside of the support of what is observed."""
        origin = torch.zeros(self.joint.layout.size, dtype=self.joint.dtype, device=self.device)
        with running(), torch.no_grad():
            observed = self.joint.terms(origin, rows).observed
        for name, site in observed.items():
            law, value = site["fn"], site["value"]
            if torch.broadcast_shapes(value.shape, law.shape()) != law.shape():
                raise ValueError(
                    f"The program observes {name!r} in shape {tuple(law.shape())}; the targets come in "
                    f"{tuple(value.shape)}, and would be repeated. Give them its shape."
                )
            is_inside = law.support is None or bool(law.support.check(value).all())
            if not is_inside and not self._is_unchecked(name, rows):
                raise ValueError(
                    f"Some targets are no values of {name!r}: the support of its {type(unwrapped(law)).__name__} is "
                    f"{law.support}. Drop them, or take another law."
                )
