"""Pictures of detection: what refusing gains, what scores look like on both sides, and what a threshold costs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from torch import Tensor

from bayesuq.arrays import check_count
from bayesuq.evaluation.detection import RiskCoverage
from bayesuq.evaluation.plots.figure import Figure
from bayesuq.evaluation.plots.panels import (
    BLUE,
    GREY,
    PANEL_HEIGHT,
    VERMILLION,
    check_named,
    draw_key,
    flat,
    looks,
    stack_panels,
)
from bayesuq.evaluation.report.detection_tasks import Detection
from bayesuq.evaluation.report.score_table import ScoreTable
from bayesuq.evaluation.report.tables import named


def rejection_curves(curves: Mapping[str, RiskCoverage]) -> Figure:
    """Accuracy of the points kept against the share refused, most uncertain first; a line for each method or score.

    A good uncertainty makes the line rise fast; one that says nothing leaves it level.

    Args:
        curves: Risk over coverage of right or wrong predictions, from `detection.risk_coverage` or
            `Detection.risk_coverage`, by name.

    Raises:
        ValueError: Nothing to draw.

    Example:
        >>> from bayesuq.evaluation.detection import risk_coverage
        >>> figure = rejection_curves({"entropy": risk_coverage([0.1, 0.2, 0.3], [False, False, True])})
        >>> figure.axes[0].get_xlabel()
        'share of points refused'
    """
    figure, ((panel,),) = stack_panels(1, levels={"accuracy of the points kept": 1.4 * PANEL_HEIGHT}, scale=2.0)
    if not curves:
        raise ValueError("There is nothing to draw: pass at least one method.")
    for (name, curve), look in zip(curves.items(), looks(len(curves)), strict=True):
        attainable = curve.attainable.cpu().numpy()
        coverage, risk = curve.coverage.cpu().numpy()[attainable], curve.risk.cpu().numpy()[attainable]
        panel.plot(1 - coverage, 1 - risk, linewidth=1.6, label=name, **look)
    panel.set_xlim(-0.01, 1)
    panel.set_ylim(top=1.002)
    panel.set_xlabel("share of points refused")
    draw_key(figure, panel.get_legend_handles_labels()[0])
    return figure


def score_histograms(
    detection: Detection,
    names: Sequence[str] | str | None = None,
    *,
    negative_label: str = "right, or inside",
    positive_label: str = "wrong, or outside",
    num_bins: int = 30,
) -> Figure:
    """Each score on the points to be found and on the others, a panel for each score on axes of its own.

    Each histogram shows shares of its own points, by their weights. The more they overlap, the nearer AUROC is to a
    half. Infinite scores stand in the outermost bins.

    Args:
        detection: From `evaluate_misclassification` or `evaluate_ood`.
        names: Of the scores, or of one; None takes all.
        negative_label: What the others are.
        positive_label: What is to be found.
        num_bins: Of equal width, over a score's range.

    Raises:
        KeyError: No such score.
        TypeError: `num_bins` not a whole number.
        ValueError: No score, fewer than one bin, no point on one side.
    """
    chosen = list(detection.scores) if names is None else [names] if isinstance(names, str) else list(names)
    bins = check_count(num_bins, "num_bins")
    figure, panels = stack_panels(len(chosen), levels={"share of points": PANEL_HEIGHT}, share=False)
    found = detection.positives.cpu()
    weight = torch.ones_like(found, dtype=torch.float64) if detection.weight is None else detection.weight.cpu()
    shares = [(weight[side] / weight[side].sum()).flatten().numpy() for side in (~found, found)]
    for name, (panel,) in zip(chosen, panels, strict=True):
        scores = within_finite(detection.score(name).cpu())
        sides = flat(scores[~found], f"{name} of the negatives"), flat(scores[found], f"{name} of the positives")
        lowest, highest = min(side.min() for side in sides), max(side.max() for side in sides)
        edges = np.linspace(lowest, highest if highest > lowest else lowest + 1, bins + 1).tolist()
        for side, share, color, kind in zip(sides, shares, (BLUE, VERMILLION), ("stepfilled", "step"), strict=True):
            look: dict[str, Any] = {"histtype": kind} | ({"alpha": 0.5} if kind == "stepfilled" else {"linewidth": 1.6})
            panel.hist(side, edges, weights=share, color=color, **look)
        area = detection.table.measures[name][0].value
        panel.set_title(f"{name.replace('_', ' ')}\nAUROC {area:.3f}", fontsize="medium")
    key = [
        Patch(facecolor=BLUE, alpha=0.5, label=f"{negative_label} (N = {int((~found).sum()):,})"),
        Line2D([], [], color=VERMILLION, linewidth=1.6, label=f"{positive_label} (N = {int(found.sum()):,})"),
    ]
    draw_key(figure, key)
    return figure


def roc_curves(detections: Mapping[str, Detection], score: str) -> Figure:
    """True against false positive rate at every threshold of one score, a line for each method.

    Args:
        detections: By the name of the method.
        score: Which one, such as "predictive_entropy".

    Raises:
        KeyError: No such score.
        ValueError: Nothing to draw.
    """
    figure, ((panel,),) = stack_panels(1, levels={"true positive rate": 1.4 * PANEL_HEIGHT}, scale=1.6)
    check_named(detections, "detections", "`report.evaluate_ood` or `report.evaluate_misclassification`", Detection)
    if not detections:
        raise ValueError("There is nothing to draw: pass at least one method.")
    panel.plot([0, 1], [0, 1], color=GREY, linestyle="--", linewidth=1)
    for (name, detection), look in zip(detections.items(), looks(len(detections)), strict=True):
        false_rate, true_rate = (rate.cpu().numpy() for rate in detection.roc(score))
        area = detection.table.measures[score][0].value
        panel.plot(false_rate, true_rate, linewidth=1.6, label=f"{name} (AUROC {area:.3f})", **look)
    panel.set_xlim(-0.01, 1.01)
    panel.set_ylim(-0.01, 1.01)
    panel.set_xlabel(f"false positive rate, by {score.replace('_', ' ')}")
    draw_key(figure, panel.get_legend_handles_labels()[0])
    return figure


def score_differences(tables: Mapping[str, ScoreTable], measure: str = "auroc") -> Figure:
    """How far each score is from the one that `Detection.differences` subtracts, with two standard errors each way.

    Args:
        tables: From `Detection.differences`, by the name of the model: a colour each.
        measure: Which of a table's measures.

    Raises:
        KeyError: No such measure.
        ValueError: Nothing to draw.

    Example:
        >>> from bayesuq.evaluation.report.score_table import score_differences as differences
        >>> scores = {"one": [0.1, 0.2, 0.3], "other": [0.1, 0.3, 0.2]}
        >>> table = differences(scores, [False, False, True], "one", what="errors")
        >>> score_differences({"network": table}).axes[0].get_xlabel()
        'difference of auroc, two standard errors'
    """
    if not tables:
        raise ValueError("There is nothing to draw: pass at least one table.")
    names = list(dict.fromkeys(name for table in tables.values() for name in table.measures))
    figure, ((panel,),) = stack_panels(1, levels={"score": max(PANEL_HEIGHT, 0.32 * len(names) + 0.8)}, scale=2.4)
    panel.axvline(0, color=GREY, linestyle="--", linewidth=1)
    for number, ((label, table), look) in enumerate(zip(tables.items(), looks(len(tables)), strict=True)):
        chosen = {name: named(measures, measure, "measure") for name, measures in table.measures.items()}
        places = [names.index(name) + 0.22 * (number - (len(tables) - 1) / 2) for name in chosen]
        errors = [2 * (each.standard_error or 0.0) for each in chosen.values()]
        values = [each.value for each in chosen.values()]
        panel.errorbar(
            values, places, xerr=errors, marker="o", markersize=4, color=look["color"], label=label, linestyle=""
        )
    panel.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.set_ylabel("")
    panel.set_xlabel(f"difference of {measure.replace('_', ' ')}, two standard errors")
    draw_key(figure, panel.get_legend_handles_labels()[0])
    return figure


def within_finite(scores: Tensor) -> Tensor:
    """The scores with the least and largest finite one for infinite ones."""
    finite = scores[scores.isfinite()]
    return scores.clamp(finite.min(), finite.max()) if len(finite) else torch.zeros_like(scores)
