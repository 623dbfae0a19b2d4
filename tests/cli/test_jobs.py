"""Which job a name stands for, on a cluster that is a list of what it was asked."""

from __future__ import annotations

from pathlib import Path

import pytest
from ray.job_submission import JobDetails, JobStatus, JobType
from typer.testing import CliRunner

from ray_sassl.cli.jobs import app
from ray_sassl.orchestrate.jobs import submission as jobs
from ray_sassl.orchestrate.jobs.payload import Payload
from ray_sassl.process.errors import UsageError


class PretendedCluster:
    """Stands for Ray's client: keeps jobs, all of which run until they are stopped."""

    def __init__(self) -> None:
        self.jobs: dict[str, JobDetails] = {}

    def __call__(self, address: str, headers: dict[str, str]) -> PretendedCluster:
        return self

    def get_address(self) -> str:
        return "http://nowhere"

    def submit_job(self, *, entrypoint: str, submission_id: str, runtime_env: dict, metadata: dict[str, str]) -> None:
        self.add(submission_id, metadata["name"], metadata["target"], JobStatus.RUNNING)

    def add(self, job_id: str, name: str, target: str, status: JobStatus) -> None:
        metadata = {"ray_sassl": "1", "name": name, "command": "pretrain", "target": target}
        details = {"submission_id": job_id, "status": status, "metadata": metadata, "start_time": 1000 * (len(self.jobs) + 1)}
        self.jobs[job_id] = JobDetails.model_validate({"type": JobType.SUBMISSION, "entrypoint": "x", **details})

    def list_jobs(self) -> list[JobDetails]:
        return list(self.jobs.values())

    def get_job_info(self, job_id: str) -> JobDetails:
        return self.jobs[job_id]

    def get_job_logs(self, job_id: str) -> str:
        return f"printed by {job_id}"

    def stop_job(self, job_id: str) -> bool:
        self.jobs[job_id] = self.jobs[job_id].model_copy(update={"status": JobStatus.STOPPED})
        return True


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> PretendedCluster:
    cluster = PretendedCluster()
    monkeypatch.setattr(jobs, "JobSubmissionClient", cluster)
    return cluster


def _submit(name: str, target: str, folder: Path) -> str:
    return jobs.Jobs().submit(["pretrain"], name=name, target=target, payload=Payload(folder, (), 0, ())).id


def test_stopping_a_job_stops_its_newest_try_and_no_job_that_is_called_like_the_try(cluster: PretendedCluster):
    cluster.add("first", "first", "/a", JobStatus.STOPPED)
    cluster.add("first-2", "first", "/a", JobStatus.RUNNING)
    cluster.add("first-2-2", "first-2", "/b", JobStatus.RUNNING)
    run = CliRunner().invoke(app, ["stop", "first"], catch_exceptions=False)
    assert "first-2 was asked to stop" in run.output
    assert {job_id: details.status for job_id, details in cluster.jobs.items()} == {
        "first": JobStatus.STOPPED,
        "first-2": JobStatus.STOPPED,
        "first-2-2": JobStatus.RUNNING,
    }
    assert CliRunner().invoke(app, ["logs", "first"]).output == "printed by first-2"


def test_a_name_that_is_another_jobs_id_is_refused(cluster: PretendedCluster, tmp_path: Path):
    assert _submit("first", "/a", tmp_path) == "first"
    cluster.stop_job("first")
    assert _submit("first", "/a", tmp_path) == "first-2"
    with pytest.raises(UsageError, match="'first-2' is the id of a try of the job 'first'; give another --name"):
        _submit("first-2", "/b", tmp_path)


def test_a_try_gets_no_id_that_is_another_jobs_name(cluster: PretendedCluster, tmp_path: Path):
    assert [_submit("first", "/a", tmp_path), _submit("first-2", "/b", tmp_path)] == ["first", "first-2"]
    cluster.stop_job("first")
    assert _submit("first", "/a", tmp_path) == "first-3"
