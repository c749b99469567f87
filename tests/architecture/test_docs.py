"""What users meet is documented: commands, settings, topics, errors, the machine, and public functions."""

import ast
import re
import tomllib
from pathlib import Path

import click
import msgspec
import pytest

from agent import config as agent_config
from agent.machine import diagram
from edgeml import errors, topics
from edgeml.cli import edgeml
from edgeml.errors import EdgemlError
from fleet import config as fleet_config

ROOT = Path(__file__).parents[2]
DOCS = {path.name: path.read_text() for path in (ROOT / "docs").glob("*.md")}


def commands(group=edgeml, prefix="edgeml"):
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield f"{prefix} {name}", command
        if isinstance(command, click.Group):
            yield from commands(command, f"{prefix} {name}")


COMMANDS = dict(commands())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name):
    command = COMMANDS[name]
    assert command.help, name
    if not isinstance(command, click.Group):
        assert "Example" in command.help, f"{name} shows no example"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_in_the_reference(name):
    assert f"`{name}`" in DOCS["commands.md"]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_help(name):
    for parameter in COMMANDS[name].params:
        if isinstance(parameter, click.Option):
            assert parameter.help or parameter.name == "help", f"{name} {parameter.opts}"


def all_errors(kind=EdgemlError):
    for child in kind.__subclasses__():
        if child.__module__ == errors.__name__:
            yield child
            yield from all_errors(child)


@pytest.mark.parametrize("error", sorted(set(all_errors()), key=lambda e: e.__name__))
def test_every_error_is_documented_with_its_exit_code(error):
    assert re.search(rf"\| `{error.__name__}` \| {error.exit_code} \|", DOCS["errors.md"])


@pytest.mark.parametrize("leaf", topics.RULES)
def test_every_topic_is_documented_with_its_rule(leaf):
    rule = topics.RULES[leaf]
    tails = {
        topics.Tail.NOTHING: "",
        topics.Tail.STREAM: "/{stream}",
        topics.Tail.MODEL: "/{model}",
        topics.Tail.CHANNEL: "/{channel}",
    }
    tail = leaf.value + tails[rule.tail]
    row = next(
        line
        for line in DOCS["protocol.md"].splitlines()
        if line.startswith(f"| `em/v1/{{tenant}}/d/{{device}}/{tail}`")
    )
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    direction = "up" if rule.direction is topics.Direction.UP else "down"
    assert cells[1:5] == [
        direction,
        str(rule.qos),
        "yes" if rule.retain else "no",
        f"{rule.bytes_max // 1024} KiB",
    ]


def config_fields(struct, prefix=""):
    for field in msgspec.structs.fields(struct):
        inner = [
            kind
            for kind in getattr(field.type, "__args__", (field.type,))
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct)
        ]
        if inner:
            yield from config_fields(inner[0], f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}"


@pytest.mark.parametrize("field", list(config_fields(agent_config.AgentConfig)))
def test_every_setting_of_the_agent_is_documented(field):
    assert f"`{field}`" in DOCS["agent-config.md"]


@pytest.mark.parametrize("field", list(config_fields(fleet_config.FleetConfig)))
def test_every_setting_of_the_fleet_is_documented(field):
    assert f"`{field}`" in DOCS["fleet-config.md"]


def test_the_diagram_of_the_machine_is_the_table():
    assert f"```mermaid\n{diagram()}```" in DOCS["device-machine.md"]


@pytest.mark.parametrize(
    "path",
    [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "README.md", ROOT / "ARCHITECTURE.md"],
    ids=lambda p: p.name,
)
def test_links_between_documents_lead_somewhere(path):
    for target in re.findall(r"\]\(([^)#]+)\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), target


def test_the_package_metadata_name_every_room_and_script():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == "edgeml-fleet"
    assert set(project["scripts"]) == {"edgeml", "edgeml-agent"}
    assert {
        "agent",
        "agent-tflite-runtime",
        "serve",
        "converters",
        "tflite",
        "tflite-micro",
        "fleet",
        "tools",
        "dev",
    } == set(project["optional-dependencies"])


def public_functions():
    for package in ("edgeml", "agent", "converters", "fleet"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
                    yield f"{path.relative_to(ROOT)}:{node.name}", node


@pytest.mark.parametrize(
    ("name", "node"), list(public_functions()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_every_public_name_has_a_docstring(name, node):
    assert ast.get_docstring(node), name
