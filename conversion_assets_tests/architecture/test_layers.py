"""Who may know whom: the layers of the house, checked on every import of every module."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "conversion_assets"

# A room and the rooms it may import from; itself is always allowed. Top-level modules are rooms.
MAY_IMPORT: dict[str, set[str]] = {
    "domain": set(),
    "stats": {"domain"},
    "features": {"stats", "domain"},
    "detectors": {"features", "stats", "domain"},
    "evaluation": {"detectors", "features", "stats", "domain"},
    "scoring": {"features", "stats", "domain"},
    "synthetic": {"scoring", "stats", "domain"},
    "survey": {"evaluation", "detectors", "domain"},
    "learning": {"survey", "evaluation", "detectors", "features", "domain"},
    "notebook": {"learning", "features", "domain"},
    "storage": {"scoring", "domain"},
    "compute": {"domain"},
    "refresh": {
        "compute", "storage", "learning", "survey", "evaluation", "features", "scoring", "domain",
    },
    "alerts": {"domain"},
    "report": {"storage", "scoring", "domain"},
    "settings": {"domain"},
    "partitions": {"domain"},
    "resources": {"refresh", "compute", "storage", "alerts", "settings", "partitions", "domain"},
    "orchestration": {"partitions", "settings", "report", "domain"},
    "assets": {
        "resources", "refresh", "orchestration", "partitions", "learning", "evaluation",
        "detectors", "features", "scoring", "report", "domain",
    },
    "checks": {"assets", "resources", "refresh", "orchestration", "domain"},
    "jobs": {"assets", "checks", "orchestration", "resources", "partitions", "domain"},
    "schedules": {"jobs", "assets", "resources", "partitions", "orchestration", "domain"},
    "sensors": {
        "schedules", "jobs", "assets", "resources", "refresh", "partitions", "orchestration",
        "domain",
    },
    "definitions": {
        "assets", "checks", "jobs", "schedules", "sensors", "resources", "partitions",
        "orchestration",
    },
    "cli": {
        "definitions", "orchestration", "partitions", "resources", "refresh", "storage",
        "alerts", "scoring", "settings", "synthetic", "learning", "features", "report", "domain",
    },
    "__init__": {"notebook"},
}  # fmt: skip

PURE = ("domain", "stats", "features", "detectors", "evaluation", "scoring", "synthetic")
IMPURE_MODULES = {
    "dagster", "sqlalchemy", "alembic", "psycopg", "sqlite3", "connectorx",
    "adbc_driver_postgresql", "obstore", "requests", "urllib", "socket", "random",
    "secrets", "subprocess",
}  # fmt: skip
# Calls that read a clock, the environment or a global random state.
IMPURE_CALLS = {
    "datetime.now", "datetime.utcnow", "datetime.today", "date.today", "time.time",
    "time.monotonic", "time.perf_counter", "os.environ", "os.getenv", "np.random.seed",
    "np.random.rand", "np.random.normal", "np.random.default_rng()", "uuid.uuid4",
}  # fmt: skip
# The test that owns this list fails when one of them is gone, so that it cannot rot.
DETECTORS = ("who", "what", "when", "how")


def list_modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if "migrations" not in p.parts)


def find_room(path: Path) -> str:
    first = path.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def list_imports(path: Path) -> set[str]:
    """Every module that a file imports, wherever the import stands."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            if node.module == "conversion_assets":
                found |= {f"conversion_assets.{alias.name}" for alias in node.names}
    return found


def list_calls(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            text = ast.unparse(node.func)
            found |= {text, f"{text}()" if not node.args and not node.keywords else text}
        elif isinstance(node, ast.Attribute):
            found.add(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", list_modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_module_imports_only_from_rooms_below_it(path):
    room = find_room(path)
    assert room in MAY_IMPORT, f"{room} has no place in the house: add it to MAY_IMPORT"
    used = {
        name.split(".")[1] for name in list_imports(path) if name.startswith("conversion_assets.")
    }
    assert used - {room} <= MAY_IMPORT[room]


@pytest.mark.parametrize(
    "path", [p for p in list_modules() if find_room(p) in PURE], ids=lambda p: p.stem
)
def test_a_pure_room_reads_no_database_clock_or_environment(path):
    assert not {name.split(".")[0] for name in list_imports(path)} & IMPURE_MODULES
    assert not list_calls(path) & IMPURE_CALLS


def test_detectors_do_not_import_each_other():
    for name in DETECTORS:
        path = PACKAGE / "detectors" / f"{name}.py"
        others = {f"conversion_assets.detectors.{other}" for other in DETECTORS if other != name}
        assert not list_imports(path) & others


def test_only_settings_reads_the_environment():
    # Dagster takes some settings from the environment alone, so writing it (update) is allowed.
    reading = {"os.environ.get", "os.getenv", "os.environ.copy", "os.environ.items"}
    readers = [p for p in list_modules() if reading & list_calls(p)]
    assert {find_room(p) for p in readers} <= {"settings"}


def test_nobody_imports_definitions_but_the_command_line():
    users = {
        find_room(p) for p in list_modules() if "conversion_assets.definitions" in list_imports(p)
    }
    assert users <= {"cli"}


def test_definitions_stay_small():
    assert len((PACKAGE / "definitions.py").read_text().splitlines()) < 80
