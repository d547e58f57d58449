"""A place in a YAML file: reads what stands there, and says the line of whatever is wrong."""

import re
from dataclasses import dataclass
from typing import cast

import yaml

from steelyard.errors import Refusal


class PriceBookMalformed(Refusal):
    """The price book cannot be read."""

    code = "price_book_malformed"


@dataclass(frozen=True, slots=True)
class Place:
    """A YAML node and the words that lead to it."""

    node: yaml.Node
    path: str

    @property
    def line(self) -> int:
        return self.node.start_mark.line + 1

    def malformed(self, complaint: str) -> PriceBookMalformed:
        return PriceBookMalformed(f"line {self.line}: {self.path or 'the book'}: {complaint}")

    def fields(self, *, required: set[str], optional: set[str]) -> dict[str, "Place"]:
        """The entries of a mapping; unknown, repeated and missing keys are refused."""
        found = self.entries()
        for key in found:
            if key not in required | optional:
                known = ", ".join(sorted(required | optional))
                raise found[key].malformed(f"unknown key; the keys here are {known}")
        for key in sorted(required - found.keys()):
            raise self.malformed(f"the key '{key}' is missing")
        return found

    def entries(self) -> dict[str, "Place"]:
        if not isinstance(self.node, yaml.MappingNode):
            raise self.malformed("expected a mapping of keys to values")
        found: dict[str, Place] = {}
        for key_node, value_node in cast("list[tuple[yaml.Node, yaml.Node]]", self.node.value):
            key = Place(key_node, self.path).text()
            place = Place(value_node, f"{self.path}.{key}" if self.path else key)
            if key in found:
                raise place.malformed("the key stands here twice")
            found[key] = place
        return found

    def items(self) -> list["Place"]:
        if not isinstance(self.node, yaml.SequenceNode):
            raise self.malformed("expected a list")
        nodes = cast("list[yaml.Node]", self.node.value)
        return [Place(node, f"{self.path}[{i}]") for i, node in enumerate(nodes)]

    def text(self) -> str:
        """The scalar as it is written, so that no number passes through a float."""
        if not isinstance(self.node, yaml.ScalarNode):
            raise self.malformed("expected a single value")
        return str(self.node.value)

    def whole(self) -> int:
        """A whole number as people write it, with underscores; zero for anything else."""
        digits = self.text().replace("_", "")
        return int(digits) if re.fullmatch("[0-9]{1,18}", digits) else 0


def compose(text: str) -> Place:
    """The root of a YAML document; raises PriceBookMalformed if there is none."""
    try:
        root = cast("yaml.Node | None", yaml.compose(text, Loader=yaml.SafeLoader))  # pyright: ignore[reportUnknownMemberType] - its stub leaves the stream untyped
    except (yaml.YAMLError, RecursionError) as error:
        raise PriceBookMalformed(f"not YAML: {error}") from error
    if root is None:
        raise PriceBookMalformed("the file is empty")
    return Place(root, "")
