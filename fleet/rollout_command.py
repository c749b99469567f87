"""`edgeml fleet rollout`: start a rollout, watch it, hold it.

Decides how the commands are written and answered, and which of them make no sense now. A command only writes down what
is wanted; the controller carries it out, now or when it runs again.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import click

from .options import home_of, in_fleet, json_option, mention_controller, open_fleet, print_json

if TYPE_CHECKING:
    from .overview import RolloutView
    from .rollout import RolloutState
    from .store import Store

WATCH_S: Final = 1.0
PRIORITY_MAX: Final = 100


@click.group()
def rollout() -> None:
    """Rollouts: bring a release to the fleet in waves.

    \b
    Example:
        edgeml fleet rollout start digits@1.1.0 --waves 5%,25%,100% --soak 1h
        edgeml fleet rollout status --watch
    """


@rollout.command()
@click.argument("release")
@click.option("--waves", default="5%,25%,100%", show_default=True, help="Cumulative shares of the fleet.")
@click.option(
    "--soak", default="1h", show_default=True, help="How long a wave must have run before the next one."
)
@click.option(
    "--max-wait", default="7d", show_default=True, help="How long to wait for devices that have not decided."
)
@click.option(
    "--evidence", default=100.0, show_default=True, help="Evidence (e-value) that stops the rollout."
)
@click.option(
    "--trials", default=30, show_default=True, help="Inferences without which a wave is never good enough."
)
@click.option(
    "--full-download",
    type=click.Choice(["always", "never"]),
    default="always",
    show_default=True,
    help="Whether devices may fetch it in full where no delta fits what they have.",
)
@click.option(
    "--priority",
    type=click.IntRange(-PRIORITY_MAX, PRIORITY_MAX),
    default=0,
    show_default=True,
    help="Of several models that a device is to fetch the one with the highest goes first.",
)
@click.option(
    "--trial", default="0s", show_default=True, help="Real traffic on trial before a device keeps it."
)
@click.option(
    "--shadow",
    default="0s",
    show_default=True,
    help="How long a device first lets it answer some requests unseen, beside what serves.",
)
@click.option(
    "--shadow-share", default="10%", show_default=True, help="Share of the requests that it answers unseen."
)
@click.option(
    "--shadow-disagreement",
    default="100%",
    show_default=True,
    help="Share of its unseen answers that may be other ones; with more a device refuses it. 100% only reports.",
)
@in_fleet
def start(
    context: click.Context,
    directory: str | None,
    release: str,
    **options: str | float,
) -> None:
    """Start to bring RELEASE (model@version) to the fleet.

    \b
    Example:
        edgeml fleet rollout start digits@1.1.0
        edgeml fleet rollout start digits@1.1.0 --waves 10%,100% --soak 10m
        edgeml fleet rollout start alarms@2.0.0 --priority 10
        edgeml fleet rollout start digits@1.1.0 --shadow 1h --shadow-disagreement 5% --trial 10m
    \f

    Raises:
        ConfigError: The release is not published, another rollout of its model is under way, or an option makes no sense.
    """
    from edgeml.clock import SystemClock
    from edgeml.errors import ConfigError
    from edgeml.ids import ReleaseId
    from edgeml.twin import FullDownload

    from . import campaigns
    from .durations import parse_duration_s, parse_share, parse_waves
    from .repository import Repository
    from .rollout import Plan

    evidence, trials = float(options["evidence"]), int(options["trials"])
    if not 1 < evidence < 1e12 or trials < 1:
        raise ConfigError(
            "--evidence must be above 1, and --trials at least 1", hint="leave them out for the defaults"
        )
    plan = Plan(
        release=ReleaseId(release),
        waves=parse_waves(str(options["waves"])),
        soak_s=parse_duration_s(str(options["soak"])),
        wait_max_s=parse_duration_s(str(options["max_wait"])),
        evidence_stop=evidence,
        trials_min=trials,
        full_download=FullDownload(options["full_download"]),
        priority=int(options["priority"]),
        trial_s=parse_duration_s(str(options["trial"])),
        shadow_s=parse_duration_s(str(options["shadow"])),
        shadow_share=parse_share(str(options["shadow_share"])),
        shadow_disagreement_max=parse_share(str(options["shadow_disagreement"])),
    )
    home, _config, store = open_fleet(context, directory)
    started = campaigns.start(store, Repository(home.repository), plan, SystemClock().now_ms())
    click.echo(f"started rollout {started.id}; watch it with `edgeml fleet rollout status --watch`")
    mention_controller(home)


@rollout.command()
@click.argument("rollout_id", required=False, metavar="[ID]")
@click.option("--watch", is_flag=True, help="Keep showing it until it is finished.")
@json_option
@in_fleet
def status(
    context: click.Context, directory: str | None, rollout_id: str | None, watch: bool, form: str | None
) -> None:
    """Show a rollout: its devices, its history and the evidence. Without ID: the newest.

    \b
    Example:
        edgeml fleet rollout status
        edgeml fleet rollout status --watch
        edgeml fleet rollout status digits-1.1.0-7f3a --json
    \f

    Raises:
        ConfigError: There is no such rollout.
    """
    _home, _config, store = open_fleet(context, directory)
    view = _view(store, rollout_id)
    if form == "json":
        print_json(view)
    elif watch:
        _watch(store, view.rollout.id)
    else:
        from . import tables

        tables.show(tables.rollout(view))


@rollout.command("list")
@json_option
@in_fleet
def list_(context: click.Context, directory: str | None, form: str | None) -> None:
    """List the rollouts, newest first.

    \b
    Example:
        edgeml fleet rollout list
        edgeml fleet rollout list --json
    \f

    Raises:
        ConfigError: There is no fleet here.
    """
    from . import overview

    _home, _config, store = open_fleet(context, directory)
    found = overview.rollouts(store)
    if form == "json":
        print_json(found)
        return
    from . import tables

    tables.show(tables.rollouts_table(found))


@rollout.command()
@click.argument("rollout_id", metavar="ID")
@in_fleet
def pause(context: click.Context, directory: str | None, rollout_id: str) -> None:
    """Hold a rollout where it is: nobody else is asked.

    \b
    Example:
        edgeml fleet rollout pause digits-1.1.0-7f3a
    \f

    Raises:
        ConfigError: There is no such rollout, or it is not running.
    """
    from .rollout import RolloutState

    _request(context, directory, rollout_id, RolloutState.PAUSED)


@rollout.command()
@click.argument("rollout_id", metavar="ID")
@in_fleet
def resume(context: click.Context, directory: str | None, rollout_id: str) -> None:
    """Let a held rollout go on.

    \b
    Example:
        edgeml fleet rollout resume digits-1.1.0-7f3a
    \f

    Raises:
        ConfigError: There is no such rollout, or it is not paused.
    """
    from .rollout import RolloutState

    _request(context, directory, rollout_id, RolloutState.RUNNING)


@rollout.command()
@click.argument("rollout_id", metavar="ID")
@in_fleet
def abort(context: click.Context, directory: str | None, rollout_id: str) -> None:
    """End a rollout for good: devices that were asked go back to what they ran before.

    \b
    Example:
        edgeml fleet rollout abort digits-1.1.0-7f3a
    \f

    Raises:
        ConfigError: There is no such rollout, or it is finished.
    """
    from .rollout import RolloutState

    _request(context, directory, rollout_id, RolloutState.ABORTED)


def _request(context: click.Context, directory: str | None, rollout_id: str, state: RolloutState) -> None:
    from . import campaigns

    _home, _config, store = open_fleet(context, directory)
    campaigns.request(store, rollout_id, state)
    click.echo(f"{state.value} asked for {rollout_id}")
    mention_controller(home_of(context, directory))


def _view(store: Store, rollout_id: str | None) -> RolloutView:
    from . import campaigns, overview

    found = campaigns.find(store, rollout_id)
    view = overview.rollout(store, found.id)
    assert view is not None  # rollouts are never deleted
    return view


def _watch(store: Store, rollout_id: str) -> None:
    from rich.live import Live

    from . import tables
    from .rollout import FINISHED

    view = _view(store, rollout_id)
    with Live(tables.rollout(view), refresh_per_second=4) as live:
        while view.rollout.state not in FINISHED:
            time.sleep(WATCH_S)
            view = _view(store, rollout_id)
            live.update(tables.rollout(view))
