"""Formulas over meters: how a price book turns work that is not text into equivalent tokens.

A small language of its own, exact and without eval: meters, decimal constants, + - * / ( ), max,
min, and the three roundings. Its grammar is a part of Python's, which the worker reads it with.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from steelyard.errors import Refusal
from steelyard.metering.usage import METERS

CHARACTERS_MAX = 500
DEPTH_MAX = 30

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:0|[1-9][0-9]{0,17})(?:\.[0-9]{1,18})?)(?![\w.])"
    r"|(?P<name>[a-z][a-z0-9_]*(?:\.[a-z][a-z0-9_]*)*)(?![\w.])"
    r"|(?P<sign>[-+*/(),]))",
    re.ASCII,
)
_ROUNDINGS: Mapping[str, Callable[[Fraction], int]] = {
    "ceil": math.ceil,
    "floor": math.floor,
    "round_half_even": round,
}


class FormulaMalformed(Refusal):
    """The formula is not in the language of formulas."""

    code = "formula_malformed"


@dataclass(frozen=True, slots=True)
class Span:
    """All values between the lowest and the highest."""

    low: Fraction
    high: Fraction

    @classmethod
    def around(cls, values: Sequence[Fraction]) -> "Span":
        return cls(min(values), max(values))


@dataclass(frozen=True, slots=True)
class Number:
    value: Fraction

    @property
    def is_whole(self) -> bool:
        return self.value.denominator == 1

    def span(self, counts: Mapping[str, Span]) -> Span:
        del counts
        return Span(self.value, self.value)

    def parts(self) -> tuple["Node", ...]:
        return ()


@dataclass(frozen=True, slots=True)
class MeterCount:
    meter: str

    @property
    def is_whole(self) -> bool:
        return True

    def span(self, counts: Mapping[str, Span]) -> Span:
        return counts.get(self.meter, _NOTHING)

    def parts(self) -> tuple["Node", ...]:
        return ()


@dataclass(frozen=True, slots=True)
class Operation:
    """Two values with one of + - * between them; a division is a product with the reciprocal."""

    sign: str
    left: "Node"
    right: "Node"

    @property
    def is_whole(self) -> bool:
        return self.left.is_whole and self.right.is_whole

    def span(self, counts: Mapping[str, Span]) -> Span:
        left, right = self.left.span(counts), self.right.span(counts)
        match self.sign:
            case "+":
                return Span(left.low + right.low, left.high + right.high)
            case "-":
                return Span(left.low - right.high, left.high - right.low)
            case _:
                ends = [a * b for a in (left.low, left.high) for b in (right.low, right.high)]
                return Span.around(ends)

    def parts(self) -> tuple["Node", ...]:
        return (self.left, self.right)


@dataclass(frozen=True, slots=True)
class Call:
    """One of the functions. All of them only grow with their arguments."""

    function: str
    arguments: tuple["Node", ...]

    @property
    def is_whole(self) -> bool:
        return self.function in _ROUNDINGS or all(part.is_whole for part in self.arguments)

    def span(self, counts: Mapping[str, Span]) -> Span:
        spans = [argument.span(counts) for argument in self.arguments]
        rounding = _ROUNDINGS.get(self.function)
        if rounding:
            return Span(Fraction(rounding(spans[0].low)), Fraction(rounding(spans[0].high)))
        choose = max if self.function == "max" else min
        return Span(choose(span.low for span in spans), choose(span.high for span in spans))

    def parts(self) -> tuple["Node", ...]:
        return self.arguments


Node = Number | MeterCount | Operation | Call
_NOTHING = Span(Fraction(0), Fraction(0))


@dataclass(frozen=True, slots=True)
class Formula:
    """A formula that was understood; it gives a whole number that is not negative."""

    text: str
    root: Node

    @property
    def meters(self) -> frozenset[str]:
        return frozenset(_meters(self.root))

    def evaluate(self, counts: Mapping[str, int]) -> int:
        """The equivalent tokens of these counts; below zero counts as zero."""
        exact = {meter: Span(Fraction(n), Fraction(n)) for meter, n in counts.items()}
        return self._whole(self.root.span(exact))

    def highest(self, counts_max: Mapping[str, int]) -> int:
        """No counts up to these give more."""
        spans = {meter: Span(Fraction(0), Fraction(n)) for meter, n in counts_max.items()}
        return self._whole(self.root.span(spans))

    def _whole(self, span: Span) -> int:
        assert span.high.denominator == 1, f"{self.text!r} gives {span.high}, which is not whole"
        return max(0, span.high.numerator)


def read_formula(text: str) -> Formula:
    """Parse a formula; raises FormulaMalformed for whatever is not in the language."""
    text = " ".join(text.split())
    if len(text) > CHARACTERS_MAX:
        raise FormulaMalformed(f"a formula has at most {CHARACTERS_MAX} characters")
    parser = _Parser(text)
    root = parser.read_whole()
    if not root.is_whole:
        raise FormulaMalformed(
            "the result may be a fraction; wrap it in ceil(), floor() or round_half_even()"
        )
    return Formula(text, root)


def _meters(node: Node) -> Iterator[str]:
    if isinstance(node, MeterCount):
        yield node.meter
    for part in node.parts():
        yield from _meters(part)


class _Parser:
    """Recursive descent: sums of products of atoms."""

    def __init__(self, text: str) -> None:
        self._tokens = list(_tokens(text))
        self._next = 0

    def read_whole(self) -> Node:
        root = self._sum(depth=0)
        if self._next < len(self._tokens):
            raise FormulaMalformed(
                f"{self._tokens[self._next]!r} stands where the formula could end"
            )
        return root

    def _peek(self) -> str:
        return self._tokens[self._next] if self._next < len(self._tokens) else ""

    def _take(self) -> str:
        token = self._peek()
        if not token:
            raise FormulaMalformed("the formula ends too early")
        self._next += 1
        return token

    def _expect(self, sign: str) -> None:
        found = self._take()
        if found != sign:
            raise FormulaMalformed(f"expected {sign!r}, found {found!r}")

    def _sum(self, *, depth: int) -> Node:
        if depth > DEPTH_MAX:
            raise FormulaMalformed(f"brackets go at most {DEPTH_MAX} deep")
        left = self._product(depth=depth)
        while self._peek() in {"+", "-"}:
            left = Operation(self._take(), left, self._product(depth=depth))
        return left

    def _product(self, *, depth: int) -> Node:
        left = self._atom(depth=depth)
        while self._peek() in {"*", "/"}:
            sign, right = self._take(), self._atom(depth=depth)
            left = Operation("*", left, _reciprocal(right) if sign == "/" else right)
        return left

    def _atom(self, *, depth: int) -> Node:
        token = self._take()
        if token == "-":
            if depth > DEPTH_MAX:
                raise FormulaMalformed(f"signs and brackets go at most {DEPTH_MAX} deep")
            return Operation("-", Number(Fraction(0)), self._atom(depth=depth + 1))
        if token == "(":
            inner = self._sum(depth=depth + 1)
            self._expect(")")
            return inner
        if token[0].isdigit():
            return Number(Fraction(token))
        if token in METERS:
            return MeterCount(token)
        if self._peek() == "(" and (token in _ROUNDINGS or token in {"max", "min"}):
            return self._call(token, depth=depth)
        raise FormulaMalformed(
            f"{token!r} is neither a meter nor one of ceil, floor, round_half_even, max, min"
        )

    def _call(self, function: str, *, depth: int) -> Node:
        self._expect("(")
        arguments = [self._sum(depth=depth + 1)]
        while self._peek() == ",":
            self._expect(",")
            arguments.append(self._sum(depth=depth + 1))
        self._expect(")")
        is_rounding = function in _ROUNDINGS
        if (len(arguments) == 1) != is_rounding:
            wanted = "one value" if is_rounding else "at least two values"
            raise FormulaMalformed(f"{function}() takes {wanted}")
        return Call(function, tuple(arguments))


def _reciprocal(divisor: Node) -> Number:
    """Only constants divide, so that no usage can make a formula fail."""
    if any(True for _ in _meters(divisor)):
        raise FormulaMalformed("divide by constants only: a meter may count zero")
    value = divisor.span({}).high
    if not value:
        raise FormulaMalformed("a division by zero")
    return Number(Fraction(value.denominator, value.numerator))


def _tokens(text: str) -> Iterator[str]:
    position = 0
    stripped = text.rstrip()
    while position < len(stripped):
        found = _TOKEN.match(stripped, position)
        if not found:
            raise FormulaMalformed(f"{stripped[position:].strip()[:20]!r} is not understood")
        yield found.group(found.lastgroup or 0)
        position = found.end()
