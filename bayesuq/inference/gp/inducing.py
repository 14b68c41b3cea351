"""Where the inducing points of a sparse Gaussian process start: at the centres of clusters of the rows."""

import torch
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor

from bayesuq.data import Batch
from bayesuq.inference.training.minibatches import Source, all_rows
from bayesuq.randomness import derive_seed, generator

LOOKED_AT = 20_000  # rows that are clustered, and that units are learned from


def some_rows(source: Source, seed: int) -> Batch:
    """Enough rows to learn units from: all, a random part of many, the first batches of a loader."""
    if source.loader is None:
        rows = all_rows(source)
        if len(rows.x) <= LOOKED_AT:
            return rows
        chosen = torch.randperm(len(rows.x), generator=generator(seed))[:LOOKED_AT].to(rows.x.device)
        return rows.at(chosen)
    seen, batches = 0, []
    for batch in source.epoch(None):
        batches.append(batch)
        seen += len(batch.x)
        if seen >= LOOKED_AT:
            break
    weights = [batch.weight for batch in batches if batch.weight is not None]
    weight = torch.cat(weights) if len(weights) == len(batches) else None
    return Batch(torch.cat([batch.x for batch in batches]), torch.cat([batch.y for batch in batches]), weight)


def inducing_points(
    features: Tensor, spread: Tensor, number: int, seed: int, *, centre: Tensor | float = 0.0
) -> Tensor:
    """Centres of clusters in units of the features' spread, (M, K); all different rows where there are no more.

    Args:
        features: What the kernel looks at, (N, K).
        spread: Of each feature, (K,).
        number: M, at most.
        seed: Of the clustering.
        centre: What is taken off before, (K,): far from 0, distances would be rounding.
    """
    distinct = torch.unique(features, dim=0)
    if len(distinct) <= number:
        return distinct
    scaled = ((features - centre) / spread).cpu().numpy()
    clusters = MiniBatchKMeans(
        number, init="random", n_init=1, batch_size=max(1024, 3 * number), random_state=derive_seed(seed) % 2**32
    )
    centres = torch.as_tensor(clusters.fit(scaled).cluster_centers_, dtype=features.dtype)
    centres = torch.unique(centres, dim=0)  # clusters that lost all their rows keep their centre
    return centre + centres.to(features.device) * spread
