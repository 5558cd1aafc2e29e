"""Materialization events for any subset of a run's partitions, written in batches.

In a run over a range of clients an ordinary output materializes every client of the range, failed
ones too. These events name exactly the clients that succeeded. Dagster's own batching of such
events has no public door; the private one used here is pinned, tested, and replaced by the public
`context.log_event`, one event at a time, when it has moved.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dagster import AssetExecutionContext, AssetKey, AssetMaterialization, DagsterEvent
from dagster._core.definitions.data_version import DATA_VERSION_TAG
from dagster._core.definitions.metadata import RawMetadataValue
from dagster._core.execution.context.system import StepExecutionContext

_CODE_VERSION_TAG = "dagster/code_version"
_USER_VERSION_TAG = "dagster/data_version_is_user_provided"


@dataclass(frozen=True)
class Materialization:
    """What one partition's event says: metadata for the UI, and the version of its content."""

    metadata: Mapping[str, RawMetadataValue]
    data_version: str


def record_materializations(
    context: AssetExecutionContext,
    asset_key: AssetKey,
    by_partition: Mapping[str, Materialization],
    *,
    code_version: str,
    parents: Sequence[AssetKey] = (),
) -> None:
    """Record one materialization event per partition key given, and none for any other.

    Args:
        context: Of the step that made the partitions.
        asset_key: Asset of the partitions.
        by_partition: Event by partition key.
        code_version: Version of the code that made them.
        parents: Unpartitioned assets it was made from, for a step of a job that has not the asset
            itself; else Dagster knows them.
    """
    if parents:
        inputs = _latest_version_tags(context, parents)
    else:
        inputs = _input_version_tags(context, asset_key)
    events = [
        AssetMaterialization(
            asset_key=asset_key,
            partition=partition,
            metadata=one.metadata,
            tags={
                **inputs,
                _CODE_VERSION_TAG: code_version,
                DATA_VERSION_TAG: one.data_version,
                _USER_VERSION_TAG: "true",
            },
        )
        for partition, one in by_partition.items()
    ]
    if events:
        _write(context, asset_key, events)


def _write(
    context: AssetExecutionContext, asset_key: AssetKey, events: list[AssetMaterialization]
) -> None:
    try:
        from dagster._core.events import DagsterEventBatchMetadata  # noqa: PLC0415

        step = _step_of(context)
    except (ImportError, AttributeError):  # Dagster moved its private parts: the public, slow way
        for event in events:
            context.log_event(event)
        return
    batch = f"{context.run.run_id}:{asset_key.to_user_string()}"
    for index, event in enumerate(events):
        is_end = index == len(events) - 1
        DagsterEvent.asset_materialization(step, event, DagsterEventBatchMetadata(batch, is_end))


def _step_of(context: AssetExecutionContext) -> StepExecutionContext:
    return context.op_execution_context.get_step_execution_context()


def _input_version_tags(context: AssetExecutionContext, asset_key: AssetKey) -> dict[str, str]:
    """Return the versions of the parents that were read, so that the UI can tell stale from fresh.

    Without them (private parts moved) a materialization is recorded with its own version only.
    """
    try:
        from dagster._core.definitions.data_version import (  # noqa: PLC0415
            get_input_data_version_tag,
            get_input_event_pointer_tag,
        )
        from dagster._core.execution.plan.execute_step import (  # noqa: PLC0415
            _get_input_provenance_data,
        )

        step = _step_of(context)
        inputs = _get_input_provenance_data(asset_key, step)
    except (ImportError, AttributeError):
        return {}
    tags = {
        get_input_data_version_tag(key): one["data_version"].value for key, one in inputs.items()
    }
    pointers = {
        get_input_event_pointer_tag(key): str(one["storage_id"] or "NULL")
        for key, one in inputs.items()
    }
    return tags | pointers


def _latest_version_tags(
    context: AssetExecutionContext, parents: Sequence[AssetKey]
) -> dict[str, str]:
    """Return the versions that the parents were last recorded with.

    Whatever the parents hold by now, the next run that records them also makes their children
    anew; until then the children are not stale.
    """
    try:
        from dagster._core.definitions.data_version import (  # noqa: PLC0415
            DEFAULT_DATA_VERSION,
            extract_data_version_from_entry,
            get_input_data_version_tag,
            get_input_event_pointer_tag,
        )
    except ImportError:
        return {}
    tags = {}
    for key in parents:
        record = context.instance.fetch_materializations(key, limit=1).records[:1]
        found = extract_data_version_from_entry(record[0].event_log_entry) if record else None
        tags[get_input_data_version_tag(key)] = (found or DEFAULT_DATA_VERSION).value
        tags[get_input_event_pointer_tag(key)] = str(record[0].storage_id) if record else "NULL"
    return tags
