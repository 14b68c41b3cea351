"""The report of `bayesuq compare` as one HTML page: no script, no other file, every text escaped."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from bayesuq.cli.examples import Examples
from bayesuq.cli.figures import Picture
from bayesuq.cli.glossary import SECTIONS, Entry, describe, explain
from bayesuq.cli.methods import Fitted, Method
from bayesuq.cli.paired import NUM_ERRORS, Standing
from bayesuq.cli.verdict import verdict
from bayesuq.data import Split
from bayesuq.evaluation.report.measure import Measure
from bayesuq.evaluation.report.reporting import Report

TEMPLATE, STYLE = "page.html", "page.css"
WORDS = {"nan": "undefined", "inf": "∞", "-inf": "-∞"}


@dataclass(frozen=True, eq=False)
class Content:
    """All that the page shows; what goes by method has the methods' names, in one order.

    Attributes:
        data: Name of the data set.
        split: Its parts.
        num_classes: Of its labels, void ones aside; 0 of real targets.
        methods: What was fitted.
        fitted: How the fits went.
        reports: What was measured.
        standings: Who is clearly the best or the worst, by measure.
        pictures: The figures, those that lead among them.
        examples: Rows that a method is least sure of; None where pictures show them.
        settings: The options, resolved.
        circumstances: Versions, device and times.
    """

    data: str
    split: Split
    num_classes: int
    methods: Mapping[str, Method]
    fitted: Mapping[str, Fitted]
    reports: Mapping[str, Report]
    standings: Mapping[str, Standing]
    pictures: list[Picture]
    examples: Examples | None
    settings: Mapping[str, Any]
    circumstances: Mapping[str, str]


@dataclass(frozen=True)
class Cell:
    """One number of the table: as printed, and whether it is clearly apart from all others of its row.

    Attributes:
        value: The number.
        error: Its standard error or interval.
        remark: What must be known to read it.
        rank: "best", "worst" or neither, as the style names it.
    """

    value: str
    error: str
    remark: str
    rank: str


@dataclass(frozen=True)
class Row:
    """One measure of the table, with a cell for each method; None where a method lacks the measure."""

    entry: Entry
    unit: str
    cells: Mapping[str, Cell | None]

    @property
    def remark(self) -> str:
        """That of every cell, if they share one: then it need not stand in each."""
        remarks = {cell.remark for cell in self.cells.values() if cell is not None}
        return remarks.pop() if len(remarks) == 1 else ""


def render(content: Content) -> str:
    """The whole page."""
    num_members = int(content.settings["num_members"])
    is_around = content.settings.get("weights") is not None
    return fill(
        TEMPLATE,
        content=content,
        sections={name: rows for name in SECTIONS if (rows := _rows(content, name))},
        descriptions={
            name: describe(method, num_members, is_around=is_around) for name, method in content.methods.items()
        },
        verdict=verdict(content.reports, content.standings),
        num_warned=sum(bool(each.warnings) for each in content.fitted.values()),
        has_worst=any(each.worst is not None for each in content.standings.values()),
        num_errors=f"{NUM_ERRORS:.0f}",
        longest_word=max(len(part) for name in content.methods for part in name.split(":")),
        num_classes=content.num_classes,
        largest_entropy=f"{math.log(max(content.num_classes, 1)):.2f}",
    )


def fill(template: str, **values: Any) -> str:
    """A page from a template beside this file, its text escaped and its style inside."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    source, style = (files("bayesuq.cli").joinpath(name).read_text(encoding="utf-8") for name in (template, STYLE))
    return environment.from_string(source).render(style=Markup(style), **values)


def _rows(content: Content, section: str) -> list[Row]:
    units = {measure.name: measure.unit for report in content.reports.values() for measure in report.measures}
    return [
        Row(entry, unit, {method: _cell(content, method, name) for method in content.reports})
        for name, unit in units.items()
        if (entry := explain(name)).section == section
    ]


def _cell(content: Content, method: str, name: str) -> Cell | None:
    """Without what another table of the page says: how many draws there were."""
    found: Measure | None = next((m for m in content.reports[method].measures if m.name == name), None)
    if found is None:
        return None
    value, error, _ = found.cells
    remark = "" if found.remark == f"from S = {content.reports[method].num_samples} draws" else found.remark
    standing = content.standings.get(name, Standing())
    rank = {standing.worst: "worst", standing.best: "best"}.get(method, "")
    return Cell(WORDS.get(value, value), error, remark, rank)
