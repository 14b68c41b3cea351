"""Draws of the latents of a Pyro program as a posterior: it predicts by the program itself, is saved and told to ArviZ.

p(y* | x, D) = mean over s of p(y* | x, theta_s),      the law of the observed site in a run at theta_s
"""

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Unpack

import torch
from pyro import poutine
from pyro.poutine.condition_messenger import ConditionMessenger
from torch import Tensor
from torch.utils.data import DataLoader

from bayesuq.arrays import ArrayLike
from bayesuq.gradients import unless_kept
from bayesuq.inference.joint.program_call import ProgramCall
from bayesuq.inference.joint.programs import is_subsample, private_store
from bayesuq.inference.posteriors.network import StoredPosterior
from bayesuq.inference.posteriors.prediction import differentiated, draw_indices, mixed, predict_batches
from bayesuq.inference.posteriors.program_predictive import predictive_of
from bayesuq.inputs import Inputs, Parts, as_rows, checked, in_dtype, named_leaves
from bayesuq.models.program import Program
from bayesuq.predictive.base import PredictiveDistribution
from bayesuq.predictive.laws import unwrapped
from bayesuq.randomness import derive_seed, globally_isolated, resolve_seed
from bayesuq.to_arviz.groups import Drawn, Wanted, chain_facts, number_of_draws
from bayesuq.windows import WindowOptions, refuse_windows

LOCAL = (
    "The latents {names} belong to single rows of the data, so that there are draws of them for the {number} rows that "
    "were fitted alone; got {got}. Predict these rows, or index the latents by a group that new rows share."
)
SEEN = "_observed"  # what `obs_mask` calls the site of the targets that are there


class LatentPosterior(StoredPosterior):
    """A posterior over the latents of a Pyro program: it names draws of them, and this class predicts with them.

    Attributes:
        program: As it was passed, which a file does not hold.
        observed: Names of its observed sites.
        local: Latents with numbers of their own for each row.
        rows: Inputs by the names of their parts: those that were fitted where a latent is local, else the first.
    """

    program: Program
    observed: tuple[str, ...]
    local: tuple[str, ...]
    rows: Mapping[str, Tensor]

    @property
    @abstractmethod
    def num_members(self) -> int | None:
        """M, the number of stored draws; None where draws are without end."""

    @abstractmethod
    def latents(self, index: int, seed: int) -> dict[str, Tensor]:
        """The latents at draw number `index`, on their own support; it depends on `index` and `seed` alone."""

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(iter(self.rows.values())).device

    def predict(
        self,
        x: "ArrayLike | DataLoader[Any]",
        *,
        num_samples: int | None = None,
        seed: int | None = None,
        keep_samples: bool = False,
        differentiable: bool = False,
        site: str | None = None,
        **windows: Unpack[WindowOptions],
    ) -> PredictiveDistribution:
        """The predictive distribution p(y* | x, D): see `Posterior.predict`.

        Args:
            x: See there.
            num_samples: See there.
            seed: See there.
            keep_samples: See there.
            differentiable: See there.
            site: The observed site that is predicted, where the program has several.
            windows: Refused.

        Raises:
            TypeError: See `Posterior.predict`; or a law that has no predictive.
            ValueError: See `Posterior.predict`; a site that is not observed, or none named of several; other rows than
                those fitted where latents belong to rows; a program that does not run without targets.
        """
        refuse_windows(self, windows)
        name = self._site(site)
        indices, key = draw_indices(num_samples, self.num_members), resolve_seed(seed)

        def whole(batch: ArrayLike) -> list[PredictiveDistribution]:
            rows = self._inputs(batch)
            parts = self._parts(rows, indices, key, name, keep_samples=keep_samples)
            return [mixed(parts, keep_samples=keep_samples)]

        with differentiated(x, differentiable=differentiable):
            return predict_batches(self.by_name(x), whole, keep_samples=keep_samples)

    def families(self) -> dict[str, str]:
        """The class of the law of each site, by name; none of a program that does not run without targets."""
        return {name: type(unwrapped(site["fn"])).__name__ for name, site in self._sites().items()}

    def check_program(self, families: Mapping[str, str]) -> None:
        """Refuse a program whose sites are not those that were fitted, where it runs without targets.

        Args:
            families: What `families` told when the posterior was saved; files of before have none.

        Raises:
            ValueError: A latent that the program does not sample, or samples in another shape, and laws of other
                classes.
        """
        sites = self._sites()
        for name, value in self.latents(0, 0).items() if sites else ():
            law = sites[name]["fn"] if name in sites else None
            shape = None if law is None else tuple(law.batch_shape + law.event_shape)
            if shape != tuple(value.shape):
                found = "does not sample it" if shape is None else f"samples it with shape {shape}"
                raise _not_fitted(f"the file has draws of {name!r} with shape {tuple(value.shape)}", found)
        for name, site in sites.items():
            own = type(unwrapped(site["fn"])).__name__
            if families.get(name, own) != own:
                raise _not_fitted(f"the file's {name!r} is {families[name]}", f"has {own} there")

    def _sites(self) -> dict[str, Any]:
        """What the program samples and observes when it is run forwards, where that can be done without targets."""
        try:
            nodes = self._run(from_parts(self.rows), 0).nodes
        except (ValueError, RuntimeError):
            return {}
        return _sampled(nodes)

    def sample_weights(self, num_samples: int | None = None, *, seed: int | None = None) -> dict[str, Tensor]:
        """Draws of every latent by name, (S, ...); the same seed gives the same draws to `predict`."""
        key = resolve_seed(seed)
        draws = [self.latents(index, key) for index in draw_indices(num_samples, self.num_members)]
        return {name: torch.stack([draw[name] for draw in draws]) for name in draws[0]}

    def drawn(self, wanted: Wanted) -> Drawn:
        """What `to_arviz` is made of; the prior is the program run forwards."""
        number = number_of_draws(self, wanted.num_samples)
        return Drawn(
            method=type(self).__name__,
            weights=self.sample_weights(number, seed=wanted.seed),
            predict=partial(self.predict, num_samples=number, seed=wanted.seed, keep_samples=True),
            prior=self._prior,
            prior_predict=self._prior_predict,
            sites=self.observed,
            **chain_facts(self, number),
        )

    @cached_property
    def call(self) -> ProgramCall:
        """The program, and how it takes data."""
        return ProgramCall(self.program, self.observed)

    def _site(self, site: str | None) -> str:
        names = ", ".join(repr(name) for name in self.observed) or "none"
        if site is None and len(self.observed) == 1:
            return self.observed[0]
        if not self.observed:
            raise ValueError(
                "The program observes no site, its data enter by factors, so that it has no predictive. Sample them: "
                '`pyro.sample("y", law, obs=y)`.'
            )
        if site is None or site not in self.observed:
            asked = "`site` must name" if site is None else f"`site` {site!r} is not"
            raise ValueError(f"{asked} one of the program's observed sites: {names}.")
        return site

    def _inputs(self, x: ArrayLike) -> Inputs:
        """Checked inputs, as the program takes them."""
        dtype = next((leaf.dtype for leaf in self.rows.values() if leaf.is_floating_point()), torch.get_default_dtype())
        rows = checked(x)
        rows = in_dtype(rows, self.device, dtype, whole=isinstance(rows, Parts))
        fitted = len(next(iter(self.rows.values())))
        if self.local and len(rows) != fitted:
            told = LOCAL.format(names=", ".join(self.local), number=fitted, got=f"{len(rows)} rows")
            raise ValueError(told)
        return rows

    def _parts(
        self, rows: Inputs, indices: Sequence[int], key: int, site: str, *, keep_samples: bool
    ) -> Iterator[PredictiveDistribution]:
        """The predictives of single draws."""
        for index in indices:
            trace = self._run(rows, derive_seed(key, index), self.latents(index, key))
            yield predictive_of(self._law(trace, site, len(rows)), keep_samples=keep_samples, site=site)

    def _run(self, rows: Inputs, seed: int, latents: Mapping[str, Tensor] | None = None) -> Any:
        """A trace of the program run forwards, at latents or at draws of its prior."""
        data = {} if latents is None else latents
        try:
            with self._alone(seed), poutine.trace() as tracer, AtDraw(data=dict(data)):
                self.call.run_forwards(rows)
        except (TypeError, AttributeError, NotImplementedError) as error:
            raise ValueError(
                f"The program does not run without targets, as predicting does: {error}. Let it take y=None, and pass "
                "`obs=y` to pyro.sample as it comes; a flat prior has no draws."
            ) from error
        return tracer.trace

    @contextmanager
    def _alone(self, seed: int) -> Iterator[None]:
        with unless_kept(), private_store(), globally_isolated(seed, device=self.device):
            yield

    def _law(self, trace: Any, site: str, number: int) -> Any:
        """The law of an observed site at N rows."""
        found = trace.nodes.get(site) or trace.nodes.get(site.removesuffix(SEEN))  # as `obs_mask` without targets
        shape = () if found is None else found["fn"].batch_shape + found["fn"].event_shape
        if found is None or shape[:1] != (number,):
            raise ValueError(
                f"The program's {site!r} must have a row for each row of x; for {number} rows it has shape "
                f"{tuple(shape) if found is not None else 'none: run without targets, it does not sample it'}. Observe "
                "all rows by one site; without inputs, `summary()` and `to_arviz()` tell the latents' draws."
            )
        return found["fn"]

    def _prior(self, number: int, seed: int) -> dict[str, Tensor]:
        """Draws of every latent from the program's prior, (S, ...)."""
        rows = from_parts(self.rows)
        traces = [self._run(rows, derive_seed(seed, index)) for index in range(number)]
        sites = _sampled(traces[0].nodes).items()
        names = [name for name, site in sites if name not in self.observed and not site["is_observed"]]
        return {name: torch.stack([trace.nodes[name]["value"] for trace in traces]) for name in names}

    def _prior_predict(self, x: Any, number: int, seed: int, site: str | None = None) -> PredictiveDistribution:
        """The predictive of these draws, at one of several observed sites."""
        rows, name = self._inputs(x), self._site(site)
        laws = (self._law(self._run(rows, derive_seed(seed, index)), name, len(rows)) for index in range(number))
        return mixed(predictive_of(law, keep_samples=True, site=name) for law in laws)


def _sampled(nodes: Mapping[str, Any]) -> dict[str, Any]:
    """The sites of a trace that are sampled or observed, without the rows that a plate takes."""
    return {name: site for name, site in nodes.items() if site["type"] == "sample" and not is_subsample(site)}


def _not_fitted(told: str, found: str) -> ValueError:
    return ValueError(f"The model is not the file's: {told}, and the program {found}. Pass the one that was fitted.")


class AtDraw(ConditionMessenger):
    """Puts latents where a draw has them; what the program works out of them it works out again, at these rows."""

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["infer"].get("_deterministic"):
            super()._pyro_sample(msg)


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class ProgramChains(LatentPosterior):
    """C chains of D draws of a program's latents, one chain after another.

    Attributes:
        program: As in `LatentPosterior`, like the following.
        observed: See there.
        local: See there.
        rows: See there.
        draws: Of each latent on its own support, (C, D, ...).
        statistics: Of each draw, (C, D), by ArviZ's names: of chains of NUTS those of `HmcPosterior`.
        warmup_statistics: Of the warm-up, (C, W).
        inverse_mass: Variances of the unconstrained latents as adapted, (C, P), or covariances, (C, P, P), by dense
            masses; empty where nothing was.
        ends: What `hmc.extend` goes on from; empty of other chains, and of those of before.
    """

    program: Program
    observed: tuple[str, ...]
    local: tuple[str, ...]
    rows: Mapping[str, Tensor]
    draws: Mapping[str, Tensor]
    statistics: Mapping[str, Tensor]
    warmup_statistics: Mapping[str, Tensor]
    inverse_mass: Tensor
    ends: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def num_chains(self) -> int:
        """C."""
        return next(iter(self.draws.values())).shape[0]

    @property
    def num_members(self) -> int:
        """C D."""
        first = next(iter(self.draws.values()))
        return first.shape[0] * first.shape[1]

    @property
    def num_divergences(self) -> int:
        """Draws whose trajectories diverged."""
        return int(self.statistics["diverging"].sum()) if "diverging" in self.statistics else 0

    def latents(self, index: int, seed: int) -> dict[str, Tensor]:  # noqa: ARG002 - draws are stored
        """Draw number `index` in the order of the chains, one after another."""
        return {name: values[divmod(index, values.shape[1])] for name, values in self.draws.items()}


def parts_of(x: Any) -> dict[str, Tensor]:
    """Inputs by the names of their parts, as a file holds them."""
    return dict(named_leaves(as_rows(x)))


def from_parts(parts: Mapping[str, Tensor]) -> Inputs:
    """The inputs again: `x`, or a tuple `x[0]`, ..., or a mapping `x.name`, ..."""
    if set(parts) == {"x"}:
        return parts["x"]
    if all(name.startswith("x.") for name in parts):
        return Parts({name.removeprefix("x."): leaf for name, leaf in parts.items()})
    return Parts(tuple(parts.values()))
