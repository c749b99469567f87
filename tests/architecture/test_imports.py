"""The walls: who may import whom."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("agent", "converters", "fleet")
PACKAGES = ("edgeml", *ROOMS)
IMPURE = {
    "socket",
    "paho",
    "sqlite3",
    "psutil",
    "subprocess",
    "time",
    "random",
    "threading",
    "multiprocessing",
    "urllib3",
    "aiomqtt",
}
PURE_FILES = (
    "agent/machine.py", "agent/device.py", "agent/batch.py", "agent/health.py", "agent/link.py", "agent/windows.py", "agent/metrics.py",
    "agent/admission.py", "agent/diagnosis.py", "agent/governor.py", "agent/schedule.py", "agent/allowance.py", "agent/ration.py", "agent/block.py", "agent/announcer.py",
    "fleet/rollout.py", "fleet/advance.py", "fleet/gate.py", "fleet/cohorts.py", "fleet/drift_report.py", "fleet/quota.py", "fleet/clones.py", "fleet/metrics.py", "fleet/standing.py",
    "converters/select.py", "converters/plan.py", "converters/recipe.py", "converters/report.py", "converters/feed.py", "converters/amounts.py",
    "converters/known_wrong.py", "converters/explain/why.py", "converters/explain/conversion_page.py", "converters/explain/pictures.py",
    "converters/explain/report_page.py", "converters/explain/axis.py", "converters/explain/label_places.py", "converters/explain/svg.py",
    "converters/data_check.py", "converters/data_values.py", "converters/data_shape.py", "converters/data_splits.py",
    "converters/data_drift.py", "converters/data_finding.py", "converters/convergence.py", "converters/diff.py",
    "edgeml/calibration.py", "edgeml/measurement.py",
    "converters/estimate/graph.py", "converters/estimate/onnx_work.py", "converters/estimate/arena.py",
    "converters/estimate/roofline.py", "converters/estimate/integer_graph.py", "converters/estimate/fit.py",
    "edgeml/evidence.py", "edgeml/drift.py", "edgeml/sketch.py", "edgeml/monitor.py", "edgeml/columns.py",
    "edgeml/observer.py", "edgeml/reference.py", "edgeml/manifest.py", "edgeml/twin.py", "edgeml/telemetry.py",
    "edgeml/expectation.py", "agent/guard.py", "agent/misfit.py", "edgeml/steps.py", "edgeml/flow.py", "edgeml/kernels.py", "edgeml/pipeline.py",
    "edgeml/topics.py", "edgeml/tensors.py", "edgeml/errors.py", "edgeml/ids.py",
)  # fmt: skip
ONLY_HERE = {
    "torch": ("converters/", "edgeml/runtime/torchscript.py"),
    "onnx": ("converters/", "edgeml/testing.py"),
    "psutil": ("agent/sensors.py", "agent/supervisor.py", "fleet/", "edgeml/probe.py", "converters/"),
    "sqlalchemy": ("fleet/",),
    "fastapi": ("fleet/",),
    "onnxruntime": ("edgeml/runtime/onnx.py", "converters/"),
    "sqlite_utils": ("agent/buffer_reader.py",),
    "tuf": ("edgeml/trust.py", "edgeml/roots.py", "fleet/"),
}


def files():
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def imports(path):
    """Yield (module, is_relative) of every import in a file, those in function bodies too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, False
        elif isinstance(node, ast.ImportFrom):
            yield node.module or "", node.level > 0


def name(path):
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", files(), ids=name)
def test_no_room_is_named_by_a_file_of_the_house(path):
    """Rooms never import one another, the hallway imports no room, and no file writes its own room's name."""
    named = {
        module for module, relative in imports(path) if not relative and module.partition(".")[0] in ROOMS
    }
    assert named == set()


@pytest.mark.parametrize("file", PURE_FILES)
def test_decisions_import_no_socket_disk_clock_or_process(file):
    tops = {module.partition(".")[0] for module, relative in imports(ROOT / file) if not relative}
    assert tops & IMPURE == set()


@pytest.mark.parametrize("library", ONLY_HERE)
def test_a_heavy_library_is_imported_only_where_it_belongs(library):
    allowed = ONLY_HERE[library]
    found = {
        name(path)
        for path in files()
        if any(not relative and module.partition(".")[0] == library for module, relative in imports(path))
    }
    assert {file for file in found if not file.startswith(allowed)} == set()


def modules_after(code):
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(' '.join(sys.modules))"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    return {module.partition(".")[0] for module in done.stdout.split()}


def test_a_fresh_agent_process_has_neither_torch_nor_numpy_nor_another_room():
    loaded = modules_after("import agent.service, agent.cli, agent.supervisor, agent.installer")
    assert (
        loaded
        & {
            "torch",
            "numpy",
            "onnxruntime",
            "ai_edge_litert",
            "converters",
            "fleet",
            "sqlalchemy",
            "sqlite_utils",
            "tuf",
            "cryptography",
        }
        == set()
    )


def test_the_supervisor_with_its_endpoint_is_no_client():
    code = "import agent.service, agent.server, sys\nfor name in sys.modules: print(name.replace('.', '/'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "edgeml/inference" in done.stdout.split()
    assert {"edgeml/client", "edgeml/async_client", "numpy"} & set(done.stdout.split()) == set()


def test_the_help_page_loads_no_heavy_library():
    loaded = modules_after(
        "from click.testing import CliRunner\nfrom edgeml.cli import edgeml\nassert CliRunner().invoke(edgeml, ['--help']).exit_code == 0"
    )
    heavy = {
        "torch",
        "numpy",
        "onnxruntime",
        "onnx",
        "sqlalchemy",
        "tuf",
        "rich",
        "paho",
        "psutil",
        "fastapi",
        "sklearn",
    }
    assert loaded & heavy == set()
