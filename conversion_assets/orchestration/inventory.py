"""What the code location defines, and whether its schedules and sensors are switched on."""

from typing import Any

from dagster import DagsterInstance, Definitions
from dagster._core.definitions.run_request import InstigatorType


def list_definitions(
    definitions: Definitions, instance: DagsterInstance
) -> dict[str, list[dict[str, Any]]]:
    """Return jobs, schedules and sensors by name; state is RUNNING or STOPPED.

    The state is what somebody chose in the UI, else the default of the code.
    """
    repository = definitions.get_repository_def()
    return {
        "jobs": [
            {"name": name, "description": repository.get_job(name).description}
            for name in sorted(repository.job_names)
            if not name.startswith("__")
        ],
        "schedules": [
            {
                "name": schedule.name,
                "cron": schedule.cron_schedule,
                "timezone": schedule.execution_timezone or "UTC",
                "state": _state(instance, schedule.name, InstigatorType.SCHEDULE)
                or schedule.default_status.value,
            }
            for schedule in sorted(repository.schedule_defs, key=lambda s: s.name)
        ],
        "sensors": [
            {
                "name": sensor.name,
                "state": _state(instance, sensor.name, InstigatorType.SENSOR)
                or sensor.default_status.value,
            }
            for sensor in sorted(repository.sensor_defs, key=lambda s: s.name)
        ],
    }


def is_running(instance: DagsterInstance, schedule: str, *, default: bool) -> bool:
    """Return whether a schedule is switched on: by somebody's choice, else as the code says."""
    state = _state(instance, schedule, InstigatorType.SCHEDULE)
    return default if state is None else state == "RUNNING"


def _state(instance: DagsterInstance, name: str, kind: InstigatorType) -> str | None:
    for state in instance.all_instigator_state(instigator_type=kind):
        if state.instigator_name == name and state.status.value != "DECLARED_IN_CODE":
            return str(state.status.value)
    return None
