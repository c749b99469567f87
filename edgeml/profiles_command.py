"""`edgeml profiles`: show what the shipped hardware profiles, and the user's own, offer.

Decides how a profile is printed: for people, as JSON, as the TOML it was read from. What a profile holds and whether
it is valid is decided in `edgeml.profile`; how an error is shown, and its exit code, in `edgeml.cli`.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import msgspec

from . import profile as profiles_
from .errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

NOTES_WIDTH: Final = 100
_DECIMAL_BYTES: Final = (1000, ("bytes", "kB", "MB", "GB", "TB"))
_BINARY_BYTES: Final = (1024, ("bytes", "KiB", "MiB", "GiB", "TiB"))


@click.group()
def profiles() -> None:
    """Hardware profiles: what a class of hardware offers.

    \b
    Example:
        edgeml profiles list
        edgeml profiles show raspberry-pi-4
    """  # click reads the control character, so the docstring must not be raw


@profiles.command("list")
@click.option("--json", "form", flag_value="json", help="Print every profile in full, as one JSON array.")
def list_(form: str | None) -> None:
    """List the profiles that ship with edgeml.

    \b
    Example:
        edgeml profiles list
        edgeml profiles list --json
    \f

    Raises:
        ConfigError: A shipped profile is damaged.
    """
    shipped = [profiles_.load(name) for name in profiles_.names()]
    if form == "json":
        click.echo(_json(shipped))
        return
    rows = [("NAME", "PROCESSOR", "MEMORY", "STORAGE", "RUNTIMES")]
    rows += [
        (
            profile.name,
            profile.processor,
            for_people(profile.memory),
            for_people(profile.storage),
            _runtimes(profile),
        )
        for profile in shipped
    ]
    click.echo(_aligned(rows))


@profiles.command()
@click.argument("name_or_path")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
@click.option("--toml", "as_toml", is_flag=True, help="Print the file as it is, to start your own from.")
def show(name_or_path: str, *, as_json: bool, as_toml: bool) -> None:
    """Show one profile: each number with its unit, its origin and its source.

    NAME_OR_PATH is the name of a shipped profile, `host` for this machine, or a path to a .toml file. Whichever form is asked for, the profile
    is checked first.

    \b
    Example:
        edgeml profiles show raspberry-pi-4
        edgeml profiles show raspberry-pi-4 --toml > my-board.toml
        edgeml profiles show ./my-board.toml --json
        edgeml profiles show host
    \f

    Raises:
        ConfigError: There is no such profile, it is not valid, or two forms are asked for.
    """
    if as_json and as_toml:
        raise ConfigError("--json and --toml are two forms of one profile", hint="give one of them")
    data = profiles_.read(name_or_path)
    profile = profiles_.decode(data, name_or_path)
    if as_toml:
        click.echo(data, nl=False)
    else:
        click.echo(_json(profile) if as_json else _described(profile))


@profiles.command()
@click.argument("name_or_path")
@click.argument("records", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--name", default="my-board", show_default=True, help="Name of the new profile.")
def calibrate(name_or_path: str, records: tuple[Path, ...], name: str) -> None:
    """Make the profile of your own board of NAME_OR_PATH and of what `edgeml measure --out` wrote there.

    What the board says of itself replaces what was estimated; the rest stays. Prints TOML.

    \b
    Example:
        edgeml profiles calibrate raspberry-pi-4 pi4.json > my-board.toml
    \f

    Raises:
        ConfigError: The measurements are of several machines, of another architecture, or were slowed down.
        ManifestError: A file is no measurement.
    """
    from .calibration import calibrate as run
    from .measurement import RECORD_BYTES_MAX, decode
    from .profile_text import encode

    read = []
    for path in records:
        try:
            with path.open("rb") as file:
                read.append(decode(file.read(RECORD_BYTES_MAX + 1), path.name))
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}", hint="check the path") from error
    click.echo(encode(run(profiles_.load(name_or_path), read, name)), nl=False)


def for_people(quantity: profiles_.Quantity) -> str:
    """Write a quantity with the unit that people use for its size.

    Memory chips are sold in powers of 1024 and cards in powers of 1000. Each is written in the one it was meant in,
    because 2 GiB of memory as 2.1 GB would look like a mistake.

    >>> from edgeml.profile import Origin, Quantity
    >>> sizes = [2147483648, 16000000000, 1500]
    >>> [for_people(Quantity(size, "bytes", Origin.ESTIMATED, "")) for size in sizes]
    ['2.0 GiB', '16.0 GB', '1.5 kB']
    >>> for_people(Quantity(1500, "MHz", Origin.ESTIMATED, ""))
    '1.5 GHz'
    """
    value, unit = quantity.value, quantity.unit
    if unit == "MHz" and value >= 1000:
        return f"{value / 1000:.1f} GHz"
    if unit != "bytes":
        return f"{value:g} {unit}"
    base, suffixes = _BINARY_BYTES if value % 1000 and not value % 1024 else _DECIMAL_BYTES
    step = 0
    while value >= base and step < len(suffixes) - 1:
        value /= base
        step += 1
    return f"{value:.1f} {suffixes[step]}" if step else f"{value:g} {suffixes[0]}"


def _described(profile: profiles_.HardwareProfile) -> str:
    about = [
        ("processor", profile.processor),
        ("architecture", profile.architecture.value),
        ("extensions", ", ".join(profile.extensions) or "none"),
        ("runtimes", _runtimes(profile)),
    ]
    numbers = [
        (field, for_people(quantity), quantity.origin.value, quantity.source)
        for field, quantity in profiles_.quantities(profile)
    ]
    parts = [
        f"{profile.name}: {profile.title}",
        _aligned(about),
        _aligned(numbers),
        textwrap.fill(profile.notes, NOTES_WIDTH),
    ]
    return "\n\n".join(part for part in parts if part)


def _runtimes(profile: profiles_.HardwareProfile) -> str:
    since = f" {profile.onnxruntime} or newer" if profile.onnxruntime else ""
    named = [one.value + since * (one is profiles_.DeviceRuntime.ONNXRUNTIME) for one in profile.runtimes]
    return ", ".join(named) or "none"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _json(thing: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(thing), indent=2).decode()
