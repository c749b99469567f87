"""The command line of the fleet: `edgeml keys`, `edgeml fleet`, `edgeml demo`.

Decides how commands are written and answered. Nothing else: each calls one function of another file.
"""

from __future__ import annotations

from pathlib import Path

import click

from .claim_command import claim
from .device_command import device
from .options import (
    controller_runs,
    directory_option,
    home_of,
    in_fleet,
    json_option,
    open_fleet,
    print_json,
)
from .rollout_command import rollout
from .samples_command import samples

passphrase_option = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File with the passphrase of the offline keys.",
)


@click.group()
def keys() -> None:
    """Signing keys: what devices trust.

    \b
    Example:
        edgeml keys init
    """


@keys.command()
@passphrase_option
@in_fleet
def init(context: click.Context, directory: str | None, passphrase_file: Path | None) -> None:
    """Make a fleet: its directory, settings, signing keys and an empty signed repository.

    Keep the folder keys/offline on a medium of its own: whoever has it decides what devices run. `fleet serve` needs
    only keys/online.

    \b
    Example:
        edgeml keys init
        edgeml keys init --dir /srv/fleet
    \f

    Raises:
        ConfigError: There are keys already.
        StorageError: The disk refused.
    """
    from . import founding

    home = home_of(context, directory)
    founding.found(home, founding.read_passphrase(passphrase_file))
    click.echo(f"made a fleet in {home.directory}")
    click.echo(f"  {home.settings}: settings")
    click.echo(
        f"  {home.keys}: signing keys; move offline/ to a medium of its own, and name its parent with --keys"
    )
    click.echo(f"  {home.repository}: what devices fetch")


@click.group()
@directory_option
@click.pass_context
def fleet(context: click.Context, directory: str | None) -> None:
    """The fleet: publish releases, serve devices, roll out, watch.

    \b
    Example:
        edgeml keys init
        edgeml fleet publish digits-1.0.0-onnx-fp32.edgeml
        edgeml fleet device add cam-1 --profile raspberry-pi-4 --out cam-1-kit
        edgeml fleet serve
        edgeml fleet rollout start digits@1.0.0
    """
    context.obj = directory


fleet.add_command(claim)
fleet.add_command(device)
fleet.add_command(rollout)
fleet.add_command(samples)


@fleet.command()
@click.argument("bundles", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="BUNDLE...")
@click.option(
    "--keys",
    "keys_directory",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where the signing keys are.",
)
@passphrase_option
@in_fleet
def publish(
    context: click.Context,
    directory: str | None,
    bundles: tuple[Path, ...],
    keys_directory: Path | None,
    passphrase_file: Path | None,
) -> None:
    """Sign bundles and add them to the repository. All variants of a release may be given at once.

    Devices that have one of the three releases before fetch only what changed, where that is less than half.

    \b
    Example:
        edgeml fleet publish digits-1.1.0-*.edgeml
        edgeml fleet publish digits-1.1.0-onnx-int8.edgeml --keys /media/safe/keys
    \f

    Raises:
        ConfigError: A bundle or a key is missing.
        ArtifactError: A file is no bundle, or is published with other content.
    """
    from . import founding

    home, _config, store = open_fleet(context, directory)
    passphrase = founding.read_passphrase(passphrase_file)
    for one in founding.publish(home, store, bundles, keys_directory or home.keys, passphrase):
        note = "published" if one.is_new else "was published before"
        click.echo(
            f"{one.target.facts.release} {one.target.facts.variant}: {note}, for {', '.join(one.target.facts.profiles)}"
        )


@fleet.command()
@in_fleet
def serve(context: click.Context, directory: str | None) -> None:
    """Run the broker, the HTTP server and the controller, until Ctrl-C.

    \b
    Example:
        edgeml fleet serve
        edgeml fleet serve --dir /srv/fleet
    \f

    Raises:
        ConfigError: There is no fleet here, a port is in use, or it is served already.
        StateError: A part does not come up.
    """
    from .serve import Supervisor

    Supervisor(home_of(context, directory), click.echo).run()


@fleet.command()
@json_option
@in_fleet
def status(context: click.Context, directory: str | None, form: str | None) -> None:
    """Show the devices, what each runs, and the controller.

    \b
    Example:
        edgeml fleet status
        edgeml fleet status --json
    \f

    Raises:
        ConfigError: There is no fleet here.
    """
    import msgspec

    from edgeml.clock import SystemClock

    from . import overview
    from .repository import Repository

    home, _config, store = open_fleet(context, directory)
    ends = Repository(home.repository).expiries()
    view = msgspec.structs.replace(
        overview.status(store, SystemClock().now_ms()),
        signed_until_ms=min(ends.root_at_ms, ends.targets_at_ms, ends.snapshot_at_ms, ends.timestamp_at_ms),
    )
    if form == "json":
        print_json(view)
        return
    from . import tables

    tables.show(tables.fleet(view, controller_runs=controller_runs(home)))


@fleet.command()
@json_option
@in_fleet
def drift(context: click.Context, directory: str | None, form: str | None) -> None:
    """Show which devices see other data than their model was made for.

    \b
    Example:
        edgeml fleet drift
        edgeml fleet drift --json
    \f

    Raises:
        ConfigError: There is no fleet here.
    """
    from edgeml.clock import SystemClock

    from . import overview

    _home, _config, store = open_fleet(context, directory)
    rows = overview.drift(store, SystemClock().now_ms())
    if form == "json":
        print_json(rows)
        return
    from . import tables

    tables.show(tables.drift_table(rows))


@click.command()
@click.option(
    "--dir",
    "directory",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where to play it (default: a new one).",
)
@click.option("--keep", is_flag=True, help="Leave everything running at the end, and say what to look at.")
@click.option(
    "--devices",
    default=50,
    show_default=True,
    type=click.IntRange(8, 500),
    help="Simulated devices, beside three real agents.",
)
@json_option
def demo(directory: Path | None, keep: bool, devices: int, form: str | None) -> None:
    """Watch the whole way once on this machine: train, shrink, sign, push, run, report, tell drift.

    Starts a broker, a controller, three real agents and simulated devices; rolls out a first and a better release;
    stops one that is worse in the field; finds two cameras that were turned. About two minutes. With --dir, a demo
    that was interrupted goes on where it stopped.

    \b
    Example:
        edgeml demo
        edgeml demo --keep --dir ./demo
    """
    from . import demo as story

    story.run(directory, keep=keep, devices=devices, as_json=form == "json")
