"""Which job a name stands for, on a cluster that is a list of what it was asked."""

from __future__ import annotations

import json
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
        self.sent: list[dict] = []

    def __call__(self, address: str, headers: dict[str, str]) -> PretendedCluster:
        return self

    def get_address(self) -> str:
        return "http://nowhere"

    def submit_job(self, *, entrypoint: str, submission_id: str, runtime_env: dict, metadata: dict[str, str]) -> None:
        (package, _) = runtime_env["py_modules"]
        found = Path(package, "job_secrets.json")
        beside = json.loads(found.read_text()) if found.exists() else {}
        self.sent.append({"entrypoint": entrypoint, "env": runtime_env["env_vars"], "metadata": metadata, "beside": beside})
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
    monkeypatch.setattr(jobs, "_Client", cluster)
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


_CONVERT = ["data", "convert", "/shared/in", "/shared/out", "--format", "parquet"]


def _run(*words: str) -> str:
    run = CliRunner().invoke(app, ["submit", *words, "--", *_CONVERT], catch_exceptions=False, env={"COLUMNS": "250"})
    assert run.exit_code == 0, run.output
    return run.output


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.yaml").write_text("x: 1")
    (tmp_path / ".env").write_text("KEY=1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jobs.Jobs, "resources", lambda self: {"CPU": 4.0, "GPU": 0.0})
    monkeypatch.setenv("WANDB_API_KEY", "open-sesame")
    return tmp_path


def test_a_dry_run_prints_what_would_be_sent_without_secrets_and_sends_nothing(cluster: PretendedCluster, folder: Path):
    cluster.add("copy", "copy", "/shared/out", JobStatus.STOPPED)
    output = _run("--dry-run", "--name", "copy", "--env", "A=b", "--env-from-secret", "WANDB_API_KEY")
    assert cluster.sent == []
    for text in (
        "Nothing was sent",
        "copy-2",
        "exec python -m ray_sassl.cli data convert",
        "WANDB_API_KEY=***",
        "A=b",
        "mine.yaml",
        ".env",
    ):
        assert text in output, output
    assert "open-sesame" not in output


def test_a_dry_run_needs_no_cluster(folder: Path):
    output = _run("--dry-run", "--address", "http://127.0.0.1:1")
    assert "neither the name nor what the cluster has was checked: no job API answers" in output
    assert "data-convert-out" in output


def test_a_secret_travels_beside_the_code_and_the_record_has_its_name_alone(cluster: PretendedCluster, folder: Path):
    assert "open-sesame" not in _run("--env-from-secret", "WANDB_API_KEY", "--env", "A=b")
    (sent,) = cluster.sent
    assert sent.pop("beside") == {"WANDB_API_KEY": "open-sesame"}
    assert sent["metadata"]["secrets"] == "WANDB_API_KEY"
    assert sent["env"]["A"] == "b"
    assert "open-sesame" not in json.dumps(sent)
    _run("--name", "plain")
    assert cluster.sent[1]["beside"] == {}
