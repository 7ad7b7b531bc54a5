"""What an experiment hands back: tables for people, the same numbers for programs, and curves for the plots.

Printing and drawing are elsewhere: nothing here knows of a terminal.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

_STUDENT_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


class Interval(NamedTuple):
    """A mean over seeds and the half width of its 95 % interval (Student's t; NaN for one seed)."""

    mean: float
    half_width: float

    @classmethod
    def of(cls, samples: Iterable[float]) -> "Interval":
        values = np.array(list(samples), dtype=np.float64)
        freedom = len(values) - 1
        if freedom < 1:
            return cls(float(values.mean()), float("nan"))
        # Beyond the table: the first terms of the quantile's expansion in 1 / freedom, within 0.1 %.
        quantile = _STUDENT_975[freedom - 1] if freedom <= 10 else 1.96 + 2.37 / freedom + 2.82 / freedom**2
        return cls(float(values.mean()), float(quantile * values.std(ddof=1) / np.sqrt(len(values))))


Cell = float | int | str | Interval | None


@dataclass(frozen=True)
class Column:
    key: str
    title: str
    format: str = ""
    """Of numbers, such as `.3f`."""
    interval: bool = True
    """Whether the half width is shown beside the mean."""

    def text(self, cell: Cell) -> str:
        if cell is None:
            return ""
        if isinstance(cell, Interval):
            mean = format(cell.mean, self.format)
            known = self.interval and not np.isnan(cell.half_width)
            return f"{mean} ±{format(cell.half_width, self.format)}" if known else mean
        return cell if isinstance(cell, str) else format(cell, self.format)


@dataclass
class Table:
    """`rows` by the columns' keys; `note` is for what a reader must know beside it."""

    title: str
    columns: Sequence[Column]
    rows: list[dict[str, Cell]]
    note: str = ""


@dataclass
class Report:
    """One experiment: `curves` are numbers that only plots need, by name."""

    experiment: str
    tables: list[Table] = field(default_factory=list)
    curves: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """For JSON; what is not a number becomes null."""
        tables = [{"title": table.title, "note": table.note, "rows": table.rows} for table in self.tables]
        return _plain({"experiment": self.experiment, "seconds": self.seconds, "tables": tables, "curves": self.curves})


def _plain(value: Any) -> Any:
    if isinstance(value, Interval):
        return _plain(value._asdict())
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_plain(item) for item in value]
    if isinstance(value, np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    return value
