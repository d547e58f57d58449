"""The documents say what the code does: every setting, command, error, meter and event field."""

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import typer
from prometheus_client import CollectorRegistry

import steelyard
from steelyard.billing.reconciliation import MONEY_CHECKS, NOTHING_SEEN, RECORD_CHECKS
from steelyard.billing.settlement_matrix import MATRIX, POLICIES
from steelyard.entrypoints.cli.main import application
from steelyard.entrypoints.gateway_metrics import GatewayMetrics
from steelyard.entrypoints.openai_api.error_answer import HTTP_STATUS
from steelyard.entrypoints.worker_metrics import LogStanding, WorkerMetrics
from steelyard.errors import SteelyardError
from steelyard.gateway.workloads.chat import parse_chat
from steelyard.metering.usage import METERS
from steelyard.metering.usage_event import UsageEvent, UsageRecord
from steelyard.settings import Settings
from steelyard.storage.recount_store import SideSums, UpstreamDrift
from tests.world import World

REPOSITORY = Path(__file__).parents[2]
SOURCE = REPOSITORY / "src" / "steelyard"
DOCS = REPOSITORY / "docs"
REFERENCE = DOCS / "reference"
# What these modules raise can reach a caller over HTTP.
REACHING_CALLERS = (
    "steelyard.gateway",
    "steelyard.entrypoints.openai_api",
    "steelyard.access.virtual_key",
    "steelyard.access.rate_limit",
    "steelyard.pricing.price_book",
    "steelyard.eventlog.log",
    "steelyard.metering.upstream_usage",
    "steelyard.storage.database",
)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def test_every_setting_is_documented_with_its_default() -> None:
    rows = dict(_rows(REFERENCE / "settings.md"))

    fields = Settings.model_fields
    documented = {name for name in rows if name.startswith("STEELYARD_")}
    wrong = [
        name
        for name, field in fields.items()
        if isinstance(field.default, str | int | float)
        and rows.get(_variable(name), [""])[0] != f"`{field.default}`"
    ]

    assert documented - {"STEELYARD_CONFIG"} == {_variable(name) for name in fields}
    assert wrong == []


def test_every_error_code_is_documented() -> None:
    documented = {code for code, _ in _rows(REFERENCE / "errors.md")}

    missing = {code for code in _codes() if code not in documented}

    assert missing == set()


def test_every_documented_status_is_the_one_that_is_answered() -> None:
    section = _section(REFERENCE / "errors.md", "From the gateway")
    documented = {code: cells[0] for code, cells in _rows_of(section)}

    statuses = {kind.code: str(status) for kind, status in HTTP_STATUS.items()}
    wrong = {
        code: status
        for code, status in statuses.items()
        if code not in {"failed", "refused", "error"} and documented.get(code) != status
    }

    assert wrong == {}


def test_every_error_that_can_reach_a_caller_has_a_status() -> None:
    kinds = set(_kinds_that_reach_callers())

    without = {kind.__name__ for kind in kinds if not set(kind.__mro__) & HTTP_STATUS.keys()}

    assert kinds
    assert without == set()


def test_every_end_cause_is_documented_with_its_basis() -> None:
    causes, policies = (DOCS / "settlement-matrix.md").read_text().split("## Policies")

    documented = {cause: cells[1].strip("`") for cause, cells in _rows_of(causes)}

    assert documented == dict(MATRIX)
    assert {policy for policy, _ in _rows_of(policies)} == set(POLICIES)


def test_every_command_is_documented_with_an_example_of_its_own() -> None:
    rows = dict(_rows(REFERENCE / "cli.md"))

    commands = commands_of_the_program()
    without = {name for name in commands if not rows.get(name, ["", ""])[1].startswith(f"`{name}")}

    assert set(rows) == commands
    assert without == set()


class Drifting:
    """An audit that has found something to tell."""

    drifts = (UpstreamDrift("up", "model", 1, 0, 0, 0, SideSums(1, 9, 8), SideSums(1, 5, 5)),)

    def exceeds(self, sums: SideSums) -> bool:
        return sums.drift_ppm > 0


def test_every_metric_of_the_worker_is_documented_with_its_kind_and_labels() -> None:
    rows = _rows_of(_section(REFERENCE / "metrics.md", "Worker"))
    metrics = WorkerMetrics()
    balances = {("held", "USD"): 1}
    metrics.reconciled = lambda: replace(NOTHING_SEEN, balances=balances)
    metrics.logs = {"a log": LogStanding(1, 2)}
    metrics.audited = Drifting()

    documented = {name: (cells[0], cells[1]) for name, cells in rows}

    assert documented == dict(_metrics_of(metrics.registry))


def test_every_metric_of_the_gateway_is_documented_with_its_kind_and_labels(
    sqlite_world: World,
) -> None:
    rows = _rows_of(_section(REFERENCE / "metrics.md", "Gateway"))
    sqlite_world.organisation(dollars="1")
    metrics = GatewayMetrics(sqlite_world.gateway())
    for _ in range(2):
        sqlite_world.chat()
    sqlite_world.keep_leases()
    sqlite_world.requests.refuse("a code")
    plan = sqlite_world.admission.catalog.plan(
        parse_chat(b'{"messages": [{"role": "user", "content": "x"}]}')
    )
    sqlite_world.requests.try_again(msgspec.structs.replace(plan.first(), again="other"))
    found: dict[str, tuple[str, str]] = {}

    def watch() -> None:
        found.update(_metrics_of(metrics.registry))

    sqlite_world.chat(stream=True, watches=watch)

    documented = {name: (cells[0], cells[1]) for name, cells in rows}
    assert documented == found


def test_every_check_of_the_reconciliation_is_documented() -> None:
    section = _section(REFERENCE / "metrics.md", "Reconciliation")
    of_money, of_records = section.split("Of `steelyard_unexplained_records`")

    documented = [[name for name, _ in _rows_of(part)] for part in (of_money, of_records)]

    assert sorted(documented[0]) == sorted(MONEY_CHECKS)
    assert sorted(documented[1]) == sorted(RECORD_CHECKS)


def test_every_meter_is_documented_with_its_meaning() -> None:
    rows = _rows_of(_section(REFERENCE / "price-book.md", "Meters"))

    documented = {meter: cells[0] for meter, cells in rows}

    assert documented == dict(METERS)


def test_every_field_of_a_usage_event_is_documented() -> None:
    text = (REFERENCE / "usage-event.md").read_text()
    envelope, record = _section_names(text, "Envelope"), _section_names(text, "Record")

    fields = UsageEvent.__struct_fields__, UsageRecord.__struct_fields__

    assert (envelope, record) == (set(fields[0]), set(fields[1]))


def test_the_changelog_begins_with_the_version_of_the_package() -> None:
    text = (REPOSITORY / "CHANGELOG.md").read_text()

    newest = re.search(r"^## \[([^\]]+)\]", text, re.MULTILINE)

    assert newest is not None
    assert newest.group(1) == steelyard.__version__


def test_every_relative_link_leads_somewhere() -> None:
    links = [(path, link) for path in _documents() for link in _relative_links(path)]

    broken = [
        f"{path.relative_to(REPOSITORY)}: {link}"
        for path, link in links
        if not (path.parent / link).exists()
    ]

    assert links
    assert broken == []


def test_every_decision_is_in_the_index_under_a_number_of_its_own() -> None:
    index = (DOCS / "adr" / "README.md").read_text()

    records = [path.name for path in sorted((DOCS / "adr").glob("0*.md"))]

    assert [name for name in records if f"({name})" not in index] == []
    assert len({name[:4] for name in records}) == len(records)


def _metrics_of(registry: CollectorRegistry) -> Iterator[tuple[str, tuple[str, str]]]:
    """Each metric that a registry tells now: its kind, and its labels as the documents write them."""
    for family in registry.collect():
        if not family.samples:
            continue
        labels = [label for label in family.samples[0].labels if label != "le"]
        yield family.name, (family.type, ", ".join(f"`{label}`" for label in labels) or "none")


def _variable(field: str) -> str:
    return f"STEELYARD_{field.upper()}"


def _rows(path: Path) -> list[tuple[str, list[str]]]:
    return _rows_of(path.read_text())


def _rows_of(text: str) -> list[tuple[str, list[str]]]:
    """The rows of all tables: each name in code of the first cell, with the cells after it."""
    found: list[tuple[str, list[str]]] = []
    for line in FENCED.sub("", text).splitlines():
        if line.startswith("| `"):
            first, *others = (cell.strip() for cell in line.strip("| ").split(" | "))
            found += [(name, others) for name in re.findall(r"`([^`]+)`", first)]
    return found


def _section(path: Path, title: str) -> str:
    _, _, after = path.read_text().partition(f"\n## {title}\n")
    assert after, f"{path.name} has no section {title!r}"
    return after.partition("\n## ")[0]


def _section_names(text: str, title: str) -> set[str]:
    _, _, after = text.partition(f"\n## {title}\n")
    return {name for name, _ in _rows_of(after.partition("\n## ")[0])}


def _codes() -> Iterator[str]:
    """Every stable code in the source, read without importing what needs torch."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ClassDef):
                continue
            for statement in node.body:
                match statement:
                    case ast.Assign(targets=[ast.Name(id="code")], value=ast.Constant(value=code)):
                        assert isinstance(code, str)
                        yield code
                    case _:
                        pass


def _kinds_that_reach_callers() -> Iterator[type[SteelyardError]]:
    for name in REACHING_CALLERS:
        module = importlib.import_module(name)
        names = [name]
        if hasattr(module, "__path__"):
            found = pkgutil.walk_packages(module.__path__, f"{name}.")
            names += [submodule.name for submodule in found]
        for full_name in names:
            for kind in vars(importlib.import_module(full_name)).values():
                is_its_own = isinstance(kind, type) and kind.__module__ == full_name
                if is_its_own and issubclass(kind, SteelyardError):
                    yield kind


def commands_of_the_program() -> set[str]:
    return set(_commands(application, "steelyard"))


def _commands(group: typer.Typer, path: str) -> Iterator[str]:
    for command in group.registered_commands:
        assert command.name, f"a command of {path} has no name of its own"
        yield f"{path} {command.name}"
    for child in group.registered_groups:
        assert child.typer_instance is not None, f"a group of {path} is empty"
        yield from _commands(child.typer_instance, f"{path} {child.name}")


def _documents() -> list[Path]:
    folders = (DOCS, REPOSITORY / "src", REPOSITORY / "tests", REPOSITORY / "benchmarks")
    return [
        *sorted(REPOSITORY.glob("*.md")),
        *(path for folder in folders for path in sorted(folder.rglob("*.md"))),
    ]


def _relative_links(path: Path) -> Iterator[str]:
    for link in LINK.findall(FENCED.sub("", path.read_text())):
        if "://" not in link and not link.startswith("#"):
            yield link.partition("#")[0]
