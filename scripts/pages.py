"""Numbers -> a self-contained HTML page: the templates of reports and checks, filled in one way."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jinja2


def fill(template: Path, filters: dict[str, Callable], **values: Any) -> str:
    """The page as text; everything put in is escaped, and a value the template asks for must be there.

    Args:
        template: the file.
        filters: of the template, beside `counted`.
        values: what it shows.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"counted": counted, **filters}
    return environment.get_template(template.name).render(**values)


def counted(number: int, noun: str) -> str:
    """A count with its noun, "1 patient", "2 patients"."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines of text with columns of equal width."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
