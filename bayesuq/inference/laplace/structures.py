"""Normal laws of the weights whose precision is a curvature plus a prior's: diagonal, Kronecker-factored, full.

    precision = H + P,      H = sum_n w_n J_n^T Lambda_n J_n,      P = diag(prior precisions)

With B the Jacobian of the columns of a root of Lambda (see `curvature`), each structure sums over rows

    diagonal     sum B^2
    Kronecker    for the weights of a layer as a matrix (O, I):  H ~ G x A,  A = sum w a a^T,  G = mean of w g g^T
    full         sum B^T B

where a are a layer's inputs, its bias being the weight of an input 1, and g the columns' gradients at its outputs. A
layer that acts at several positions, as a convolution does, has each of them counted as a row of its own (the "expand"
variant of Eschenhagen et al. 2023). Parameters of other modules get a diagonal. All sums are in float64. A layer that
has seen fewer rows than half its columns keeps the rows w^(1/2) a^T in the place of A (see `axes`).

Of large maps the columns are random combinations, and the sums estimates of these (see `curvature_sketches`).

Reference:
    Ritter, Botev & Barber 2018, A Scalable Laplace Approximation for Neural Networks; Eschenhagen et al. 2023,
    Kronecker-Factored Approximate Curvature for Modern Neural Network Architectures.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from bayesuq.inference.joint.layout import Layout
from bayesuq.inference.laplace.axes import Axes
from bayesuq.inference.laplace.factors import Derivatives, Factors, Layer, columns
from bayesuq.inference.laplace.few_rows import OutputsAtRows
from bayesuq.waiting import check

NUMBERS_AT_A_TIME = 2**17  # of a layer of many, in sums over them
INPUTS, ROWS = "inputs.", "rows."  # before a layer's path: A, or the rows whose products it sums


class NormalWeights(ABC):
    """A normal law around 0 of the weights named, R numbers in all."""

    @staticmethod
    @abstractmethod
    def sums(derivatives: Derivatives, weight: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """What some rows add to the curvature, which is linear in it.

        Args:
            derivatives: Of the columns of the root.
            weight: Of the rows, (N,).
            names: Of the parameters, in order.
        """

    @staticmethod
    @abstractmethod
    def softmax_sums(layer: Layer, inputs: Tensor, probs: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """The same for a linear layer that gives the logits of labels, from Lambda = diag(p) - p p^T itself.

        It takes O(N C) numbers and no C columns of a root for each row.

        Args:
            layer: The only one.
            inputs: a, (N, 1, I).
            probs: p, (N, C), float64.
            weight: Of the rows, (N,).
        """

    @staticmethod
    def added(sums: Mapping[str, Tensor], found: Mapping[str, Tensor], layers: Sequence[Layer]) -> dict[str, Tensor]:  # noqa: ARG004
        """Two curvatures together, in the memory of the first."""
        return {name: value.add_(found[name]) for name, value in sums.items()}

    def __init__(self, curvature: Mapping[str, Tensor], prior: Mapping[str, Tensor], layers: Sequence[Layer]) -> None:
        """Take curvature and prior together.

        Args:
            curvature: The sums over all rows.
            prior: Precisions by parameter, (*shape), above 0, float64.
            layers: As in the derivatives.
        """
        self.curvature, self.prior, self.layers = curvature, prior, layers
        self.layout = Layout({name: value.shape for name, value in prior.items()}, {})

    @abstractmethod
    def eigenvalues(self) -> Tensor:
        """Of P^(-1/2) H P^(-1/2), (R,): with the prior scaled by t, log det = log det P + sum log(t + eigenvalues)."""

    def num_determined(self) -> Tensor:
        """tr(H (H + P)^-1), how many directions the data determine rather than the prior, 0-d."""
        parts = self.eigenvalues().split(NUMBERS_AT_A_TIME)  # the quotients of all would be two more of them
        return torch.stack([(part / (1 + part)).sum() for part in parts]).sum()

    @abstractmethod
    def deviation(self, noise: Tensor) -> Tensor:
        """A linear map of standard normal noise (S, R) to draws of the law (S, R), in its dtype."""

    @abstractmethod
    def output_covariance(self, derivatives: Derivatives) -> Tensor:
        """J Sigma J^T at each row, (N, K, K)."""

    def output_variance(self, derivatives: Derivatives) -> Tensor:
        """Its diagonal, (N, K)."""
        return self.output_covariance(derivatives).diagonal(dim1=1, dim2=2)

    def pushed(self, derivatives: Derivatives, noise: Tensor) -> Tensor:
        """J deviation(noise), (S, N, K), of standard normal noise (S, R), in its dtype."""
        return derivatives.pushed(self.layout.split(self.deviation(noise)))

    def outputs_at(self, derivatives: Derivatives) -> OutputsAtRows | None:  # noqa: ARG002
        """The law of a last layer's outputs at all of some rows together; None where weights have to be drawn."""
        return None

    def log_det(self) -> Tensor:
        """Of the precision, 0-d; autograd can follow it to the prior's precisions."""
        return self.log_det_prior() + self.eigenvalues().log1p().sum()

    def square(self, vector: Mapping[str, Tensor], derivatives: Callable[[], Derivatives]) -> Tensor:  # noqa: ARG002
        """v^T Sigma v, 0-d, of numbers for each parameter (*shape), and the same as derivatives of one output."""
        return self.output_covariance(derivatives()).sum()

    def log_det_prior(self) -> Tensor:
        """Of the prior's precision, 0-d."""
        return torch.stack([value.log().sum() for value in self.prior.values()]).sum()


class DiagonalWeights(NormalWeights):
    """Independent weights."""

    @staticmethod
    def sums(derivatives: Derivatives, weight: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """sum B^2 by name, (*shape)."""
        found = _diagonals(derivatives.others, weight)
        for layer, factors in derivatives.layers.items():
            found |= layer.split(factors.squares(weight))
        return {name: found[name] for name in names}

    @staticmethod
    def softmax_sums(layer: Layer, inputs: Tensor, probs: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """sum w p (1 - p) a^2 by name, (*shape)."""
        return layer.split((probs * (1 - probs) * weight.unsqueeze(1)).T @ inputs[:, 0].square())

    def eigenvalues(self) -> Tensor:
        """H / P."""
        return self.layout.join({name: self.curvature[name] / self.prior[name] for name in self.prior})

    def deviation(self, noise: Tensor) -> Tensor:
        """Noise times the standard deviations."""
        return noise * self.layout.join(self._variances).sqrt().to(noise.dtype)

    def outputs_at(self, derivatives: Derivatives) -> OutputsAtRows | None:
        """Outputs are independent of each other."""
        head = _head(derivatives)
        if head is None:
            return None
        return OutputsAtRows.of(head.inputs[:, 0], next(iter(derivatives.layers)).join(self._variances), None)

    def output_covariance(self, derivatives: Derivatives) -> Tensor:
        """J Sigma J^T at each row, (N, K, K)."""
        parts = [factors.covariance(layer.join(self._variances)) for layer, factors in derivatives.layers.items()]
        return _total([*parts, *_covariances(derivatives.others, self._variances)])

    @cached_property
    def _variances(self) -> dict[str, Tensor]:
        return {name: 1 / (self.curvature[name] + self.prior[name]) for name in self.prior}


class KroneckerWeights(NormalWeights):
    """Independent layers; within one, precision = D^(1/2) (G x D^(-1/2) A D^(-1/2) + 1) D^(1/2).

    D are the prior's precisions, one for each column of the layer's matrix, so that weights and bias may have priors of
    their own.
    """

    @staticmethod
    def sums(derivatives: Derivatives, weight: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """For each layer A or its rows, the sum that G is the mean of, its divisor; then the other diagonals."""
        found: dict[str, Tensor] = {}
        for layer, factors in derivatives.layers.items():
            gradients = factors.gradients * weight.sqrt()[:, None, None, None]
            flat = gradients.flatten(0, 2)
            found |= _of_inputs(layer.path, factors.inputs, weight)
            found[f"gradients.{layer.path}"] = flat.T @ flat
            found[f"count.{layer.path}"] = weight.sum() * factors.inputs.shape[1]
        others = _diagonals(derivatives.others, weight)
        return found | {name: others[name] for name in names if name in others}

    @staticmethod
    def softmax_sums(layer: Layer, inputs: Tensor, probs: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """As `sums`, with sum w (diag(p) - p p^T)."""
        weighted = probs * weight.unsqueeze(1)
        return {
            **_of_inputs(layer.path, inputs, weight),
            f"gradients.{layer.path}": weighted.sum(dim=0).diag() - weighted.T @ probs,
            f"count.{layer.path}": weight.sum(),
        }

    @staticmethod
    def added(sums: Mapping[str, Tensor], found: Mapping[str, Tensor], layers: Sequence[Layer]) -> dict[str, Tensor]:
        """Two curvatures together, in the memory of the first."""
        of_layers = {prefix + layer.path for layer in layers for prefix in (INPUTS, ROWS)}
        total = {name: value.add_(found[name]) for name, value in sums.items() if name not in of_layers}
        for layer in layers:
            total |= _added_inputs(layer.path, sums, found)
        return total

    def eigenvalues(self) -> Tensor:
        """Products of those of the whitened factors, and H / P of the other parameters."""
        pairs = [self._eigen(layer) for layer in self.layers]
        of_layers = [(outputs.values.unsqueeze(1) * inputs.all_values()).flatten() for inputs, outputs in pairs]
        return torch.cat(of_layers + [(self.curvature[name] / self.prior[name]).flatten() for name in self._others])

    def deviation(self, noise: Tensor) -> Tensor:
        """D^(-1/2) times rotated and scaled noise, layer by layer."""
        own = self.layout.split(noise)
        parts = {name: own[name] * value.sqrt().to(noise.dtype) for name, value in self._other_variances.items()}
        for layer in self.layers:
            inputs, outputs = self._eigen(layer)
            scales = ((1 + self._products(layer)) ** -0.5).to(noise.dtype)
            turned = inputs.turned(layer.join(own), scales) * (self._columns(layer) ** -0.5).to(noise.dtype)
            parts |= layer.split(outputs.vectors.to(noise.dtype) @ turned)
        return self.layout.join(parts)

    def output_covariance(self, derivatives: Derivatives) -> Tensor:
        """J Sigma J^T at each row, (N, K, K)."""
        parts = []
        for layer, factors in derivatives.layers.items():
            inputs, outputs = self._eigen(layer)
            whitened = inputs.coordinates(factors.inputs * self._columns(layer) ** -0.5)
            if factors.is_identity:  # one matrix for all rows
                rotated = Factors(whitened, outputs.vectors.unsqueeze(1).expand(len(whitened), -1, -1, -1))
            else:
                rotated = Factors(whitened, factors.gradients @ outputs.vectors)
            parts.append(rotated.covariance(self._variances(layer)))
        return _total([*parts, *_covariances(derivatives.others, self._other_variances)])

    def output_variance(self, derivatives: Derivatives) -> Tensor:
        """Its diagonal, (N, K): of a head in O(N K^2) time, without the products of outputs."""
        head = _head(derivatives)
        if head is None:
            return super().output_variance(derivatives)
        _, outputs = self._eigen(self.layers[0])
        return (self._whitened(head).square() @ self._variances(self.layers[0]).T) @ outputs.vectors.square().T

    def pushed(self, derivatives: Derivatives, noise: Tensor) -> Tensor:
        """J deviation(noise), (S, N, K): of a head at few rows without turning the noise into weights."""
        head = _head(derivatives)
        if head is None or len(head.inputs) > head.inputs.shape[2]:
            return super().pushed(derivatives, noise)
        layer = self.layers[0]
        inputs, outputs = self._eigen(layer)
        scales = ((1 + self._products(layer)) ** -0.5).to(noise.dtype)
        rows = self._whitened(head).T.to(noise.dtype)
        drawn = [
            inputs.spread(layer.join(self.layout.split(one)), scales) @ rows for one in noise
        ]  # each fits the cache
        return torch.stack([one.T for one in drawn]) @ outputs.vectors.T.to(noise.dtype)

    def outputs_at(self, derivatives: Derivatives) -> OutputsAtRows | None:
        """Outputs are independent of each other in the axes of the curvature."""
        head = _head(derivatives)
        if head is None:
            return None
        _, outputs = self._eigen(self.layers[0])
        return OutputsAtRows.of(self._whitened(head), self._variances(self.layers[0]), outputs.vectors)

    def square(self, vector: Mapping[str, Tensor], derivatives: Callable[[], Derivatives]) -> Tensor:  # noqa: ARG002
        """v^T Sigma v, layer by layer in the axes of the curvature, 0-d."""
        total = torch.zeros((), dtype=torch.float64, device=next(iter(vector.values())).device)
        for layer in self.layers:
            inputs, outputs = self._eigen(layer)
            matrix = layer.join({name: vector[name] for name in layer.names()}) * self._columns(layer) ** -0.5
            together = max(1, NUMBERS_AT_A_TIME // len(inputs.vectors))  # of the outputs' axes, not all: they are large
            for values, axes in zip(outputs.values.split(together), outputs.vectors.T.split(together), strict=True):
                variances = inputs.weights(1 / (1 + values.unsqueeze(1) * inputs.values))
                total += (inputs.coordinates(axes @ matrix).square() * variances).sum()
        for name, variances in self._other_variances.items():
            total += (vector[name].square() * variances).sum()
        return total

    def _whitened(self, head: Factors) -> Tensor:
        """A layer's inputs in the axes of the curvature, (N, ...)."""
        inputs, _ = self._eigen(self.layers[0])
        return inputs.coordinates(head.inputs[:, 0] * self._columns(self.layers[0]) ** -0.5)

    @cached_property
    def _others(self) -> list[str]:
        taken = {name for layer in self.layers for name in layer.names()}
        return [name for name in self.prior if name not in taken]

    @cached_property
    def _other_variances(self) -> dict[str, Tensor]:
        return {name: 1 / (self.curvature[name] + self.prior[name]) for name in self._others}

    def _columns(self, layer: Layer) -> Tensor:
        """D, (I,).

        Raises:
            ValueError: Precisions that differ down a column.
        """
        precisions = layer.join(self.prior)
        check(
            (precisions == precisions[:1]).all(),
            lambda: ValueError(
                f"A Kronecker structure needs one prior scale for all outputs of a layer; in layer {layer.path!r} it "
                "differs. Take another structure, or another prior."
            ),
        )
        return precisions[0]

    def _products(self, layer: Layer) -> Tensor:
        """Eigenvalues of the whitened curvature, (O, R): those of the inputs' axes that are not 0, or all."""
        inputs, outputs = self._eigen(layer)
        return outputs.values.unsqueeze(1) * inputs.values

    def _variances(self, layer: Layer) -> Tensor:
        """Of a whitened layer's weights in the coordinates of its axes, (O, ...)."""
        return self._eigen(layer)[0].weights(1 / (1 + self._products(layer)))

    def _eigen(self, layer: Layer) -> tuple[Axes, Axes]:
        """The axes of D^(-1/2) A D^(-1/2) and of G."""
        if layer.path not in self._decompositions:
            root = self._columns(layer) ** -0.5
            count = self.curvature[f"count.{layer.path}"].clamp(min=torch.finfo(torch.float64).tiny)
            outputs = Axes.of_matrix(lambda: self.curvature[f"gradients.{layer.path}"] / count)
            if ROWS + layer.path in self.curvature:
                inputs = Axes.of_rows(self.curvature[ROWS + layer.path] * root)
            else:
                inputs = Axes.of_matrix(lambda: self.curvature[INPUTS + layer.path] * (root * root.unsqueeze(1)))
            self._decompositions[layer.path] = (inputs, outputs)
        return self._decompositions[layer.path]

    @cached_property
    def _decompositions(self) -> dict[str, tuple[Axes, Axes]]:
        return {}


class FullWeights(NormalWeights):
    """All correlations: O(R^2) memory and O(R^3) time."""

    @staticmethod
    def sums(derivatives: Derivatives, weight: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """sum B^T B, (R, R)."""
        scaled = derivatives.flat(names) * weight.sqrt()[:, None, None]
        flat = scaled.flatten(0, 1)
        return {"full": flat.T @ flat}

    @staticmethod
    def softmax_sums(layer: Layer, inputs: Tensor, probs: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """sum w (diag(p) - p p^T) x (a a^T), a block for each two classes, in the order of the layer's parameters."""
        a, (num_classes, width) = inputs[:, 0], (probs.shape[1], inputs.shape[2])
        blocks = a.new_empty(num_classes, width, num_classes, width)
        for one in range(num_classes):
            for other in range(one + 1):
                of_rows = weight * probs[:, one] * (float(one == other) - probs[:, other])
                blocks[one, :, other] = blocks[other, :, one] = (a * of_rows.unsqueeze(1)).T @ a
        shapes = {name: part.shape for name, part in layer.split(blocks[:, :, 0, 0]).items()}
        layout = Layout({name: shapes[name] for name in layer.names()}, {})
        order = layer.join(layout.split(torch.arange(layout.size, device=a.device))).flatten()
        full = torch.empty(layout.size, layout.size, dtype=a.dtype, device=a.device)
        full[order.unsqueeze(1), order] = blocks.view(layout.size, layout.size)
        return {"full": full}

    def eigenvalues(self) -> Tensor:
        """Of the whitened curvature."""
        root = self.layout.join(self.prior) ** -0.5
        return torch.linalg.eigvalsh(self.curvature["full"] * root * root.unsqueeze(1)).clamp(min=0)

    def log_det(self) -> Tensor:
        """Of the precision, 0-d."""
        return 2 * self._cholesky.diag().log().sum()

    def num_determined(self) -> Tensor:
        """R - tr(P Sigma), which needs no eigenvalues."""
        variances = torch.cholesky_inverse(self._cholesky).diag()
        return self.layout.size - (self.layout.join(self.prior) * variances).sum()

    def deviation(self, noise: Tensor) -> Tensor:
        """L^(-T) noise, with L L^T the precision; in float64, for L may be ill-conditioned."""
        return torch.linalg.solve_triangular(self._cholesky.T, noise.T.double(), upper=True).T.to(noise.dtype)

    def output_covariance(self, derivatives: Derivatives) -> Tensor:
        """J Sigma J^T at each row, (N, K, K)."""
        factors = list(derivatives.layers.values())
        if len(factors) == 1 and not derivatives.others and factors[0].inputs.shape[1] == 1:
            return self._of_one_layer(factors[0])
        jacobian = derivatives.flat(list(self.prior))
        solved = torch.linalg.solve_triangular(self._cholesky, jacobian.flatten(0, 1).T, upper=False)  # L^-1 J^T
        roots = solved.T.view(jacobian.shape)
        return roots @ roots.mT

    def _of_one_layer(self, factors: Factors) -> Tensor:
        """J Sigma J^T where J_nk = g_nk a_n^T: less by a factor of K than with the Jacobian as it is."""
        a, g = factors.inputs[:, 0], factors.gradients[:, :, 0]
        num_outputs = g.shape[2]
        between = a.new_empty(len(a), num_outputs, num_outputs)  # a^T Sigma_op a for outputs o and p of the layer
        for o in range(num_outputs):
            for p in range(o + 1):
                between[:, o, p] = between[:, p, o] = ((a @ self._blocks[o, :, p]) * a).sum(dim=1)
        return g @ between @ g.mT

    @cached_property
    def _blocks(self) -> Tensor:
        """The covariance of the weights of the one layer, (O, I, O, I)."""
        (layer,) = self.layers
        numbers = self.layout.split(torch.arange(self.layout.size, device=self._cholesky.device))
        order = layer.join(numbers)
        covariance = torch.cholesky_inverse(self._cholesky)[order.flatten().unsqueeze(1), order.flatten()]
        return covariance.view(*order.shape, *order.shape)

    @cached_property
    def _cholesky(self) -> Tensor:
        return torch.linalg.cholesky(self.curvature["full"] + self.layout.join(self.prior).diag())


STRUCTURES: dict[str, type[NormalWeights]] = {
    "diagonal": DiagonalWeights,
    "kronecker": KroneckerWeights,
    "full": FullWeights,
}


def _head(derivatives: Derivatives) -> Factors | None:
    """The factors where the derivatives are of a layer's own outputs, and of nothing else."""
    factors = list(derivatives.layers.values())
    is_head = len(factors) == 1 and not derivatives.others and factors[0].is_identity
    return factors[0] if is_head else None


def _are_few(num_rows: int, num_columns: int) -> bool:
    """Whether rows take less memory than the sum of their products, and the eigenproblem of these."""
    return 2 * num_rows <= num_columns


def _of_inputs(path: str, inputs: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """A = sum w a a^T of a layer, or the rows w^(1/2) a^T, of inputs (N, T, I)."""
    rows = (inputs * weight.sqrt()[:, None, None]).flatten(0, 1)
    return {ROWS + path: rows} if _are_few(*rows.shape) else {INPUTS + path: rows.T @ rows}


def _added_inputs(path: str, sums: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The two A of a layer together, as rows as long as these are few."""
    rows = [each[ROWS + path] for each in (sums, found) if ROWS + path in each]
    if len(rows) == 2 and _are_few(len(rows[0]) + len(rows[1]), rows[0].shape[1]):
        return {ROWS + path: torch.cat(rows)}
    matrices = [each[INPUTS + path] for each in (sums, found) if INPUTS + path in each]
    total = matrices[0] if matrices else rows[0].T @ rows[0]
    for matrix in matrices[1:]:
        total.add_(matrix)
    for own in rows[0 if matrices else 1 :]:
        total.addmm_(own.T, own)
    return {INPUTS + path: total}


def _diagonals(others: Mapping[str, Tensor], weight: Tensor) -> dict[str, Tensor]:
    return {name: torch.einsum("nk...,n->...", jacobian.square(), weight) for name, jacobian in others.items()}


def _covariances(others: Mapping[str, Tensor], variances: Mapping[str, Tensor]) -> list[Tensor]:
    """J Sigma J^T of each parameter with independent entries."""
    found = []
    for name, jacobian in others.items():
        flat = columns(jacobian)
        found.append((flat * variances[name].flatten()) @ flat.mT)
    return found


def _total(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(parts)).sum(dim=0)
