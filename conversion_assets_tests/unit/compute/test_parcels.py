"""What travels to a worker: nothing that may be shown, nothing that another version opens."""

import pickle
import sys

import pytest

from conversion_assets.compute import cluster
from conversion_assets.compute.cluster import DaskEngine
from conversion_assets.compute.engine import Done, LocalEngine
from conversion_assets.compute.parcels import Parcel, describe_versions, make_portable, open_parcel
from conversion_assets.domain.errors import InputError, NotFoundError
from conversion_assets.refresh.loading import ClusterLoader
from conversion_assets.resources.compute import ComputeResource
from conversion_assets.resources.settings import SettingsResource

SECRET = "hunter2"


class Job:
    def __init__(self, error=None, result=None):
        self.error, self.result = error, result

    def __call__(self):
        if self.error is not None:
            raise self.error
        return self.result


class UnportableError(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} {two}")


def send(job, versions=None):
    parcel = pickle.loads(pickle.dumps(Parcel(job, versions or describe_versions())))
    return open_parcel(parcel)


def test_a_parcel_and_its_reply_show_nothing():
    parcel = Parcel(Job(result=SECRET), describe_versions())
    reply = open_parcel(parcel)
    assert reply.result == SECRET
    assert SECRET not in repr(parcel) + repr(reply) + str(parcel) + str(reply)


def test_another_version_is_told_before_the_parcel_is_opened():
    sent = (("conversion_assets", "abc"), ("Python", "2.7"), *describe_versions()[2:])
    parcel = Parcel(Job(), sent)
    parcel.data = b"what no version could read"
    assert "Python 3." in str(open_parcel(parcel).mismatch)
    assert "instead of 2.7" in str(open_parcel(parcel).mismatch)


def test_errors_arrive_as_what_they_are():
    error = send(Job(NotFoundError("there is no such client"))).error
    assert type(error) is NotFoundError
    assert str(error) == "there is no such client"
    assert type(send(Job(ValueError("x"))).error) is ValueError
    portable = make_portable(UnportableError("a", "b"))
    assert (type(portable), str(portable)) == (RuntimeError, "UnportableError: a b")
    assert send(Job(MemoryError())).lacks_memory


def test_here_jobs_run_in_their_order():
    found = LocalEngine().run(lambda shard: lambda: len(shard), [["a", "b"], ["c"]])
    assert list(found) == [Done(("a", "b"), 2), Done(("c",), 1)]


def test_a_cluster_without_its_package_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(InputError, match=r"install conversion-assets\[cluster\], or unset it"):
        cluster.DaskEngine("tcp://127.0.0.1:1")


def test_the_environment_chooses_the_engine(monkeypatch):
    resource = ComputeResource(settings=SettingsResource())
    monkeypatch.delenv("CONVERSION_COMPUTE_URL", raising=False)
    assert isinstance(resource.engine(), LocalEngine)
    assert resource.loader() is None
    monkeypatch.setenv("CONVERSION_COMPUTE_URL", "tcp://10.0.0.1:8786")
    assert isinstance(resource.engine(), DaskEngine)
    assert isinstance(resource.loader(), ClusterLoader)
