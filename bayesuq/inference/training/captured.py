"""A step that an accelerator repeats as one graph, captured once, instead of being told of each kernel again.

A GPU computes a step of a small network in less time than Python takes to launch its kernels. CUDA can capture all that
a step launches, and launch it again as a whole: the same operators, on the same addresses, with whatever Python had
decided. What is captured is the loss and its gradient, L = -log p(theta) - N / B sum_b w_b log p(y_b | f(x_b)); the
optimiser, its rate, clipping and checks stay outside. So that a repetition is the step of its own minibatch,

- rows are copied into the places of the first minibatch. Of b < B rows each has the weight B / b, and copies of the
  first, of weight 0, fill the others: N / B sum_b (B / b) w_b log p_b is the loss of the b rows;
- random numbers come from a generator that the graph is told of, which is set to where the fit's stands;
- gradients are left where they were when the step was captured.

What was captured is held against the step itself at the first minibatches: a value that Python has fixed, a copy of
weights that no longer move or a normalisation layer that sees the rows of weight 0 show there. Where it does not agree,
and wherever nothing can be captured, steps are made one by one and a warning says why.

Reference:
    Nguyen et al. 2021, Accelerating PyTorch with CUDA Graphs, pytorch.org/blog.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bayesuq.data import Batch
from bayesuq.fit_warnings import warn_of_fit
from bayesuq.inference.training.minibatches import Source
from bayesuq.inference.training.objective import Objective
from bayesuq.inputs import named_leaves, on_leaves, row_kind
from bayesuq.randomness import generator

Step = Callable[[Batch, torch.Generator], Tensor]
Recorder = Callable[[Callable[[], Tensor], torch.Generator], Callable[[], Tensor]]

WARM_UPS = 3  # before a capture, in which libraries set themselves up: what CUDA's pages on graphs take
NUM_CHECKED = 2  # minibatches at which a repetition is held against the step; between them the weights have moved
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
TOLERANCE = 1e-2  # of a gradient's norm; what is to be seen is another minibatch, other noise or other weights


def cuda_graph(step: Callable[[], Tensor], noise: torch.Generator) -> Callable[[], Tensor]:
    """Capture what a step launches on a CUDA device.

    Args:
        step: Gives a loss; what it reads and writes must stay at the same addresses.
        noise: The generator that it draws from.

    Returns:
        What launches it again, with the numbers that come next from `noise`, and gives the loss at its address.

    Raises:
        RuntimeError: The step waits for the device, or does what a graph cannot hold.
    """
    with torch.cuda.device(noise.device):
        side, mode = torch.cuda.Stream(), torch.cuda.get_sync_debug_mode()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UPS):
                step()
            torch.cuda.set_sync_debug_mode("error")  # a capture that fails is not always left as it was entered
            try:
                step()
            finally:
                torch.cuda.set_sync_debug_mode(mode)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(noise)
        # The outer stream comes back where a capture fails; other threads, as a loader's, may copy meanwhile.
        with torch.cuda.stream(torch.cuda.current_stream()):  # noqa: SIM117
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                loss = step()

    def repeated() -> Tensor:
        graph.replay()
        return loss

    return repeated


RECORDERS: dict[str, Recorder] = {"cuda": cuda_graph}  # by the type of a device


def captured_step(objective: Objective, source: Source) -> "CapturedStep | None":
    """The objective's step as a graph; None where that cannot be.

    Warns:
        UserWarning: It cannot be.
    """
    why = _refusal(objective, source)
    if why is not None:
        warn_of_no_capture(why)
        return None
    return CapturedStep(objective, source, RECORDERS[source.device.type])


def _refusal(objective: Objective, source: Source) -> str | None:
    """Why there is nothing to capture by, or nothing that can be; None where there is."""
    if source.device.type not in RECORDERS:
        return f"that takes a CUDA device, and this fit is on {source.device}"
    if not isinstance(source, Source):
        return "fits that are made side by side draw from a generator each"
    if source.workers.are_together:
        return "several processes make this fit together"
    if objective.model is not None and _has_hooks(objective.model.net):
        return "the network has hooks, which a repetition would not call"
    return None


def _has_hooks(net: nn.Module) -> bool:
    return any(getattr(module, name) for module in net.modules() for name in HOOKS)


def warn_of_no_capture(why: str) -> None:
    """Say that `captured=True` comes to nothing.

    Args:
        why: In words that end a sentence.
    """
    warn_of_fit(f"Steps are made one by one, not as a captured graph: {why}.", UserWarning)


class CapturedStep:
    """The loss of a minibatch, its gradient left in the leaves, by repeating what was captured at the first one.

    Attributes:
        is_given_up: Whether steps are made one by one after all.
        num_repeated: Steps that were repetitions.
        num_varying: Steps at which there was nothing to repeat yet.
        why: There was not.
    """

    def __init__(self, objective: Objective, source: Source, record: Recorder) -> None:
        self.plain, self.varies, self.record = objective.loss_and_grads, objective.varies, record
        self.leaves, self.buffers = list(objective.leaves.values()), list(objective.buffers.values())
        self.noise = generator(0, device=source.device)
        number = len(source.rows.y)
        self.pads = source.loader is not None or number % source.num_batches > 0
        self.size = number if source.loader is not None else -(-number // source.num_batches)
        self.rows: Batch | None = None
        self.gradients: list[Tensor | None] = []
        self.is_given_up, self.num_unchecked, self.num_repeated = False, NUM_CHECKED, 0
        self.num_varying, self.why = 0, ""
        self._repetition: Callable[[], Tensor] | None = None
        self._has_told = False

    def __call__(self, batch: Batch, noise: torch.Generator) -> Tensor:
        """As the objective's `loss_and_grads`.

        Warns:
            UserWarning: Once, where it is not a repetition.
        """
        why = None if self.is_given_up else self.varies()
        if why is not None:
            self.num_varying, self.why = self.num_varying + 1, why
        if why is not None or self.is_given_up:
            return self.plain(batch, noise)
        if self.rows is None:
            self.rows = self._places(batch)
        if self._kind(batch) != self._kind(self.rows) or len(batch.y) > self.size:
            self._tell_of_odd(batch)
            return self.plain(batch, noise)
        self._fill(batch)
        if self.num_unchecked:
            self._check(batch, noise)
        if self.is_given_up:
            return self.plain(batch, noise)
        self.num_repeated += 1
        return self._repeated(noise).clone()

    def tell(self) -> None:
        """Warn where the steps have varied for most of the fit."""
        if self.num_varying > self.num_repeated and not self.is_given_up:
            warn_of_no_capture(self.why)

    def _places(self, batch: Batch) -> Batch:
        """Where the rows of every minibatch go: B rows like those of this one, weighted where any may be fewer."""

        def place(rows: Tensor) -> Tensor:
            return rows.new_empty((self.size, *rows.shape[1:]))

        dtype = self.leaves[0].dtype
        weight = batch.y.new_ones(len(batch.y), dtype=dtype) if batch.weight is None and self.pads else batch.weight
        return Batch(on_leaves(place, batch.x), place(batch.y), None if weight is None else place(weight))

    def _kind(self, batch: Batch) -> tuple[object, ...]:
        """What rows must share to go into the same places."""
        y, weight = batch.y, batch.weight
        ones = (torch.Size(), self.leaves[0].dtype) if self.pads else None
        return (
            *row_kind(batch.x),
            y.shape[1:],
            y.dtype,
            (weight.shape[1:], weight.dtype) if weight is not None else ones,
        )

    def _fill(self, batch: Batch) -> None:
        """Copy a minibatch into its places."""
        rows, number = self._filled(), len(batch.y)
        for place, given in zip(_leaves(rows), _leaves(batch), strict=True):
            place[:number].copy_(given)
            place[number:].copy_(given[:1])
        if rows.weight is not None:
            rows.weight[:number] = 1.0 if batch.weight is None else batch.weight
            rows.weight.mul_(self.size / number)
            rows.weight[number:] = 0.0

    def _filled(self) -> Batch:
        if self.rows is None:
            raise RuntimeError("no minibatch has been seen")
        return self.rows

    def _check(self, batch: Batch, noise: torch.Generator) -> None:
        """Capture the step at the first minibatch, and hold it against the step itself."""
        try:
            why = self._captured(noise) or self._difference(noise)
        except RuntimeError as error:  # of a capture: the step itself is made next, and raises its own
            why = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        self.num_unchecked -= 1
        if why is not None:
            self.is_given_up, self._repetition, self.rows = True, None, None
            warn_of_no_capture(why)
        else:
            self._fill(batch)

    def _captured(self, noise: torch.Generator) -> str | None:
        """Capture the step, unless that was done; why it cannot be used, or None."""
        if self._repetition is not None:
            return None
        with self._undone(noise):
            self._repetition = self.record(self._plain, self.noise)
            self.gradients = [leaf.grad for leaf in self.leaves]
        return self._mixing(noise) if self.pads else None

    def _mixing(self, noise: torch.Generator) -> str | None:
        """Whether half of the rows, without weight, have a part in what comes of the others."""
        rows, half = self._filled(), (self.size + 1) // 2
        if rows.weight is not None:
            rows.weight[half:] = 0.0
        seen = self._outcome(self._repeated, noise)
        for place in _leaves(rows):
            place[half:].copy_(place[:1])
        if _are_close(seen, self._outcome(self._repeated, noise)):
            return None
        return "the rows of a minibatch depend on each other, so that it cannot be filled up to one size"

    def _difference(self, noise: torch.Generator) -> str | None:
        """Whether a repetition is the step of the rows at their places."""
        plain = self._outcome(lambda _: self._plain(), noise)
        if _are_close(plain, self._outcome(self._repeated, noise)):
            return None
        return "a repetition gave another loss or gradient than the step itself"

    def _outcome(self, step: Callable[[torch.Generator], Tensor], noise: torch.Generator) -> list[Tensor]:
        """The loss, the gradients and the statistics after a step, which is then undone."""
        with self._undone(noise):
            loss = step(noise)
            gradients = [leaf.grad for leaf in self.leaves if leaf.grad is not None]
            moved = [buffer for buffer in self.buffers if buffer.is_floating_point()]  # counts stand on the host
            return [tensor.detach().clone() for tensor in (loss, *gradients, *moved)]

    @contextmanager
    def _undone(self, noise: torch.Generator) -> Iterator[None]:
        """What the block does to the buffers and to the noise is undone; gradients are of the next step anyway."""
        state, buffers = noise.get_state(), [buffer.clone() for buffer in self.buffers]
        self.noise.set_state(state)
        try:
            yield
        finally:
            noise.set_state(state)
            with torch.no_grad():
                for buffer, before in zip(self.buffers, buffers, strict=True):
                    buffer.copy_(before)

    def _plain(self) -> Tensor:
        return self.plain(self._filled(), self.noise)

    def _repeated(self, noise: torch.Generator) -> Tensor:
        """The loss of the rows at their places, at an address that the next repetition writes to."""
        if self._repetition is None:
            raise RuntimeError("nothing has been captured")
        self.noise.set_state(noise.get_state())
        loss = self._repetition()
        noise.set_state(self.noise.get_state())
        for leaf, gradient in zip(self.leaves, self.gradients, strict=True):
            if leaf.grad is not gradient:
                leaf.grad = gradient
        return loss

    def _tell_of_odd(self, batch: Batch) -> None:
        if not self._has_told:
            self._has_told = True
            warn_of_no_capture(
                f"a minibatch of {len(batch.y)} rows has more than the first one's {self.size}, or rows unlike its"
            )


def _leaves(batch: Batch) -> Sequence[Tensor]:
    """The tensors of rows that a minibatch always has."""
    leaves: Mapping[str, Tensor] = named_leaves(batch.x)
    return [*leaves.values(), batch.y]


def _are_close(ones: Sequence[Tensor], others: Sequence[Tensor]) -> bool:
    """Whether each is within the tolerance of its partner's norm; nothing that is not finite is."""
    apart = [
        ((one.double() - other.double()).norm(), one.double().norm()) for one, other in zip(ones, others, strict=True)
    ]
    return all(float(distance) <= TOLERANCE * float(size) for distance, size in apart)
