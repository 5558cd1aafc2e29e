"""The whole path on object storage: learn and check over real HTTP give the bytes of a folder."""

import json
import os
import subprocess
import sys

import boto3
import pytest
from moto.server import ThreadedMotoServer

from conversion_assets_tests.homes import AS_OF, CLIENTS, copy_home, dump_learned

BUCKET = "features"


@pytest.fixture
def bucket():
    """Environment of a store in a bucket, and a client to look into it."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    environment = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_REGION": "us-east-1",
        "CONVERSION_STORE_URL": f"s3://{BUCKET}/fleet",
    }
    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    )
    client.create_bucket(Bucket=BUCKET)
    yield environment, client
    server.stop()


def run(home, *arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-m", "conversion_assets.cli", *arguments, "--json"],
        env={**os.environ, "CONVERSION_HOME": str(home), **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, json.loads(done.stdout), done.stderr


def list_keys(client):
    listed = client.list_objects_v2(Bucket=BUCKET, Prefix="fleet/")
    return [item["Key"] for item in listed.get("Contents", [])]


@pytest.mark.slow
def test_learning_and_health_on_object_storage_are_those_of_a_folder(home, tmp_path, bucket):
    environment, client = bucket
    local = copy_home(home, tmp_path / "local")
    remote = copy_home(home, tmp_path / "remote")
    learned, checked = {}, {}
    for place, settings in ((local, {}), (remote, environment)):
        code, report, error = run(place, "learn", "--as-of", AS_OF.isoformat(), **settings)
        assert (code, error) == (0, "")
        assert report["clients"] == len(CLIENTS)
        assert report["errors"] == []
        learned[place] = dump_learned(place)
        code, health, error = run(place, "health", **settings)
        assert code in {0, 5}
        checked[place] = [
            (one["client_id"], one["pattern_type"], one["rule"], one["finding_id"])
            for one in health["findings"]
        ]
    assert learned[remote] == learned[local]
    assert learned[remote]["conversion_patterns"]
    assert checked[remote] == checked[local]
    keys = list_keys(client)
    assert any(key.endswith(".parquet") for key in keys)
    assert not list((remote / "store").rglob("*.parquet"))
    # The same again reads what is in the bucket, and changes nothing.
    code, _, _ = run(remote, "learn", "--as-of", AS_OF.isoformat(), **environment)
    assert code == 0
    assert dump_learned(remote) == learned[local]
