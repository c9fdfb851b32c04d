"""Compares the cells that a kernel ran with the code cells of a notebook's file.

Comments and layout are ignored. So are additional cells that only inspect values: a cell counts as foreign only if it
changes a name that the file's cells read.
"""

import ast
import dis
import itertools
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from types import CodeType
from typing import Any

# Methods that change an object in place: a list, a dictionary, a model.
_CHANGING = {"append", "clear", "compile", "extend", "fit", "insert", "load_weights", "pop", "remove", "set_weights"}
_CHANGING |= {"assign", "reverse", "setdefault", "sort", "update"}
_RUNS_CODE = {"capture", "prun", "time"}  # magics that run their argument as code with the notebook's variables
_RUNS_A_FILE = "get_ipython().run_line_magic('run'"  # as IPython writes `%run`, which may set any name
_compiled = partial(compile, filename="cell", mode="exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


def code_cells(source: str) -> list[str]:
    """The code cells of a notebook's text in the percent format, without the parameters cell."""
    cells = [cell.partition("\n") for cell in source.split("\n# %%")[1:]]
    return [code for mark, _, code in cells if "[markdown]" not in mark and '"parameters"' not in mark and code.strip()]


def history(namespace: Mapping[str, Any]) -> Callable[[], list[str]]:
    """A function that gives the code of the cells that this kernel ran from this one on, in order; none without IPython."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is None or shell.user_ns is not namespace:
        return list
    first = len(shell.history_manager.input_hist_parsed) - 1
    return lambda: [code for code in shell.history_manager.input_hist_parsed[first:] if code.strip()]


def changes(file: Sequence[str], ran: Sequence[str]) -> dict[str, set[str]]:
    """Cells that ran, are not in the file, and change names that the file's cells read: cell → the names."""
    in_file = {_normal(code) for code in file}
    needed = set().union(*map(_needs, file))
    imported = {item for code in file for item in imports(_parse(code))}
    found = {}
    for code in ran:
        if _normal(code) not in in_file:
            found[code] = needed if _RUNS_A_FILE in _normal(code) else sets(code, imported) & needed
    return {code: names for code, names in found.items() if names}


def differences(file: Sequence[str], ran: Sequence[str]) -> list[str]:
    """Differences between the cells that ran and the file; empty if the file's cells ran, each after those it needs.

    Cells may run twice. It is a difference if a cell ran again and a cell that reads its results did not.
    """
    found = [
        f"a cell that is not in the file, {_begins(code)}, changes {', '.join(sorted(names))}"
        for code, names in changes(file, ran).items()
    ]
    last = {_normal(code): number for number, code in enumerate(ran)}
    found += [f"the cell {_begins(code)} did not run as in the file" for code in file if _normal(code) not in last]
    for code, later in itertools.combinations([code for code in file if _normal(code) in last], 2):
        names = sets(code) & _needs(later)
        if names and last[_normal(code)] > last[_normal(later)]:
            found.append(f"the cell {_begins(later)} did not run again after {', '.join(sorted(names))} changed")
    return found


def _begins(code: str) -> str:
    """The first line of a cell that is not an import, to identify the cell."""
    lines = [ast.unparse(node).splitlines()[0] for node in _parse(code).body] or code.strip().splitlines()
    line = next((line for line in lines if not line.startswith(("import ", "from "))), lines[0])
    return f"`{line if len(line) <= 60 else line[:57] + '...'}`"


def _parse(code: str) -> ast.Module:
    """The parsed code, without magics and shell commands that only show or set up; empty if it does not compile."""
    try:
        tree = ast.parse(code)
        _compiled(tree)
    except SyntaxError:  # such a cell did not run
        return ast.Module([], [])
    body: list[ast.stmt] = []
    for statement in tree.body:
        match statement:
            case ast.Expr(ast.Call(ast.Attribute(ast.Call(ast.Name("get_ipython"))), given)):
                texts = [str(argument.value) for argument in given if isinstance(argument, ast.Constant)] or [""]
                if texts[0] in _RUNS_CODE:
                    from IPython.core.inputtransformer2 import TransformerManager  # not where no kernel runs

                    body += _parse(TransformerManager().transform_cell(texts[-1])).body
                elif texts[0] == "run":
                    body.append(statement)
            case _:
                body.append(statement)
    tree.body = body
    return tree


def _normal(code: str) -> str:
    return ast.unparse(_parse(code))


def _accesses(code: CodeType, is_cell: bool = True) -> Iterator[tuple[str, bool]]:
    """The notebook's names in the order of a cell's code, those in its functions too: (name, whether it is set or deleted)."""
    for instruction in dis.get_instructions(code):
        access, _, scope = instruction.opname.partition("_")
        if isinstance(instruction.argval, CodeType):
            yield from _accesses(instruction.argval, is_cell=False)
        elif scope == "GLOBAL" or (scope == "NAME" and access != "IMPORT" and (is_cell or access == "LOAD")):
            yield instruction.argval, access != "LOAD"


def _needs(code: str) -> set[str]:
    """The names that a cell reads before it sets them, including those read in its functions."""
    first = dict(reversed([*_accesses(_compiled(_parse(code)))]))
    return {name for name, is_set in first.items() if not is_set}


def sets(code: str, imported: Collection[tuple[str, str]] = ()) -> set[str]:
    """The names that a cell sets, or whose objects it changes in place, without imports that are in `imported`."""
    tree = _parse(code)
    own = dict(imports(tree))
    found = {name for name, is_set in _accesses(_compiled(tree)) if is_set and (name, own.get(name)) not in imported}
    for node in ast.walk(tree):
        if isinstance(node, (ast.Attribute, ast.Subscript)) and not isinstance(node.ctx, ast.Load):
            found |= _root(node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _CHANGING:
            found |= _root(node.func)
    return found


def _root(node: ast.expr) -> set[str]:
    """The name that an expression such as `model.layers[3].trainable` starts from."""
    while isinstance(node, (ast.Attribute, ast.Subscript, ast.Call)):
        node = node.func if isinstance(node, ast.Call) else node.value
    return {node.id} if isinstance(node, ast.Name) else set()


def imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """(local name, dotted name) of everything that a tree imports, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            home = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for alias in node.names:
                yield alias.asname or alias.name.split(".")[0], f"{home}{alias.name}"
