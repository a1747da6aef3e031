"""The code of a notebook's cells in a namespace, with parameters set as papermill sets them: what its tests look at."""

import json

from lib.workbook import notebooks


def code(stem: str) -> list[str]:
    (path,) = [path for path in notebooks.paths() if path.stem.startswith(stem)]
    cells = json.loads(path.read_bytes())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def run(stem: str, until: str | None = None, namespace: dict | None = None, **parameters) -> dict:
    """The namespace after the cells before the first that holds `until` (all of them, if left out)."""
    found, cells = {} if namespace is None else namespace, code(stem)
    stop = len(cells) if until is None else next(n for n, cell in enumerate(cells) if until in cell)
    for number, cell in enumerate(cells[:stop]):
        exec(compile(cell, f"{stem}[{number}]", "exec"), found)
        if number == 0:
            found |= parameters
    return found


def value(stem: str, holding: str, namespace: dict):
    """What the last expression of the cell that holds `holding` gives in a namespace."""
    cell = next(cell for cell in code(stem) if holding in cell)
    lines = ast_split(cell)
    exec(lines[0], namespace)
    return eval(lines[1], namespace)


def ast_split(cell: str):
    import ast

    tree = ast.parse(cell)
    last = ast.Expression(tree.body.pop().value)
    return compile(tree, "cell", "exec"), compile(last, "cell", "eval")
