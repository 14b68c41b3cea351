"""The figure that all plots return: one that a notebook shows, and a terminal on request."""

import sys
from io import BytesIO

from matplotlib import figure

from bayesuq import optional

RESOLUTION = 120  # dots per inch in a notebook


class Figure(figure.Figure):
    """A matplotlib figure of its own, unknown to pyplot until it is shown."""

    def _repr_png_(self) -> bytes:
        """What a notebook shows of a cell's last value."""
        image = BytesIO()
        self.savefig(image, format="png", dpi=RESOLUTION)
        return image.getvalue()

    def show(self, warn: bool = True) -> None:  # noqa: ARG002 - as matplotlib's
        """Show it: in a notebook below its cell, elsewhere in a window of pyplot's backend, until that is closed.

        Raises:
            RuntimeError: There is no notebook and no screen, or matplotlib is older than 3.11.
        """
        shell = sys.modules.get("IPython")
        if shell is not None and shell.get_ipython() is not None:
            shell.display.display(self)
            return
        if optional.pyplot.get_backend().lower() == "agg":
            raise RuntimeError("There is no screen to show a figure on. Write it by `figure.savefig(path)`.")
        try:
            optional.pyplot.figure(self)
        except ValueError as error:
            raise RuntimeError(
                "matplotlib shows figures that pyplot did not make from 3.11 on. Write it by `figure.savefig(path)`."
            ) from error
        optional.pyplot.show()
