"""The shape of the code itself: short functions, short files, no floats where money is."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
SOURCE = REPOSITORY / "src"
FUNCTION_LINES_MAX = 60
FILE_LINES_MAX = 500
MIGRATIONS = "storage/migrations/versions/"
MONEY_PACKAGES = ("pricing", "ledger", "billing")
# May shrink, never grow.
KNOWN_LONG: set[str] = {"steelyard/storage/migrations/versions/m0002_books.py:upgrade"}
BANNED_NAMES = re.compile(
    r"(?i)^(utils?|helpers?|common|misc|data|info|process|handle)$|Manager$|Helper$"
)


def _files() -> Iterator[tuple[str, str]]:
    for path in sorted(SOURCE.rglob("*.py")):
        yield str(path.relative_to(SOURCE)), path.read_text()


def _definitions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef]]:
    for name, text in _files():
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield f"{name}:{node.name}", node


def _lines(node: ast.AST) -> int:
    assert isinstance(node, ast.stmt)
    return (node.end_lineno or node.lineno) - node.lineno + 1


def test_every_function_fits_on_a_screen() -> None:
    functions = [(n, d) for n, d in _definitions() if not isinstance(d, ast.ClassDef)]

    longest = sorted(((_lines(node), name) for name, node in functions), reverse=True)
    too_long = {name for lines, name in longest if lines > FUNCTION_LINES_MAX}

    print("\n".join(f"{lines:4} {name}" for lines, name in longest[:10]))
    assert too_long == KNOWN_LONG


def test_every_file_is_one_sitting() -> None:
    lengths = sorted(((len(text.splitlines()), name) for name, text in _files()), reverse=True)

    print("\n".join(f"{lines:4} {name}" for lines, name in lengths[:10]))
    # A migration is written once and never read again.
    assert [n for lines, n in lengths if lines > FILE_LINES_MAX and MIGRATIONS not in n] == []


def test_no_name_hides_the_real_one() -> None:
    names = {definition for definition, _ in _definitions()}
    stems = {Path(name).stem for name, _ in _files()}

    hidden = {name for name in names if BANNED_NAMES.search(name.rsplit(":", 1)[1])}

    assert hidden | {stem for stem in stems if BANNED_NAMES.search(stem)} == set()


def test_no_float_comes_near_money() -> None:
    found: list[str] = []
    for name, text in _files():
        if not name.startswith(tuple(f"steelyard/{package}/" for package in MONEY_PACKAGES)):
            continue
        for node in ast.walk(ast.parse(text)):
            is_float = isinstance(node, ast.Constant) and isinstance(node.value, float)
            is_named = isinstance(node, ast.Name) and node.id == "float"
            is_division = isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)
            # Fractions divide exactly; they live in one file.
            if is_float or is_named or (is_division and "event_rating" not in name):
                found.append(f"{name}:{getattr(node, 'lineno', 0)}")

    assert found == []


def test_every_module_says_what_lives_in_it() -> None:
    silent = [
        name
        for name, text in _files()
        if text.strip() and ast.get_docstring(ast.parse(text)) is None
    ]

    assert silent == []


def test_no_file_names_a_machine_or_a_registry() -> None:
    pattern = re.compile(r"/(work|root|home)/\w|pypi\.org|pythonhosted")
    files = [
        p for p in REPOSITORY.rglob("*") if p.suffix in {".py", ".md", ".toml", ".yaml", ".txt"}
    ]
    tracked = [
        p
        for p in files
        if not {".venv", ".steelyard", ".git"} & set(p.relative_to(REPOSITORY).parts)
    ]

    found = [str(p.relative_to(REPOSITORY)) for p in tracked if pattern.search(p.read_text())]

    assert found == ["tests/tidy/test_shape.py"]
