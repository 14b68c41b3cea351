"""The curves of the MNIST fits: which lines they are taken from."""

from pathlib import Path

from matplotlib.image import imread

from scripts.mnist_curves import curves, main
from scripts.mnist_methods import read_settings
from scripts.recording import Records, digest

SETTINGS = '[map]\nmethod = "map"\nprior_scales = [1.0]\nnum_epochs = 2\nlearning_rate = 0.1\n'


def test_a_curve_is_that_of_the_first_line_of_its_settings(tmp_path: Path) -> None:
    (tmp_path / "settings.toml").write_text(SETTINGS + SETTINGS.replace("map", "dropout"), encoding="utf-8")
    own = digest(read_settings(tmp_path / "settings.toml")["map"])
    curve = {"loss": [2.0, 1.0], "validation_loss": [0.5, 0.4]}
    other = {"loss": [9.0, 9.0], "validation_loss": [9.0, 9.0]}
    lines = [
        {"method": "map", "settings": "another", "part": "val", "curve": [other]},
        {"method": "map", "settings": own, "part": "test", "curve": [other]},
        {"method": "a candidate", "settings": own, "part": "val", "curve": [curve, other]},
    ]
    assert curves(lines, tmp_path / "settings.toml") == {"map": curve}
    Records(tmp_path / "lines.jsonl").append(*lines)
    main(tmp_path / "settings.toml", tmp_path / "lines.jsonl", tmp_path / "new" / "curves.png")
    assert imread(tmp_path / "new" / "curves.png")[..., :3].std() > 0.02
