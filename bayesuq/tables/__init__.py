"""Tables of a user's own: from a file with names of columns to data that can be fitted, and new rows to predict."""

from typing import TYPE_CHECKING

from bayesuq.faces import lazy

if TYPE_CHECKING:
    from bayesuq.tables.table import read_table as read_table

__getattr__, __dir__, __all__ = lazy(__name__)
