"""Pictures: what draws itself, into a notebook or a file (extra ``plot``)."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

from flopcount import extras


@dataclasses.dataclass(frozen=True, repr=False)
class Picture:
    """A drawing that a notebook shows.

    Attributes:
        figure: Matplotlib's, to change further.
    """

    figure: Any

    def save(self, path: str | Path) -> None:
        """Write it into a file, whose suffix says the format."""
        self.figure.savefig(path)

    def _repr_png_(self) -> bytes:
        stream = io.BytesIO()
        self.figure.savefig(stream, format="png", dpi=120)
        return stream.getvalue()


class Drawn:
    """What has a picture."""

    def _draw(self, axes: Any) -> None:
        """Draw it into Matplotlib's axes."""
        raise NotImplementedError

    def plot(self, path: str | Path | None = None) -> Picture:
        """Draw it (extra ``plot``).

        Args:
            path: A file to write the picture into, too; its suffix says the format.

        Returns:
            A :class:`Picture`; a notebook shows it, and ``.figure`` is Matplotlib's.

        Raises:
            ImportError: If Matplotlib is not installed.
            TypeError: If it has symbols or arrays, of which there is no one picture.
        """
        figure = extras.load("matplotlib.figure", "plot").Figure(layout="constrained")
        self._draw(figure.subplots())
        picture = Picture(figure)
        if path is not None:
            picture.save(path)
        return picture
