"""The small faults that are planted: what in a module can be changed, and how."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.Pow: ast.Mult,
}  # fmt: skip


@dataclass(frozen=True)
class Site:
    """A fault that can be planted.

    Attributes:
        line: from 1, where it shows.
        what: the change, in words.
        plant: changes the tree in which it was found.
    """

    line: int
    what: str
    plant: Callable[[], None]


SKIPPED = ("annotation", "returns", "decorator_list", "type_params", "bases")
"""What a run does not look at, or what would be another program altogether."""


def sites(node: ast.AST) -> Iterator[Site]:
    """All of a module, in the order of its text. Assertions, slots and the words of errors are left alone."""
    for name, value in ast.iter_fields(node):
        if name in SKIPPED:
            continue
        for number, child in enumerate(value) if isinstance(value, list) else [(None, value)]:
            if isinstance(child, ast.AST) and not _is_aside(child):
                yield from _of(node, name, number, child)
                yield from sites(child)


def _is_aside(node: ast.AST) -> bool:
    if isinstance(node, ast.Assign):
        return any(isinstance(target, ast.Name) and target.id == "__slots__" for target in node.targets)
    return isinstance(node, ast.Assert | ast.JoinedStr)


def _of(parent: ast.AST, name: str, number: int | None, node: ast.AST) -> Iterator[Site]:
    line = getattr(node, "lineno", 0)

    def put(new: ast.AST) -> Callable[[], None]:
        def plant() -> None:
            ast.copy_location(new, node)
            ast.fix_missing_locations(new)
            if number is None:
                setattr(parent, name, new)
            else:
                getattr(parent, name)[number] = new

        return plant

    match node:
        case ast.Compare(left=left, ops=ops, comparators=others):
            for at, op in enumerate(ops):
                other = COMPARISONS[type(op)]
                changed = [*ops[:at], other(), *ops[at + 1 :]]
                yield Site(line, f"{_word(op)} → {other.__name__}", put(ast.Compare(left, changed, others)))
        case ast.BoolOp(op=op, values=values):
            new = ast.Or() if isinstance(op, ast.And) else ast.And()
            yield Site(line, f"{_word(op)} → {_word(new)}", put(ast.BoolOp(new, values)))
        case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
            yield Site(line, f"no {_word(node.op)}", put(operand))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            other_op = OPERATORS[type(op)]
            yield Site(line, f"{_word(op)} → {other_op.__name__}", put(ast.BinOp(left, other_op(), right)))
        case ast.AugAssign(target=target):
            yield Site(line, f"no change of {ast.unparse(target)}", put(ast.Pass()))
        case ast.Constant(value=bool(old)):
            yield Site(line, f"{old} → {not old}", put(ast.Constant(not old)))
        case ast.Constant(value=int(old) | float(old)):
            number_ = old + 1 if isinstance(old, int) else old * 2 or 1.0
            yield Site(line, f"{old} → {number_}", put(ast.Constant(number_)))
        case ast.Return(value=value) if value is not None and ast.unparse(value) != "None":
            yield Site(line, "return None", put(ast.Return(ast.Constant(None))))
        case ast.Expr(value=ast.Call()):
            yield Site(line, f"no {ast.unparse(node)[:50]}", put(ast.Pass()))
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript() as target]):
            yield Site(line, f"no {ast.unparse(target)} =", put(ast.Pass()))
        case ast.Continue():
            yield Site(line, "continue → break", put(ast.Break()))
        case ast.Break():
            yield Site(line, "break → continue", put(ast.Continue()))
    is_bare = isinstance(node, ast.expr) and not isinstance(node, ast.Compare | ast.BoolOp | ast.UnaryOp)
    if isinstance(node, ast.expr) and is_bare and name == "test" and isinstance(parent, ast.If | ast.IfExp):
        yield Site(line, f"not {ast.unparse(node)[:50]}", put(ast.UnaryOp(ast.Not(), node)))


def _word(op: ast.AST) -> str:
    return type(op).__name__


def planted(source: str, index: int) -> tuple[ast.Module, Site]:
    """The module with its `index`-th fault, from 0."""
    tree = ast.parse(source)
    site = list(sites(tree))[index]
    site.plant()
    return tree, site
