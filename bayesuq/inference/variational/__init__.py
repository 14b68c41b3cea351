"""Variational inference: Bayes by Backprop as SVI on the ELBO, with any guide; `fit` stands in `fitting`."""

from typing import TYPE_CHECKING

from bayesuq.faces import lazy

if TYPE_CHECKING:
    from bayesuq.inference.variational.factorised import VariationalPosterior as VariationalPosterior
    from bayesuq.inference.variational.fitting import fit as fit
    from bayesuq.inference.variational.guides import autoguide as autoguide
    from bayesuq.inference.variational.guides import full_rank as full_rank
    from bayesuq.inference.variational.guides import low_rank as low_rank
    from bayesuq.inference.variational.guides import mean_field as mean_field
    from bayesuq.inference.variational.tempering import annealed as annealed

__getattr__, __dir__, __all__ = lazy(__name__, returned=["VariationalPosterior"])
