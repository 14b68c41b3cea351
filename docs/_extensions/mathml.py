"""Formulas as MathML, which browsers draw themselves: no script, no font, no network.

docutils, on which Sphinx stands, translates TeX; what it does not know stops the build with its message.
"""

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.errors import SphinxError
from sphinx.util.math import get_node_equation_number

# Between a function's name and what it is applied to, where browsers put nothing: a thin space, but for a bracket.
APPLIED = re.compile(r'<mo>&ApplyFunction;</mo>(?!\s*(?:<m\w+>\s*)*<mo stretchy="false">\()')
ACCENTED = re.compile(r"(\\(?:bar|overline|hat)\{[^{}]*\})_")  # docutils would put the index below the letter
FRACTION = re.compile(r"(\\[td]?frac)\s*(\w)\s*(\w)")  # \frac12 is 1 over 2; docutils reads 12 over what comes next
THIN_SPACE = '<mspace width="0.1667em"></mspace>'
BARS = {"‖": 'stretchy="false"', "|": 'lspace="0" rspace="0"'}  # which browsers take for tall, and for relations
ALIGNED = r"\begin{aligned}", r"\end{aligned}"  # what docutils does by itself where a formula has several lines


def inline(translator: Any, node: nodes.math) -> None:
    """A formula within a line."""
    translator.body.append(_drawn(node, block=False))
    raise nodes.SkipNode


def block(translator: Any, node: nodes.math_block) -> None:
    """A formula of its own, with its number where it has a label."""
    translator.body.append(translator.starttag(node, "div", CLASS="formula"))
    translator.body.append(_drawn(node, block=True))
    if node.get("number"):
        translator.body.append(f'<span class="eqno">({get_node_equation_number(translator, node)})</span>')
    translator.body.append("</div>\n")
    raise nodes.SkipNode


def to_mathml(tex: str, *, block: bool) -> str:
    """TeX as MathML.

    Raises:
        SphinxError: docutils does not know a command.
    """
    for mark in ALIGNED:
        tex = tex.replace(mark, "")
    try:
        braced = FRACTION.sub(r"\1{\2}{\3}", tex.strip())
        drawn = tex2mathml(ACCENTED.sub(r"\1{}_", braced), as_block=block)
    except MathError as error:
        raise SphinxError(f"{tex!r} cannot be drawn: {error}") from error
    for mark, attributes in BARS.items():
        drawn = re.sub(rf"<mo(?: class=.mathopen.)?>({re.escape(mark)})</mo>", rf"<mo {attributes}>\1</mo>", drawn)
    return APPLIED.sub(THIN_SPACE, drawn)


def _drawn(node: nodes.Element, *, block: bool) -> str:
    try:
        return to_mathml(node.astext(), block=block)
    except SphinxError as error:
        raise SphinxError(f"{node.source}:{node.line}: {error}") from error


def setup(app: Any) -> dict[str, bool]:
    """Offer the renderer under the name `mathml`."""
    app.add_html_math_renderer("mathml", inline_renderers=(inline, None), block_renderers=(block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
