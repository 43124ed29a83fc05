"""Tables of diagnostics, as text and for notebooks."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from weightloom.texts import html_table


class Tabled(ABC):
    """A record that is printed as a table, and shown as one in a notebook."""

    @abstractmethod
    def cells(self) -> list[Sequence[str]]:
        """Return the rows of the table, its heading first."""

    @property
    def verdict(self) -> str:
        """The finding in a sentence, printed below the table."""
        return ""

    def __str__(self) -> str:
        return "\n".join(filter(None, [text_table(self.cells()), self.verdict]))

    def _repr_html_(self) -> str:
        return html_table(self.cells(), self.verdict)


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Align cells in columns: the first to the left, the others to the right.

    Example:
        >>> print(text_table([("layer", "scale"), ("0.weight", "1.5")]))
        layer     scale
        0.weight    1.5
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            [
                row[0].ljust(widths[0]),
                *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
            ]
        ).rstrip()
        for row in rows
    )
