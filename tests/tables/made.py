"""Tables that tests write: houses whose price is a line in what their columns say, and noise of 20,000."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

NOISE = 2e4


def houses(rows: int = 300, seed: int = 0) -> Any:
    """Numbers, categories, dates, yes and no, free text, a constant, and cells that are missing; a pandas frame."""
    rng = np.random.default_rng(seed)
    size, rooms = rng.uniform(30, 200, rows), rng.integers(1, 6, rows).astype(float)
    city = rng.choice(np.array(["Oslo", "Bergen", "Narvik", None]), rows, p=[0.55, 0.3, 0.1, 0.05])
    days = rng.integers(0, 1500, rows)
    garden = rng.choice(["yes", "no"], rows)
    price = 2e3 * size + 1e5 * (city == "Oslo") + 3e4 * (garden == "yes") + 60 * days + NOISE * rng.normal(size=rows)
    rooms[rng.random(rows) < 0.1] = np.nan
    sold = pd.Series(pd.Timestamp("2020-01-01") + pd.to_timedelta(days, unit="D"))
    return pd.DataFrame(
        {
            "size": size,
            "rooms": rooms,
            "city": city,
            "sold": sold.dt.strftime("%d.%m.%Y"),
            "garden": garden,
            "owner": [f"owner {row}" for row in range(rows)],
            "country": "Norway",
            "price": price.round(),
        }
    )


def written(frame: Any, path: Path, **options: Any) -> Path:
    """The path of a CSV file with these rows."""
    frame.to_csv(path, index=False, **options)
    return path
