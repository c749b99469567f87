"""The page of the fleet that Prometheus reads, by a parser that others wrote."""

from prometheus_client.parser import text_string_to_metric_families

from edgeml.ids import DeviceId
from edgeml.telemetry import Loss
from fleet.floods import Flood
from fleet.metrics import render
from fleet.overview import ControllerView, DeviceView, FleetView
from fleet.quarantines import Quarantine


def view_of(name, **more):
    facts = {"online": True, "last_seen_ms": 1, "models": (), "rows": Loss()} | more
    return DeviceView(device=DeviceId(name), profile="p", **facts)


def read(page):
    """Every value by name and first label, and every family's kind."""
    families = list(text_string_to_metric_families(page))
    values = {(one.name, *one.labels.values()): one.value for all_ in families for one in all_.samples}
    return values, {one.name: one.type for one in families}


def test_the_page_says_of_each_device_what_an_operator_must_know():
    noisy = view_of("noisy", over_quota=Flood(12, 3400, 5), rows=Loss(produced=9, dropped=2))
    twice = view_of("cam-1", online=False, quarantine=Quarantine(1, "two devices"), frozen_since_ms=7)
    controller = ControllerView("c", 1, 9_000, connected=True, refused={"over quota": 12, "malformed": 1})
    values, kinds = read(render(FleetView(10_000, controller, (twice, noisy), {}, ("r-1",))))
    assert values == {
        ("edgeml_fleet_device_online", "cam-1"): 0,
        ("edgeml_fleet_device_online", "noisy"): 1,
        ("edgeml_fleet_device_quarantined", "cam-1"): 1,
        ("edgeml_fleet_device_quarantined", "noisy"): 0,
        ("edgeml_fleet_device_frozen", "cam-1"): 1,
        ("edgeml_fleet_device_frozen", "noisy"): 0,
        ("edgeml_fleet_device_turned_away_messages_total", "cam-1"): 0,
        ("edgeml_fleet_device_turned_away_messages_total", "noisy"): 12,
        ("edgeml_fleet_device_turned_away_bytes_total", "cam-1"): 0,
        ("edgeml_fleet_device_turned_away_bytes_total", "noisy"): 3400,
        ("edgeml_fleet_device_rows_produced_total", "cam-1"): 0,
        ("edgeml_fleet_device_rows_produced_total", "noisy"): 9,
        ("edgeml_fleet_device_rows_dropped_total", "cam-1"): 0,
        ("edgeml_fleet_device_rows_dropped_total", "noisy"): 2,
        ("edgeml_fleet_controller_connected",): 1,
        ("edgeml_fleet_controller_seen_timestamp_seconds",): 9,
        ("edgeml_fleet_refused_messages_total", "malformed"): 1,
        ("edgeml_fleet_refused_messages_total", "over quota"): 12,
        ("edgeml_fleet_rollouts_unfinished",): 1,
    }
    assert {name for name, kind in kinds.items() if kind == "counter"} == {
        name.removesuffix("_total") for name, *_ in values if name.endswith("_total")
    }


def test_a_fleet_without_controller_and_devices_has_a_page_too():
    values, _ = read(render(FleetView(10_000, None, (), {}, ())))
    assert values == {("edgeml_fleet_rollouts_unfinished",): 0}
