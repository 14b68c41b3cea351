"""How little the draws of a last layer differ where it has seen many pixels: mutual information against their number.

A law of P weights that N labels decide adds about P / (2 N) nats a label. The last layer's Laplace of a mode that
`segmentation.py` has kept is fitted to ever more pixels of `membrane`, and asked of a part of a test image.

    python scripts/pixels_and_draws.py runs/segmentation/membrane-map-0-*.safetensors
"""

import argparse
from pathlib import Path

import torch

import bayesuq as bq
from bayesuq.inference import laplace
from bayesuq.inference.posteriors.network_mode import MapPosterior

CROPS = ((1, 32), (1, 128), (4, 128), (4, 256))  # training images, and pixels a side of each
SIDE = 128  # pixels of the test image


def crop(data: bq.Dataset, num_images: int, side: int) -> bq.Dataset:
    """The upper left of the first images."""
    x, y = data.x[:num_images, :, :side, :side], data.y[:num_images, :side, :side]
    return bq.Dataset(x.contiguous(), y.contiguous())


def main(path: Path) -> None:
    """A line for each number of pixels."""
    split, mode = bq.datasets.load("membrane"), bq.load(path)
    if not isinstance(mode, MapPosterior):
        raise TypeError(f"{path} must hold a mode; got a {type(mode).__name__}.")
    x = crop(split.test, 1, SIDE).x
    for num_images, side in CROPS:
        posterior = laplace.fit(mode, crop(split.train, num_images, side), subset="last_layer", batch_size=1, seed=0)
        added, number = float(posterior.predict(x, num_samples=100, seed=0).epistemic.mean()), num_images * side**2
        print(f"{number:8d} pixels: mutual information {added:.2e} nats, {added * 2 * number:.1f} / (2 N)", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("posterior", type=Path)
    torch.set_num_threads(1)
    main(parser.parse_args().posterior)
