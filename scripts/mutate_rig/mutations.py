"""What can be changed in a module: one small change of meaning at a time, found in the syntax tree."""

import ast
from typing import Iterator, List, NamedTuple, Optional, Set

COMPARISONS = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}
ARITHMETIC = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr}
NO_COVER = "pragma: no cover"


class Mutation(NamedTuple):
    """A change: the lines and columns (in bytes, as `ast` counts them) that it replaces, and by what."""

    line: int
    column: int
    end_line: int
    end_column: int
    text: str
    what: str


def mutations(source: str) -> List[Mutation]:
    """Return every change that is made to a module, in the order of its lines."""
    tree = ast.parse(source)
    excluded = {number for number, line in enumerate(source.splitlines(), 1) if NO_COVER in line}
    found = [one for node in _reached(tree, excluded) for one in _changes(node)]
    return sorted(found)


def applied(source: str, mutation: Mutation) -> str:
    """Return a module with one change made."""
    lines = source.encode("utf-8").splitlines(True)
    first, last = mutation.line - 1, mutation.end_line - 1
    before = lines[first][:mutation.column]
    after = lines[last][mutation.end_column:]
    return b"".join(lines[:first] + [before + mutation.text.encode("utf-8") + after] + lines[last + 1:]).decode("utf-8")


def _reached(tree: ast.AST, excluded: Set[int]) -> Iterator[ast.AST]:
    """Yield the nodes of code that runs and means something: no annotations, docstrings, ``__all__`` or imports."""
    for child in ast.iter_child_nodes(tree):
        if getattr(child, "lineno", 0) in excluded:
            continue
        if isinstance(child, (ast.Import, ast.ImportFrom, ast.JoinedStr)) or _is_name_list(child):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        if isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant):
            continue
        yield child
        if isinstance(child, ast.AnnAssign):
            if child.value is not None:
                yield from _reached(ast.Expression(child.value), excluded)
        elif isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            defaults = [value for value in child.args.defaults + child.args.kw_defaults if value is not None]
            for part in defaults + child.body:
                yield from _reached(ast.Module([part], []) if isinstance(part, ast.stmt) else ast.Expression(part),
                                    excluded)
        else:
            yield from _reached(child, excluded)


def _is_name_list(node: ast.AST) -> bool:
    names = [target.id for target in getattr(node, "targets", ()) if isinstance(target, ast.Name)]
    return bool({"__all__", "__slots__"} & set(names))


def _changes(node: ast.AST) -> Iterator[Mutation]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARISONS:
        other = ast.Compare(node.left, [COMPARISONS[type(node.ops[0])]()], node.comparators)
        yield _replaced(node, other)
    elif isinstance(node, ast.BoolOp):
        other_op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield _replaced(node, ast.BoolOp(other_op, node.values))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield _replaced(node, node.operand)
    elif isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        yield _replaced(node, ast.BinOp(node.left, ARITHMETIC[type(node.op)](), node.right))
    elif isinstance(node, ast.Constant):
        changed = _constant(node.value)
        if changed is not None:
            yield _replaced(node, ast.Constant(changed))
    elif isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield _replaced(node, ast.Return(ast.Constant(None)))
    elif isinstance(node, (ast.Break, ast.Continue)):
        yield _replaced(node, ast.Pass() if isinstance(node, ast.Break) else ast.Break())
    elif isinstance(node, (ast.AugAssign, ast.Raise)) or (
            isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)):
        yield _replaced(node, ast.Pass())
    elif isinstance(node, ast.Assign) and not _is_none(node.value) and isinstance(node.targets[0], ast.Attribute):
        yield _replaced(node, ast.Assign(node.targets, ast.Constant(None)))


def _constant(value: object) -> Optional[object]:
    if value is True or value is False:
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, (str, bytes)) and value:
        return value[:-1] if len(value) > 1 else value * 2
    return None


def _is_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _replaced(node: ast.AST, other: ast.AST) -> Mutation:
    text = ast.unparse(ast.fix_missing_locations(other))  # type: ignore[attr-defined]  # since Python 3.9
    if not isinstance(other, ast.stmt):
        text = "(%s)" % text
    return Mutation(node.lineno, node.col_offset, node.end_lineno, node.end_col_offset,  # type: ignore[attr-defined]
                    text, ast.unparse(node).splitlines()[0])  # type: ignore[attr-defined]
