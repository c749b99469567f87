"""`edgeml doctor`: says what is installed, what works here, and what to do about the rest.

Decides nothing; it looks, and never changes anything.
"""

from __future__ import annotations

import os
import platform
import shutil
from dataclasses import asdict, dataclass
from importlib import metadata, util
from typing import Final

import click

from .guest import Guest, named, version_here, version_in

PACKAGES: Final = {
    "agent": ("numpy", "onnxruntime", "ai_edge_litert", "tflite_runtime", "paho", "psutil", "tuf"),
    "serve": ("starlette", "uvicorn"),
    "converters": ("torch", "onnx", "onnxscript", "sklearn"),
    "fleet": ("sqlalchemy", "fastapi", "amqtt", "aiomqtt", "rich"),
}
OPTIONAL: Final = frozenset({"tflite_runtime", "ai_edge_litert"})


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at."""

    name: str
    good: bool
    said: str
    hint: str = ""


def examine() -> tuple[Finding, ...]:
    """Look at this machine."""
    findings = [
        Finding(
            "python",
            good=True,
            said=f"{platform.python_version()} on {platform.machine()}, {os.cpu_count()} cores",
        )
    ]
    for extra, packages in PACKAGES.items():
        missing = [name for name in packages if name not in OPTIONAL and util.find_spec(name) is None]
        findings.append(
            Finding(
                f"[{extra}]",
                good=not missing,
                said="installed" if not missing else f"missing: {', '.join(missing)}",
                hint=f"pip install 'edgeml-fleet[{extra}]'" if missing else "",
            )
        )
    runtimes = [name for name in ("onnxruntime", "ai-edge-litert", "tflite-runtime") if _version(name)]
    findings.append(
        Finding(
            "runtimes",
            good=bool(runtimes),
            said=", ".join(f"{name} {_version(name)}" for name in runtimes) or "none",
            hint="" if runtimes else "pip install 'edgeml-fleet[agent]'",
        )
    )
    mosquitto = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    findings.append(
        Finding(
            "mosquitto",
            good=mosquitto is not None,
            said=mosquitto or "not installed; the embedded broker is for trying out only",
            hint="" if mosquitto else "apt-get install mosquitto",
        )
    )
    owners = sorted(set(metadata.packages_distributions().get("agent", ())) - {"edgeml-fleet"})
    findings.append(
        Finding(
            "import names",
            good=not owners,
            said=f"package 'agent' also comes from {', '.join(owners)}" if owners else "no clash",
            hint=f"pip uninstall {' '.join(owners)}" if owners else "",
        )
    )
    if util.find_spec("torch") is not None:  # a workstation; no device converts
        findings.extend((_quantizer(), *map(_reach, Guest)))
    return tuple(findings)


def _quantizer() -> Finding:
    version = _version("ai-edge-quantizer")
    return Finding(
        "quantizer",
        good=bool(version),
        said=f"ai-edge-quantizer {version}" if version else "no ai-edge-quantizer: .tflite files stay float",
        hint="" if version else "pip install 'edgeml-fleet[converters]'",
    )


def _reach(guest: Guest) -> Finding:
    """Look for a guest here, then where its variable points."""
    if here := version_here(guest):
        return Finding(guest.value, good=True, said=f"{here}, in this interpreter")
    python = named(guest)
    if python is None:
        return Finding(
            guest.value, good=False, said=f"not here, and {guest.variable} is not set", hint=guest.recipe
        )
    if version := version_in(python, guest):
        return Finding(guest.value, good=True, said=f"{version}, in {python}")
    return Finding(
        guest.value,
        good=False,
        said=f"not in {python}, which {guest.variable} names",
        hint=guest.recipe,
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def tell(findings: tuple[Finding, ...], *, as_json: bool) -> None:
    """Print findings for people, or as JSON."""
    if as_json:
        import json

        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
        return
    for finding in findings:
        click.echo(f"{'ok ' if finding.good else '-- '} {finding.name:14} {finding.said}")
        if finding.hint:
            click.echo(f"{'':19}{finding.hint}")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Say what works on this machine, and how to get the rest.

    \b
    Example:
        edgeml doctor
    """
    tell(examine(), as_json=as_json)
