"""How checks are shown: a line for each finding as it comes, then the count."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cifarscale.checks.finding import Finding

_STYLES = {"ok": "green", "warning": "yellow", "failure": "bold red"}


def show_findings(findings: "Iterable[Finding]") -> int:
    """Prints each finding, with what to do below it. Returns: how many are failures."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False, markup=False)
    levels = []
    for finding in findings:
        row = Table.grid(padding=(0, 2))
        row.add_column(width=max(map(len, _STYLES)))
        row.add_column(width=len("warning signal"))
        row.add_column(overflow="fold")
        text = Text(finding.text)
        if finding.remedy:
            text.append(f"\n→ {finding.remedy}", style="dim" if finding.level == "warning" else "bold")
        row.add_row(Text(finding.level, style=_STYLES[finding.level]), finding.subject, text)
        console.print(row)
        levels.append(finding.level)
    failures, warnings = levels.count("failure"), levels.count("warning")
    console.print(f"{_counted(len(levels), 'check')}: {_counted(failures, 'failure')}, {_counted(warnings, 'warning')}")
    return failures


def _counted(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"
