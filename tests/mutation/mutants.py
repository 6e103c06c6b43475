"""The mutants of a module: each is the module with one small fault in one of its functions."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType

__all__ = ["Mutant", "mutants_of"]

#: What an operator, a function or a member of an enumeration is taken for.
_OPERATORS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.BitOr: ast.BitAnd,
}
_BOUNDARIES = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
_NAMES = {"max": "min", "min": "max", "any": "all", "all": "any"}
_ENUMERATIONS = {
    "State": ("WAITING", "READY", "OUT", "DONE", "LEFT", "CLOSED"),
    "Verdict": ("ACKNOWLEDGE", "DEAD_LETTER", "STRIKE", "GIVE_BACK", "AGAIN"),
    "Admission": ("NEW", "JOINED", "SETTLED", "CONFLICT"),
}
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
#: What can be left out of a function without leaving a name out.
_STATEMENTS = (ast.Expr, ast.AugAssign, ast.Raise, ast.Delete, ast.Continue, ast.Break, ast.Return)


@dataclass(frozen=True)
class Mutant:
    """One fault: `line` says `after` instead of `before`. It is a `value` in a `field` of a node of `tree`."""

    line: int
    before: str
    after: str
    tree: ast.Module
    node: ast.AST
    field: str
    value: object

    def compiled(self, path: str) -> CodeType:
        """Return the code of the module with this fault, which stays in the tree."""
        setattr(self.node, self.field, self.value)
        ast.fix_missing_locations(self.tree)
        code: CodeType = compile(self.tree, path, "exec", dont_inherit=True)
        return code


def mutants_of(source: str) -> Iterator[Mutant]:
    """Yield every mutant. What stands outside functions, and what is only logged, stays as it is."""
    tree = ast.parse(source)
    for node in _changeable(tree, inside=False):
        for field, value, of in _changes(node):
            now = getattr(node, field)
            before = ast.unparse(of)
            if isinstance(of, ast.stmt) and of is not node:
                after = "raise" if isinstance(node, ast.ExceptHandler) else "nothing"
            elif isinstance(value, ast.AST) and isinstance(now, ast.expr):
                after = ast.unparse(value)
            else:
                setattr(node, field, value)
                after = "nothing" if isinstance(node, ast.comprehension) else ast.unparse(node)
                setattr(node, field, now)
            told = [" ".join(text.split()) for text in (before, after)]
            yield Mutant(of.lineno, told[0], told[1], tree, node, field, value)


def _changeable(tree: ast.AST, *, inside: bool) -> Iterator[ast.AST]:
    """Yield the functions and what is in them, but no annotation, no docstring, no logging."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, _FUNCTIONS):
            if child.name != "__repr__":
                yield child
                for statement in child.body:
                    yield from _changeable(ast.Module([statement], []), inside=True)
        elif isinstance(child, ast.AnnAssign) and child.value is not None:
            yield from _changeable(ast.List([child.value]), inside=inside)
        elif not _is_said(child):
            if inside:
                yield child
            yield from _changeable(child, inside=inside)


def _changes(node: ast.AST) -> Iterator[tuple[str, object, ast.expr | ast.stmt]]:
    """Yield what can be done to a node: the field, the value to put there, and of what it is a change."""
    for field, block in ast.iter_fields(node):
        if isinstance(block, list):
            for index, each in enumerate(block):
                if isinstance(each, ast.stmt) and _may_go(each):
                    yield field, [*block[:index], ast.Pass(), *block[index + 1 :]], each
    match node:
        case ast.If(test=test) | ast.IfExp(test=test) if not _can_be_turned(test):
            yield "test", ast.UnaryOp(ast.Not(), test), test
        case ast.comprehension(ifs=[*others, last]):
            yield "ifs", others, last
        case ast.ExceptHandler(body=[first, *_]):
            yield "body", [ast.Raise()], first
        case ast.BoolOp(op=op, values=parts):
            yield "op", _OPERATORS[type(op)](), node
            for part in parts:
                others = [each for each in parts if each is not part]
                # Python wants two at least.
                yield "values", others if len(others) > 1 else others * 2, node
        case ast.Compare(ops=[op]):
            yield "ops", [_OPERATORS[type(op)]()], node
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield "operand", ast.UnaryOp(ast.Not(), operand), node
        case ast.BinOp(op=op) | ast.AugAssign(op=op) if type(op) in _OPERATORS:
            yield "op", _OPERATORS[type(op)](), node
        case ast.Constant(value=bool() as truth):
            yield "value", not truth, node
        case ast.Constant(value=int() | float() as number):
            yield "value", number + 1, node
        case ast.Name(id=name) if name in _NAMES:
            yield "id", _NAMES[name], node
        case ast.Attribute(value=ast.Name(id=name), attr=member) if name in _ENUMERATIONS:
            members = _ENUMERATIONS[name]
            yield "attr", members[(members.index(member) + 1) % len(members)], node
        case ast.Set(elts=elements):
            for element in elements:
                yield "elts", [each for each in elements if each is not element], node


def _is_said(node: ast.AST) -> bool:
    """Whether it is a docstring, or logging."""
    return isinstance(node, ast.Expr) and (
        isinstance(node.value, ast.Constant) or ast.unparse(node).startswith("_log.")
    )


def _may_go(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Assign):
        return all(isinstance(each, ast.Attribute | ast.Subscript) for each in statement.targets)
    return isinstance(statement, _STATEMENTS) and not _is_said(statement)


def _can_be_turned(test: ast.expr) -> bool:
    """Whether another change turns the test round as a whole."""
    if isinstance(test, ast.Compare):
        return not isinstance(test.ops[0], _BOUNDARIES)
    return isinstance(test, ast.UnaryOp)
