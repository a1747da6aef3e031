"""The HTML of this package: pages of a run, and what the explorer says in numbers. Whatever is filled in is escaped."""

from pathlib import Path

import jinja2

_FOLDER = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)


def render(name: str, **values) -> str:
    return _FOLDER.get_template(name).render(values)
