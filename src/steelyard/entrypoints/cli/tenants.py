"""`steelyard org | department | project`: who uses, and who pays."""

from dataclasses import replace
from typing import Annotated, Any

import typer

from steelyard.access.tenant import (
    Department,
    Organisation,
    PaysFrom,
    Project,
    read_tax,
    read_time_zone,
    write_tax,
)
from steelyard.entrypoints.cli.output import JsonFlag, show, show_rows, stores_opened
from steelyard.ids import new_id, read_name
from steelyard.money import read_currency
from steelyard.timestamp import write_timestamp

organisations = typer.Typer(no_args_is_help=True, help="Organisations: who pays.")
departments = typer.Typer(no_args_is_help=True, help="Departments: whose use it is.")
projects = typer.Typer(no_args_is_help=True, help="Projects: parts of a department's work.")

TimeZoneOption = Annotated[
    str | None, typer.Option(help="Whose days and months count, as Asia/Shanghai; default: UTC.")
]
TaxOption = Annotated[str | None, typer.Option(help="Per cent that invoices add, as 19 or 7.7.")]
PlanOption = Annotated[str | None, typer.Option(help="The plan whose prices it pays.")]


def register(application: typer.Typer) -> None:
    application.add_typer(organisations, name="org")
    application.add_typer(departments, name="department")
    application.add_typer(projects, name="project")


@organisations.command(
    "create", epilog="Example: `steelyard org create acme --currency EUR --tax 19`"
)
def create_organisation(
    name: Annotated[str, typer.Argument(help="Lower-case letters, digits and dashes.")],
    currency: Annotated[str, typer.Option(help="What it pays in, as in ISO 4217.")] = "USD",
    time_zone: TimeZoneOption = None,
    tax: TaxOption = None,
    plan: PlanOption = None,
    json: JsonFlag = False,
) -> None:
    """Create an organisation."""
    with stores_opened() as stores:
        blank = Organisation(new_id(), read_name(name), read_currency(currency), stores.clock.now())
        organisation = _with_settings(blank, time_zone=time_zone, tax=tax, plan=plan)
        stores.access.insert_organisation(organisation)
    show(_organisation(organisation), as_json=json, title="organisation created")


@organisations.command("set", epilog="Example: `steelyard org set acme --time-zone Asia/Shanghai`")
def set_organisation(
    name: Annotated[str, typer.Argument(help="The organisation.")],
    time_zone: TimeZoneOption = None,
    tax: TaxOption = None,
    plan: PlanOption = None,
    no_plan: Annotated[bool, typer.Option("--no-plan", help="Back to the list prices.")] = False,
    json: JsonFlag = False,
) -> None:
    """Change an organisation's settings; those that are not named stay."""
    with stores_opened() as stores:
        found = stores.access.find_organisation(name)
        changed = _with_settings(found, time_zone=time_zone, tax=tax, plan=plan)
        if no_plan:
            changed = replace(changed, plan=None)
        stores.access.update_organisation(changed)
    show(_organisation(changed), as_json=json, title="organisation changed")


@organisations.command("list", epilog="Example: `steelyard org list --json`")
def list_organisations(json: JsonFlag = False) -> None:
    """List the organisations."""
    with stores_opened() as stores:
        rows = [_organisation(organisation) for organisation in stores.access.organisations()]
    columns = ["organisation", "currency", "time_zone", "tax", "plan", "created_at"]
    show_rows(rows, columns, as_json=json, empty="no organisation yet: steelyard org create NAME")


@departments.command(
    "create", epilog="Example: `steelyard department create acme/research --pays-from department`"
)
def create_department(
    path: Annotated[str, typer.Argument(help="organisation/department")],
    pays_from: Annotated[
        str,
        typer.Option(
            help="Whose balance it spends: that of its `organisation`, or its own (`department`)."
        ),
    ] = "organisation",
    json: JsonFlag = False,
) -> None:
    """Create a department in an organisation."""
    organisation_name, _, name = path.partition("/")
    with stores_opened() as stores:
        department = Department(
            id=new_id(),
            organisation=stores.access.find_organisation(organisation_name),
            name=read_name(name),
            pays_from=_read_pays_from(pays_from),
            created_at=stores.clock.now(),
        )
        stores.access.insert_department(department)
    show(_department(department), as_json=json, title="department created")


@departments.command("list", epilog="Example: `steelyard department list`")
def list_departments(json: JsonFlag = False) -> None:
    """List the departments of all organisations."""
    with stores_opened() as stores:
        rows = [_department(department) for department in stores.access.departments()]
    columns = ["department", "pays_from", "currency", "created_at"]
    show_rows(
        rows, columns, as_json=json, empty="no department yet: steelyard department create ORG/NAME"
    )


@projects.command("create", epilog="Example: `steelyard project create acme/research/vision`")
def create_project(
    path: Annotated[str, typer.Argument(help="organisation/department/project")],
    json: JsonFlag = False,
) -> None:
    """Create a project in a department; its keys can have budgets together."""
    department_path, _, name = path.rpartition("/")
    with stores_opened() as stores:
        department = stores.access.find_department(department_path)
        project = Project(new_id(), department, read_name(name), stores.clock.now())
        stores.access.insert_project(project)
    show(_project(project), as_json=json, title="project created")


@projects.command("list", epilog="Example: `steelyard project list`")
def list_projects(json: JsonFlag = False) -> None:
    """List the projects of all departments."""
    with stores_opened() as stores:
        rows = [_project(project) for project in stores.access.projects()]
    empty = "no project yet: steelyard project create ORG/DEPARTMENT/NAME"
    show_rows(rows, ["project", "created_at", "id"], as_json=json, empty=empty)


def _with_settings(
    organisation: Organisation, *, time_zone: str | None, tax: str | None, plan: str | None
) -> Organisation:
    """The organisation with those settings that were named."""
    return replace(
        organisation,
        time_zone=organisation.time_zone if time_zone is None else read_time_zone(time_zone),
        tax_ppm=organisation.tax_ppm if tax is None else read_tax(tax),
        plan=organisation.plan if plan is None else read_name(plan),
    )


def _read_pays_from(text: str) -> PaysFrom:
    if text == "organisation" or text == "department":
        return text
    raise typer.BadParameter("--pays-from is organisation or department")


def _organisation(organisation: Organisation) -> dict[str, Any]:
    return {
        "organisation": organisation.name,
        "id": organisation.id,
        "currency": organisation.currency,
        "time_zone": organisation.time_zone,
        "tax": f"{write_tax(organisation.tax_ppm)} %",
        "plan": organisation.plan,
        "created_at": write_timestamp(organisation.created_at),
    }


def _department(department: Department) -> dict[str, Any]:
    return {
        "department": department.path,
        "id": department.id,
        "pays_from": department.pays_from,
        "currency": department.organisation.currency,
        "created_at": write_timestamp(department.created_at),
    }


def _project(project: Project) -> dict[str, Any]:
    return {
        "project": project.path,
        "id": project.id,
        "created_at": write_timestamp(project.created_at),
    }
