"""The worker's own reading of a price book's formulas: Python's grammar, exact fractions, no eval.

The gateway parses and evaluates formulas by code of its own (`pricing/formula.py`); the two share
nothing but the language, which is a small part of Python's.
"""

import ast
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from functools import cache

_BINARY: Mapping[type[ast.operator], Callable[[Fraction, Fraction], Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: lambda left, right: left * Fraction(right.denominator, right.numerator),
}
_FUNCTIONS: Mapping[str, Callable[[Sequence[Fraction]], Fraction]] = {
    "ceil": lambda values: Fraction(math.ceil(values[0])),
    "floor": lambda values: Fraction(math.floor(values[0])),
    "round_half_even": lambda values: Fraction(round(values[0])),
    "max": max,
    "min": min,
}


def formula_meters(text: str) -> frozenset[str]:
    """The meters that a formula names."""
    return frozenset(_meters(_parsed(text)))


def evaluate_formula(text: str, counts: Mapping[str, int]) -> int:
    """The whole number that the formula gives; a meter that was not used counts zero."""
    value = _value(_parsed(text), counts, text)
    assert value.denominator == 1, f"{text!r} gave {value}, which is not whole"
    return max(0, value.numerator)


@cache
def _parsed(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def _meters(node: ast.expr) -> list[str]:
    match node:
        case ast.Name() | ast.Attribute():
            return [ast.unparse(node)]
        case ast.BinOp(left=left, right=right):
            return _meters(left) + _meters(right)
        case ast.UnaryOp(operand=operand):
            return _meters(operand)
        case ast.Call(args=arguments):
            return [name for argument in arguments for name in _meters(argument)]
        case _:
            return []


def _value(node: ast.expr, counts: Mapping[str, int], text: str) -> Fraction:
    match node:
        case ast.Constant():
            # The constant as it is written: Python's own value of it may be a float.
            return Fraction(ast.get_source_segment(text, node) or "")
        case ast.Name() | ast.Attribute():
            return Fraction(counts.get(ast.unparse(node), 0))
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand, counts, text)
        case ast.BinOp(left=left, op=operation, right=right):
            apply = _BINARY[type(operation)]
            return apply(_value(left, counts, text), _value(right, counts, text))
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return _FUNCTIONS[name]([_value(argument, counts, text) for argument in arguments])
        case _:
            raise AssertionError(f"{text!r} was published, but it is not in the language")
