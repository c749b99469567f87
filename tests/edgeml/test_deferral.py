"""A module that is put off is loaded when it is used, and not before; nobody else notices."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(code):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_the_mqtt_client_comes_without_an_http_client():
    assert run("import sys, edgeml.mqtt; print('http.client' in sys.modules, 'email' in sys.modules)") == [
        "False", "False"
    ]  # fmt: skip


def test_what_the_library_wants_of_it_is_there_when_it_is_wanted():
    code = """
import sys, edgeml.mqtt
import paho.mqtt.client as paho
print(callable(paho.urllib.request.getproxies), 'http.client' in sys.modules)
import urllib.request
print(urllib.request is sys.modules['urllib.request'], paho.urllib.request is urllib.request)
"""
    assert run(code) == ["True"] * 4


def test_others_import_the_real_one_before_and_after():
    for code in (
        "import urllib.request, edgeml.mqtt; print(urllib.request.Request.__name__)",
        "import edgeml.mqtt, urllib.request; print(urllib.request.Request.__name__)",
        "import edgeml.mqtt; from urllib.request import Request; print(Request.__name__)",
    ):
        assert run(code) == ["Request"]


def test_what_is_absent_is_there_again_for_whoever_comes_next():
    code = """
import sys
from edgeml.deferral import absent
with absent("typing_extensions"):
    import msgspec
print("typing_extensions" in sys.modules)
import typing_extensions
with absent("typing_extensions"):
    import typing_extensions as known
print(known is typing_extensions, "Required" in dir(typing_extensions))
"""
    assert run(code) == ["False", "True", "True"]


def test_the_daemon_has_none_of_what_it_never_needs():
    names = (
        "typing_extensions",
        "inspect",
        "ast",
        "tempfile",
        "bz2",
        "lzma",
        "ipaddress",
        "http.client",
        "numpy",
    )
    code = f"import sys, agent.daemon, agent.service, edgeml.bundle; print(*[one for one in {names} if one in sys.modules])"
    assert run(code) == []


def test_a_module_on_its_own_is_put_off_like_one_of_a_package():
    code = """
import sys
from edgeml.deferral import deferred
with deferred("inspect"):
    import dataclasses
print("inspect" in sys.modules)
@dataclasses.dataclass
class Undocumented:
    number: int
print("inspect" in sys.modules, Undocumented.__doc__ == "Undocumented(number: int)")
import inspect
print(inspect is sys.modules["inspect"])
"""
    assert run(code) == ["False", "True", "True", "True"]
