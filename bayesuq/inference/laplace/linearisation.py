"""Derivatives of the outputs of single rows in the weights, layer by layer.

One forward pass gives what goes into each layer, and a backward pass for each output the gradients at what comes out of
it, for all rows at once: the Jacobian in factors (see `curvature_factors`). Weights of modules that are no linear layer
or convolution get theirs by `torch.func`, row by row in one vectorised pass.

Where only the weights of a convolution are sought that the network ends in, f_t = W a_t + b at each pixel t for a patch
a_t. Pixels then share weights as rows do and do not mix, so that each of them is taken as a row: O(C^2) memory a pixel,
where maps of T pixels have O(C^2 T^2). Of other large maps only combinations of outputs are asked for (see
`curvature_sketches`), and products with deviations of the weights, which forward-mode derivatives give.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from bayesuq.gradients import are_kept, detached, unless_kept
from bayesuq.inference.laplace.factors import Derivatives, Factors, Layer
from bayesuq.inference.laplace.sketches import EXACT_OUTPUTS, as_rows
from bayesuq.inputs import Inputs, Parts
from bayesuq.models.attention import PlainAttention
from bayesuq.models.bnn import BayesianNetwork, share_tensors

BUDGET = 2**24  # numbers in the derivatives of one chunk of rows: 128 MiB in float64
# Relative, of factors with the gradient that autograd gives, by the precision that a layer runs in: its rounding, with
# room.
LARGEST_EXACT = 2**24  # weights of a network of which there may be a copy in float64: 128 MiB
AGREEMENT = {torch.float64: 1e-6, torch.float32: 1e-3, torch.float16: 0.03, torch.bfloat16: 0.25}

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

Root = Callable[[Tensor], Tensor]


class UnevenRowsError(ValueError):
    """A layer got other rows than those of the batch, as the experts of a mixture do.

    Attributes:
        path: Of the layer.
    """

    def __init__(self, path: str) -> None:
        super().__init__(
            f"The layer {path!r} gets some of the rows only, which no row of the fit has shown. Fit it again with a "
            "larger `batch_size`."
        )
        self.path = path


class Linearisation:
    """The network around one setting of its weights: outputs of rows, and their derivatives in the weights sought."""

    def __init__(
        self,
        model: BayesianNetwork,
        theta: Mapping[str, Tensor],
        buffers: Mapping[str, Tensor],
        names: Sequence[str],
        layers: Sequence[str] | None = None,
    ) -> None:
        """Find the layers.

        Args:
            model: Whose network it is.
            theta: A value for each site.
            buffers: Of the network.
            names: The parameters whose derivatives are sought.
            layers: Paths of the layers to take in factors; None takes all that can be, which `probe` then narrows.
        """
        self.model, self.buffers, self.names = model, buffers, list(names)
        self.theta = {name: value.detach() for name, value in theta.items()}
        self.tree = share_tensors(model.net)
        self.layers = [layer for layer in _layers(self.tree, self.names) if layers is None or layer.path in layers]
        self._is_by_pixel: bool | None = None
        self._is_head: bool | None = None

    @property
    def other_names(self) -> list[str]:
        """Parameters that are in none of the layers."""
        taken = {name for layer in self.layers for name in layer.names()}
        return [name for name in self.names if name not in taken]

    def probe(self, rows: Tensor) -> list[str]:
        """Keep the layers whose factors give the gradient that autograd gives at a few rows.

        A weight that is used in some other place too, or whose inputs do not come row by row, is left to `torch.func`.
        That is a question of how the network is built, not of its precision: it is asked in float64 where the network
        runs in that, and is not so large that a copy would matter, else with the room that its own rounding needs.

        Returns:
            Paths of the layers that were left out.
        """
        kept = None
        if sum(parameter.numel() for parameter in self.tree.parameters()) <= LARGEST_EXACT:
            with contextlib.suppress(RuntimeError, TypeError):  # numbers of a fixed precision somewhere in it
                exact = self._in_float64()
                kept = [layer for layer in self.layers if exact._agrees(layer, _as_float64(rows))]
        if kept is None:
            kept = [layer for layer in self.layers if self._agrees(layer, rows)]
        left = [layer.path for layer in self.layers if layer not in kept]
        self.layers = kept
        return left

    def _in_float64(self) -> "Linearisation":
        """The same with all numbers in float64."""
        exact = copy.copy(self)
        exact.tree = copy.deepcopy(self.tree).double()
        exact.theta = {name: _as_float64(value) for name, value in self.theta.items()}
        exact.buffers = {name: _as_float64(value) for name, value in self.buffers.items()}
        return exact

    def forward(self, rows: Tensor) -> Tensor:
        """f, (N, C, ...)."""
        with unless_kept():
            return self.model.forward(self.theta, rows, net=self.tree, buffers=self.buffers)

    def is_by_pixel(self, rows: Tensor) -> bool:
        """Whether each pixel counts as a row: the network gives what a convolution gave it, the one sought."""
        if self._is_by_pixel is None:
            self._is_by_pixel = (
                len(self.layers) == 1
                and not self.other_names
                and isinstance(self.tree.get_submodule(self.layers[0].path), CONVOLUTIONS)
                and self._ends_in(self.layers[0], rows)
            )
        return self._is_by_pixel

    def is_head(self, rows: Tensor) -> bool:
        """Whether the network gives what a linear layer gave it, (N, C), the only one sought: f = W a + b."""
        if self._is_head is None:
            self._is_head = len(self.layers) == 1 and not self.other_names and self._ends_in(self.layers[0], rows)
            self._is_head = self._is_head and not self.is_by_pixel(rows) and self.forward(rows[:1]).ndim == 2
        return self._is_head

    def head_inputs(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """f, (N, C), and what the last linear layer gets, a 1 for its bias included, (N, 1, I), float64."""
        (layer,) = self.layers
        with unless_kept(), _recorded(self.tree, self.layers) as uses:
            f = self.model.forward(self.theta, rows, net=self.tree, buffers=self.buffers)
        ((x, _),) = uses[layer]
        return detached(f), _positions_of_inputs(layer, self.tree.get_submodule(layer.path), x).double()

    def numbers_of_head(self) -> int:
        """That a row of the last linear layer holds: its inputs and its outputs."""
        return self.layers[0].num_columns + self.layers[0].shape[0]

    def is_large(self, rows: Tensor) -> bool:
        """Whether rows are maps of too many outputs to take the derivatives of each."""
        if self.is_by_pixel(rows):
            return False
        f = self.forward(rows[:1])
        return f.ndim > 2 and f.numel() > EXACT_OUTPUTS

    def pushed(self, rows: Tensor, deviations: Mapping[str, Tensor]) -> Tensor:
        """J deviation at each row, of f's shape: O(outputs) time and memory.

        Args:
            rows: (N, ...).
            deviations: Of the parameters sought by name, (*shape).
        """
        values = {name: self.theta[name] for name in self.names}

        def outputs(values: Mapping[str, Tensor]) -> Tensor:
            return self.model.forward({**self.theta, **values}, rows, net=self.tree, buffers=self.buffers)

        if are_kept():  # see `_products`
            return _pushed_backwards(outputs, values, deviations)
        try:
            with PlainAttention():
                return torch.func.jvp(outputs, (values,), (dict(deviations),))[1].detach()
        except RuntimeError:  # an operator without a forward derivative: it is the derivative of a product with J^T
            return _pushed_backwards(outputs, values, deviations)

    def derivatives(self, rows: Tensor, root: Root | None = None) -> tuple[Tensor, Derivatives]:
        """f, (N, C, ...), and the derivatives of each row's `f.flatten()`, or of its products with columns.

        Args:
            rows: (N, ...); where each pixel counts as a row, the derivatives are of N H W of them.
            root: From f, (N, C, ...) or that of pixels (N H W, C), to the columns, (N, K, R); None takes the outputs
                themselves. Fewer columns than outputs cost less.
        """
        if self.is_by_pixel(rows):
            return self._pixel_derivatives(rows, root)
        if self.is_head(rows):
            return self._head_derivatives(rows, root)
        f, uses = self._run(rows, self.layers)
        with torch.enable_grad():
            flat = f.flatten(1)
        columns = torch.eye(flat.shape[1]).to(flat).expand(len(flat), -1, -1) if root is None else root(detached(f))
        columns = columns.to(flat.dtype)
        return detached(f), Derivatives(self._factors(flat, uses, columns), self._products(rows, columns))

    def gradient(
        self, rows: Tensor, energy: Callable[[Tensor], Tensor], names: Sequence[str] | None = None
    ) -> dict[str, Tensor]:
        """Of a number, a function of f, in the parameters named, by default those sought, (*shape), float64.

        Args:
            rows: (N, ...).
            energy: From f, (N, C, ...), to the number, 0-d.
            names: Of the parameters.
        """
        names = self.names if names is None else names
        with torch.enable_grad():
            theta = {name: value.detach().requires_grad_(name in names) for name, value in self.theta.items()}
            total = energy(self.model.forward(theta, rows, net=self.tree, buffers=self.buffers))
            parts = torch.autograd.grad(total, [theta[name] for name in names], materialize_grads=True)
        return {name: part.double() for name, part in zip(names, parts, strict=True)}

    def as_derivatives(self, vectors: Mapping[str, Tensor]) -> Derivatives:
        """Numbers for each parameter sought, (*shape), as the derivatives of the one output of one row."""
        layers = {}
        for layer in self.layers:
            matrix = layer.join({name: vectors[name] for name in layer.names()})
            unit = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
            layers[layer] = Factors(matrix.unsqueeze(0), unit.unsqueeze(0).unsqueeze(0))
        return Derivatives(layers, {name: vectors[name].unsqueeze(0).unsqueeze(0) for name in self.other_names})

    def rows_at_a_time(self, rows: Tensor, *, dense: bool, num_columns: int | None = None) -> int:
        """So many that their derivatives fit the budget.

        Args:
            rows: (N, ...).
            num_columns: Combinations of the outputs whose derivatives are taken; None takes all outputs.
            dense: Whether Jacobians are written out; those of layers that act at several positions always may be.
        """
        f, uses = self._run(rows[:1], self.layers)
        if self.is_by_pixel(rows):
            num_inputs, num_classes = self.layers[0].num_columns, f.shape[1]
            of_pixel = num_inputs + num_classes**2 * (num_inputs if dense else 2)
            return max(1, BUDGET // (of_pixel * f[0, 0].numel()))
        num_outputs = f.numel() if num_columns is None else num_columns
        numbers = f.numel() * num_outputs
        for layer in self.layers:
            num_positions = sum(output[0].numel() // layer.shape[0] for _, output in uses[layer])
            numbers += num_positions * (layer.num_columns + num_outputs * layer.shape[0])
            if dense or num_positions > 1:
                numbers += num_outputs * layer.shape[0] * layer.num_columns
        numbers += num_outputs * sum(self.theta[name].numel() for name in self.other_names)
        return max(1, BUDGET // numbers)

    def _ends_in(self, layer: Layer, rows: Tensor) -> bool:
        """Whether the network gives the outputs of that layer as they are."""
        module = self.tree.get_submodule(layer.path)
        seen: list[tuple[Tensor, int]] = []
        handle = module.register_forward_hook(lambda _module, _args, output: seen.append((output, output._version)))
        try:
            f = self.forward(rows[:1])
        finally:
            handle.remove()
        # The very tensor, used once, and nothing written into it since.
        return len(seen) == 1 and f is seen[0][0] and f._version == seen[0][1]

    def _pixel_derivatives(self, rows: Tensor, root: Root | None) -> tuple[Tensor, Derivatives]:
        f, uses = self._run(rows, self.layers)
        ((layer, ((x, _),)),) = uses.items()
        module = self.tree.get_submodule(layer.path)
        inputs = _positions_of_inputs(layer, module, x).double().flatten(0, 1).unsqueeze(1)
        by_pixel = as_rows(detached(f))
        columns = torch.eye(f.shape[1]).to(f).expand(len(by_pixel), -1, -1) if root is None else root(by_pixel)
        return detached(f), Derivatives({layer: Factors(inputs, columns.mT.unsqueeze(2).double())}, {})

    def _head_derivatives(self, rows: Tensor, root: Root | None) -> tuple[Tensor, Derivatives]:
        """Without a backward pass: the gradients at the layer's outputs are the columns themselves."""
        f, inputs = self.head_inputs(rows)
        if root is None:
            own = torch.eye(f.shape[1]).to(inputs).unsqueeze(1).expand(len(f), -1, -1, -1)
            return f, Derivatives({self.layers[0]: Factors(inputs, own, is_identity=True)}, {})
        return f, Derivatives({self.layers[0]: Factors(inputs, root(f).mT.unsqueeze(2).double())}, {})

    def _run(self, rows: Tensor, layers: Sequence[Layer]) -> tuple[Tensor, dict[Layer, list[tuple[Tensor, Tensor]]]]:
        """f with its graph, and what went into each layer and came out of it, use by use."""
        sought = {name for layer in layers for name in layer.names()}
        with torch.enable_grad(), _recorded(self.tree, layers) as uses:
            theta = {name: value.detach().requires_grad_(name in sought) for name, value in self.theta.items()}
            f = self.model.forward(theta, rows, net=self.tree, buffers=self.buffers)
        return f, uses

    def _factors(
        self, flat: Tensor, uses: Mapping[Layer, list[tuple[Tensor, Tensor]]], columns: Tensor
    ) -> dict[Layer, Factors]:
        outputs = [output for pairs in uses.values() for _, output in pairs]
        gradients: list[list[Tensor]] = [[] for _ in outputs]
        for number in range(columns.shape[2] if outputs else 0):
            of_column = torch.autograd.grad(
                flat,
                outputs,
                columns[:, :, number],
                retain_graph=True,
                create_graph=are_kept(),
                allow_unused=True,
                materialize_grads=True,
            )
            for kept, gradient in zip(gradients, of_column, strict=True):
                kept.append(gradient)
        stacked = iter([torch.stack(kept, dim=1).double() for kept in gradients])
        found = {}
        for layer, pairs in uses.items():
            module = self.tree.get_submodule(layer.path)
            if any(len(x) != len(flat) or len(output) != len(flat) for x, output in pairs):
                raise UnevenRowsError(layer.path)
            inputs = [_positions_of_inputs(layer, module, x).double() for x, _ in pairs]
            places = [_positions_of_outputs(module, next(stacked)) for _ in pairs]
            if not pairs:  # a layer that the network does not use
                inputs = [flat.new_zeros(len(flat), 1, layer.num_columns).double()]
                places = [flat.new_zeros(len(flat), columns.shape[2], 1, layer.shape[0]).double()]
            found[layer] = Factors(torch.cat(inputs, dim=1), torch.cat(places, dim=2))
        return found

    def _products(self, rows: Inputs, columns: Tensor) -> dict[str, Tensor]:
        """Of columns (N, K, R) of the outputs, in the parameters that are in no layer, (N, R, *shape), float64."""
        values = {name: self.theta[name] for name in self.other_names}
        if not values:
            return {}

        def of_row(row: Tensor, columns: Tensor) -> dict[str, Tensor]:
            def outputs(values: Mapping[str, Tensor]) -> Tensor:
                theta = {**self.theta, **values}
                f = self.model.forward(theta, row.unsqueeze(0), net=self.tree, buffers=self.buffers)
                return f.flatten()

            _, pull = torch.func.vjp(outputs, values)  # type: ignore[misc]
            return torch.func.vmap(pull, in_dims=1)(columns)[0]

        found = None
        # Gradients through torch's transforms are wrong in layer norms, whose statistics they take as constants.
        if isinstance(rows, Tensor) and not are_kept():
            # A module that vmap cannot follow, such as one that branches on its values, is asked row by row.
            with PlainAttention(), contextlib.suppress(RuntimeError):  # its operators have rules for vmap
                found = torch.func.vmap(of_row)(rows, columns)
        if found is None:
            parts = [self._products_of_row(one, own) for one, own in zip(rows.split(1), columns, strict=True)]
            found = {name: torch.stack([part[name] for part in parts]) for name in values}
        return {name: value.double() for name, value in found.items()}

    def _products_of_row(self, one: Inputs, columns: Tensor) -> dict[str, Tensor]:
        """The same of one row, a column at a time: (R, *shape)."""
        with torch.enable_grad():
            leaves = {name: self.theta[name].detach().requires_grad_() for name in self.other_names}
            theta = {**self.theta, **leaves}
            f = self.model.forward(theta, one, net=self.tree, buffers=self.buffers).flatten()
            keeping: dict[str, Any] = {"retain_graph": True, "create_graph": are_kept(), "materialize_grads": True}
            parts = [
                torch.autograd.grad(f, list(leaves.values()), column, **keeping) for column in columns.unbind(dim=1)
            ]
        return {name: torch.stack(each) for name, each in zip(leaves, zip(*parts, strict=True), strict=True)}

    def _agrees(self, layer: Layer, rows: Tensor) -> bool:
        """Whether the factors give the gradient of some combination of the outputs."""
        f, uses = self._run(rows, [layer])
        pairs = uses[layer]
        if any(len(x) != len(rows) or len(output) != len(rows) for x, output in pairs):
            return False
        if not f.requires_grad:
            return True  # the network does not use the layer
        tolerance = max((AGREEMENT[output.dtype] for _, output in pairs), default=0.0)
        direction = torch.linspace(1, 2, f.numel()).to(f).view(len(rows), -1, 1)
        factors = self._factors(f.flatten(1), uses, direction)[layer]
        found = layer.split(factors.matrix().sum(dim=(0, 1)))
        expected = self.gradient(rows, lambda f: (f * direction.view(f.shape)).sum(), list(found))
        return all(
            (mine - expected[name]).abs().max() <= tolerance * expected[name].abs().max()
            for name, mine in found.items()
        )


def as_outputs(flat: Tensor, shape: torch.Size) -> Tensor:
    """Numbers of rows (..., N, K) or of pixels (..., N H W, C) as (..., N, C, ...), f's shape."""
    if flat.shape[-2] == shape[0] and flat.shape[-1] == shape[1:].numel():
        return flat.reshape(*flat.shape[:-2], *shape)
    return flat.reshape(*flat.shape[:-2], shape[0], *shape[2:], shape[1]).movedim(-1, 1 - len(shape))


def _as_float64(value: Any) -> Any:
    """Real numbers in float64; whole ones as they are."""
    if isinstance(value, Parts):
        return value.map(_as_float64)
    return value.double() if value.is_floating_point() else value


def _layers(tree: nn.Module, names: Sequence[str]) -> list[Layer]:
    """The linear layers and convolutions that own some of the parameters named."""
    found = []
    for path, module in tree.named_modules():
        # Subclasses may do anything with their weights.
        plain = type(module) is nn.Linear or (
            type(module) in CONVOLUTIONS and module.groups == 1 and module.padding_mode == "zeros"
        )
        prefix = f"{path}." if path else ""
        weight, bias = (name if name in names else None for name in (f"{prefix}weight", f"{prefix}bias"))
        if plain and (weight or bias) and not isinstance(getattr(module, "padding", None), str):
            found.append(Layer(path, weight, bias, module.weight.shape))
    return found


@contextmanager
def _recorded(tree: nn.Module, layers: Sequence[Layer]) -> Iterator[dict[Layer, list[tuple[Tensor, Tensor]]]]:
    """What goes into the layers and comes out of them while the network runs."""
    uses: dict[Layer, list[tuple[Tensor, Tensor]]] = {layer: [] for layer in layers}

    def hook(layer: Layer) -> Callable[..., Tensor]:
        def record(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
            uses[layer].append((detached(args[0] if args else kwargs["input"]), output))
            return output.clone()  # what comes after may write into it

        return record

    handles = [tree.get_submodule(layer.path).register_forward_hook(hook(layer), with_kwargs=True) for layer in layers]
    try:
        yield uses
    finally:
        for handle in handles:
            handle.remove()


def _positions_of_inputs(layer: Layer, module: nn.Module, x: Tensor) -> Tensor:
    """What the layer multiplies at each position, (N, T, I), a last 1 for the bias."""
    patches = _patches(module, x) if isinstance(module, CONVOLUTIONS) else x.reshape(len(x), -1, x.shape[-1])
    columns = [patches] if layer.weight else []
    if layer.bias:
        columns.append(patches.new_ones(*patches.shape[:2], 1))
    return torch.cat(columns, dim=2)


def _patches(module: nn.Module, x: Tensor) -> Tensor:
    """What a convolution multiplies at each position, (N, T, I), in the order of its weights."""
    kernel, dilation, padding, stride = (
        cast("tuple[int, ...]", getattr(module, name)) for name in ("kernel_size", "dilation", "padding", "stride")
    )
    if len(kernel) == 2:
        return functional.unfold(x, kernel, dilation, padding, stride).mT
    windows = functional.pad(x, [size for size in reversed(padding) for _ in range(2)])
    for axis, (size, step) in enumerate(zip(kernel, stride, strict=True), start=2):
        windows = windows.unfold(axis, dilation[axis - 2] * (size - 1) + 1, step)[..., :: dilation[axis - 2]]
    by_position = windows.movedim(1, len(kernel) + 1)  # (N, positions, channels, kernel)
    return by_position.flatten(len(kernel) + 1).flatten(1, -2)


def _positions_of_outputs(module: nn.Module, gradients: Tensor) -> Tensor:
    """Gradients (N, K, ...) at a layer's outputs as (N, K, T, O)."""
    if isinstance(module, CONVOLUTIONS):
        return gradients.flatten(3).mT
    return gradients.reshape(*gradients.shape[:2], -1, gradients.shape[-1])


def _pushed_backwards(
    outputs: Callable[[Mapping[str, Tensor]], Tensor], values: Mapping[str, Tensor], deviations: Mapping[str, Tensor]
) -> Tensor:
    """J deviation, as the derivative of J^T u in u, which is linear in u."""
    with torch.enable_grad(), PlainAttention():
        leaves = {name: value.detach().requires_grad_() for name, value in values.items()}
        f = outputs(leaves)
        u = torch.zeros_like(f).requires_grad_()
        pulled = torch.autograd.grad(f, list(leaves.values()), u, create_graph=True, materialize_grads=True)
        directions = [deviations[name] for name in leaves]
        pushed = torch.autograd.grad(pulled, u, directions, create_graph=are_kept(), materialize_grads=True)[0]
        return detached(pushed)
