"""What the MNIST fits of `mnist.py --part val` did over their epochs: training loss, and that of validation images."""

import argparse
from pathlib import Path

from bayesuq.evaluation import plots
from scripts.mnist import SETTINGS
from scripts.mnist_methods import read_settings
from scripts.recording import Record, Records, digest

DOCS = Path(__file__).parents[1] / "docs"


def curves(records: list[Record], settings: Path) -> dict[str, dict[str, list[float]]]:
    """By method, the losses over the epochs of its first seed (of an ensemble, those of its first member)."""
    found = {}
    for name, setting in read_settings(settings).items():
        key = {"settings": digest(setting), "part": "val"}  # a candidate may have another name
        own = [record for record in records if key.items() <= record.items()]
        if own:
            found[name] = own[0]["curve"][0]
    return found


def main(settings: Path, lines: Path, out: Path) -> None:
    """Draw the methods side by side."""
    found = curves(Records(lines).read(), settings)
    losses = {name: curve["loss"] for name, curve in found.items()}
    watched = {name: curve["validation_loss"] for name, curve in found.items()}
    out.parent.mkdir(parents=True, exist_ok=True)
    plots.loss_curves(losses, watched).savefig(out, dpi=110)
    print(f"Picture: {out.resolve()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", type=Path, default=SETTINGS, help="TOML file with a table a method")
    parser.add_argument("--lines", type=Path, default=DOCS / "results" / "mnist-val.jsonl", help="what was written")
    parser.add_argument("--out", type=Path, default=DOCS / "figures" / "mnist-curves.png")
    arguments = parser.parse_args()
    main(arguments.settings, arguments.lines, arguments.out)
