"""What a reader, a writer or the doctor has to say about data: one line, a place, a severity.

Nothing is dropped or corrected silently: each skip and each correction is a `Finding`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["Finding", "Severity", "summarise"]

Severity: TypeAlias = Literal["error", "warning", "info"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found.

    Args:
        severity: `error` = data was lost or cannot be used, `warning` = something was corrected or looks wrong, `info` = good to
            know.
        code: a short stable name of the kind, such as `box.degenerate`; tables group by it.
        message: one sentence: what it is and what was done about it.
        where: a file with a line or an id (`labels/a.txt:3`, `annotations.json#17`), or empty.
        count: how many objects or images it stands for.
    """

    severity: Severity
    code: str
    message: str
    where: str = ""
    count: int = 1

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        times = f" ({self.count} times)" if self.count > 1 else ""
        return f"{self.severity}: {place}{self.message} [{self.code}]{times}"


def summarise(findings: Iterable[Finding]) -> list[Finding]:
    """One finding per severity and code: the first of its kind, with the counts added; errors first, then by count."""
    first: dict[tuple[Severity, str], Finding] = {}
    total: dict[tuple[Severity, str], int] = {}
    for finding in findings:
        key = (finding.severity, finding.code)
        first.setdefault(key, finding)
        total[key] = total.get(key, 0) + finding.count
    rank = {"error": 0, "warning": 1, "info": 2}
    merged = [Finding(f.severity, f.code, f.message, f.where, total[key]) for key, f in first.items()]
    return sorted(merged, key=lambda f: (rank[f.severity], -f.count, f.code))
