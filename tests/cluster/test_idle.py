"""A head is deleted when nobody has used it for long enough, and not before."""

from __future__ import annotations

import http.client
import json
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from ray_sassl.cluster import idle
from ray_sassl.cluster.idle import delete_machine, wait_until_idle, what_is_busy
from ray_sassl.cluster.notices import Raylet, raylets
from tests.cluster.test_notices import Service, process

HEAD = {"state": "ALIVE", "is_head_node": True}


def _api(jobs: list[dict[str, Any]], *nodes: dict[str, Any]) -> Any:
    answers = {"/api/jobs/": jobs, "/api/v0/nodes?detail=true&limit=10000": {"data": {"result": {"result": [HEAD, *nodes]}}}}
    return answers.__getitem__


def test_a_job_a_driver_and_a_worker_keep_the_head():
    ended = [{"submission_id": name, "status": name.upper()} for name in ("succeeded", "failed", "stopped")]
    assert what_is_busy(_api(ended)) is None
    assert what_is_busy(_api([*ended, {"submission_id": "first", "status": "PENDING"}])) == "the job first is pending"
    assert what_is_busy(_api([{"submission_id": None, "job_id": "01", "status": "RUNNING"}])) == "the job 01 is running"
    assert what_is_busy(_api(ended, {"state": "ALIVE", "is_head_node": False})) == "1 nodes beside the head"
    assert what_is_busy(_api(ended, {"state": "DEAD", "is_head_node": False})) is None


@pytest.fixture
def raylet(tmp_path: Path) -> Raylet:
    (found,) = raylets([process(tmp_path / "7", "/x/raylet", "--node_id=ab12", "--gcs-address=10.0.0.1:6379")])
    return found


@pytest.mark.parametrize("error", [OSError("no answer"), http.client.BadStatusLine("?"), AttributeError("another answer")])
def test_the_time_counts_from_the_last_use_and_an_api_that_fails_is_no_idleness(
    raylet: Raylet, monkeypatch: pytest.MonkeyPatch, error: Exception
):
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda s: clock.__setitem__(0, clock[0] + s))

    def busy() -> str | None:
        if clock[0] == 300:
            raise error
        return "a job" if clock[0] == 120 else None

    assert wait_until_idle(busy, raylet, idle_s=240)
    assert clock[0] == 540


@pytest.mark.parametrize("minutes", ["0", "-5", "nan", "inf"])
def test_a_time_that_would_delete_a_head_at_once_or_never_is_refused(
    minutes: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(idle, "find_raylet", lambda *names: pytest.fail("it watches"))
    with pytest.raises(SystemExit):
        idle.main(["aws", f"--minutes={minutes}"])
    assert "give 1 or more" in capsys.readouterr().err


def test_it_ends_with_ray(raylet: Raylet, tmp_path: Path):
    process(tmp_path / "7", "bash")
    assert not wait_until_idle(lambda: None, raylet, idle_s=0)


def test_a_deletion_that_fails_is_tried_again_soon_and_then_less_often_unless_somebody_comes(
    raylet: Raylet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    clock, tries = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(time, "sleep", lambda s: clock.__setitem__(0, clock[0] + s))
    monkeypatch.setattr(idle, "find_raylet", lambda *names: raylet)
    monkeypatch.setattr(idle, "what_is_busy", lambda ask: "a job" if clock[0] == 1800 else None)

    def delete(cloud: str) -> None:
        tries.append(clock[0] / 60)
        if len(tries) == 7:
            process(tmp_path / "7", "bash")
            return
        raise OSError("not now")

    monkeypatch.setattr(idle, "delete_machine", delete)
    idle.main(["aws", "--minutes=10"])
    assert tries == [10, 11, 13, 17, 25, 40, 50]


def test_the_machine_that_is_deleted_is_this_one(monkeypatch: pytest.MonkeyPatch):
    service = Service()
    asked: list[Any] = []

    class Client:
        def terminate_instances(self, **what: Any) -> None:
            asked.append(what)

    class Session:
        def create_client(self, *words: str, **options: str) -> Client:
            asked.append((words, options))
            return Client()

    class Answer:
        def __enter__(self) -> None:
            pass

        def __exit__(self, *error: object) -> None:
            pass

    try:
        service.documents |= {"/latest/meta-data/placement/region": "us-west-2", "/latest/meta-data/instance-id": "i-12"}
        monkeypatch.setattr("botocore.session.get_session", Session)
        delete_machine("aws", service.url)
        assert asked == [(("ec2",), {"region_name": "us-west-2"}), {"InstanceIds": ["i-12"]}]
        of_google = {"project/project-id": "mine", "instance/zone": "projects/1/zones/us-central1-a", "instance/name": "ray-head"}
        of_google["instance/service-accounts/default/token"] = json.dumps({"access_token": "t"})
        service.documents |= {f"/computeMetadata/v1/{name}": value for name, value in of_google.items()}
        requests: list[urllib.request.Request] = []
        monkeypatch.setattr(idle.urllib.request, "urlopen", lambda request, timeout: requests.append(request) or Answer())
        delete_machine("gcp", service.url)
        (request,) = requests
        assert request.get_method() == "DELETE"
        assert request.full_url.endswith("/compute/v1/projects/mine/zones/us-central1-a/instances/ray-head")
        assert request.get_header("Authorization") == "Bearer t"
    finally:
        service.stop()


def test_the_head_may_delete_itself_on_both_clouds():
    folder = Path(__file__).parents[2] / "cluster/iam"
    statements = json.loads((folder / "aws-head.json").read_text())["Statement"]
    (end,) = [one for one in statements if "ec2:TerminateInstances" in one["Action"]]
    assert end["Condition"] == {"StringEquals": {"aws:ResourceTag/ray-cluster-name": "ray-sassl"}}
    assert "  - compute.instances.delete\n" in (folder / "gcp-head.yaml").read_text()
