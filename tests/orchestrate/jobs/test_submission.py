"""Jobs on a real head node with token authentication: sent, watched, stopped, resumed, and refused with the reason."""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from benchmarks.nodes import ROOT
from ray_sassl.cli import app
from ray_sassl.orchestrate.jobs.submission import JobError, Jobs
from ray_sassl.process.errors import UsageError
from ray_sassl.study.record import read_trials
from tests.orchestrate.conftest import NUM_ROWS, write_held_shards, write_shards
from tests.orchestrate.job_cluster import TOKEN, JobCluster, job_cluster, ray_sassl, ray_sassl_here
from tests.orchestrate.jobs.test_secret_env import kubectl

pytestmark = [pytest.mark.ray, pytest.mark.slow]

_TINY = [
    "method.queue_size=32", "method.projector_hidden_size=16", "train.global_batch=16", "train.log_every=1", "views.size_px=16",
    "evaluate.size_px=16", "scaling.threads_per_worker=1", "scaling.cpus_per_worker=0.5", "stream.num_cpus=0.5",
    "tracking.tensorboard=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def cluster() -> Iterator[JobCluster]:
    with job_cluster() as cluster:
        yield cluster


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder such as people work in: data, a config, and what must stay here."""
    folder = tmp_path / "project"
    (folder / "data").mkdir(parents=True)
    write_shards(folder / "data")
    write_held_shards(folder / "data")
    (folder / ".env").write_text("PASSWORD=not-for-others")
    (folder / "runs").mkdir()
    (folder / "runs" / "old.bin").write_bytes(b"0" * 1000)
    return folder


def _pretrain(run_dir: Path, *more: str) -> list[str]:
    data = "data/*.parquet"
    paths = [f"data.path={data}", f"evaluate.train.path={data}", "evaluate.test.path=data/held/*.parquet"]
    return ["pretrain", "moco_cifar10_cpu", *paths, *_TINY, *more, "--run-dir", str(run_dir)]


def _steps(run_dir: Path) -> list[int]:
    file = run_dir / "metrics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    return [line["step"] for line in lines if "loss" in line]


def test_a_stopped_job_leaves_a_checkpoint_and_the_same_submit_continues_from_it(cluster: JobCluster, project: Path, tmp_path: Path):
    run_dir = tmp_path / "run"
    epochs = 60
    words = ("job", "submit", "--name", "first", "--", *_pretrain(run_dir, f"train.epochs={epochs}"))
    code, output = ray_sassl(cluster, *words, cwd=project)
    assert code == 0, output
    assert "first: sent with 4 files" in output
    assert ".env" in output, "what was left out for its name is said"

    code, again = ray_sassl_here(cluster, *words, cwd=project)
    assert code == 2
    assert re.search(r"the job 'first' is (running|pending) \(as first\); wait for it, or stop it first", again)

    until = time.monotonic() + 400
    while len(_steps(run_dir)) < 5 and time.monotonic() < until:
        time.sleep(0.2)
    code, output = ray_sassl_here(cluster, "job", "stop", "first", cwd=project)
    assert code == 0, output
    assert "stopped" in output
    code, _ = ray_sassl(cluster, "job", "wait", "first", cwd=project)
    assert code == 130
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    assert 5 <= summary["step"] < epochs * NUM_ROWS // 16
    assert Path(summary["checkpoint"]).is_dir()

    code, other = ray_sassl_here(cluster, "job", "submit", "--name", "first", "--", *_pretrain(tmp_path / "other"), cwd=project)
    assert code == 2
    assert "a job continues under its name" in other
    shorter = summary["step"] * 16 / NUM_ROWS + 1
    words = ("job", "submit", "--name", "first", "--wait", "--", *_pretrain(run_dir, f"train.epochs={shorter}"))
    code, output = ray_sassl_here(cluster, *words, cwd=project)
    assert code == 0, output
    assert "first (try 2; it continues the last one)" in output
    steps = _steps(run_dir)
    assert steps == list(range(1, steps[-1] + 1)), "each step stands there once: nothing was started over"
    assert steps[-1] == int(shorter * NUM_ROWS / 16 + 1e-9)
    assert json.loads((run_dir / "summary.json").read_text())["status"] == "finished"
    code, listed = ray_sassl_here(cluster, "job", "list", cwd=project)
    assert re.search(r"first-2 .*succeeded", listed)
    assert re.search(r"first .*stopped", listed)
    _, logs = ray_sassl_here(cluster, "job", "logs", "first", cwd=project)
    assert "moco_cifar10_cpu in" in logs
    assert _record_of(cluster, "first")["runtime_env"]["env_vars"].keys() == {
        "RAY_JOB_STOP_SIGNAL",
        "RAY_JOB_STOP_WAIT_TIME_S",
        "PYTHONUNBUFFERED",
        "RAY_ADDRESS",
    }


def test_wait_exits_as_the_job_did(cluster: JobCluster, project: Path, tmp_path: Path):
    (tmp_path / "shared").mkdir()
    write_shards(tmp_path / "shared", bad=tuple(range(40)))
    paths = str(tmp_path / "shared" / "*.parquet")
    words = ("data", "convert", paths, str(tmp_path / "shards"), "--format", "webdataset")
    code, output = ray_sassl_here(cluster, "job", "submit", "--", *words, cwd=project)
    assert code == 0, output
    assert "data-convert-shards: sent" in output
    code, output = ray_sassl_here(cluster, "job", "wait", "data-convert-shards", cwd=project)
    assert code == 2, output
    assert "data.max_bad_fraction allows 1.00%" in " ".join(output.split())
    words = ("stylize", "dataset", paths, str(tmp_path / "styled"), "stylize=color_statistics", "--shard-rows", "80", "--actors", "1")
    code, output = ray_sassl_here(cluster, "job", "submit", "--name", "styled", "--wait", "--", *words, cwd=project)
    assert code == 2, output
    assert "max_bad_fraction" in output
    code, output = ray_sassl_here(cluster, "job", "wait", "styled", cwd=project)
    assert code == 2, output
    code, output = ray_sassl_here(
        cluster, "job", "submit", "--name", "styled", "--wait", "--", *words, "--max-bad-fraction", "1", cwd=project
    )
    assert code == 0, output
    assert "120 images in 2 shards" in output


def test_a_run_is_scored_by_a_job(cluster: JobCluster, project: Path, tmp_path: Path):
    run_dir = tmp_path / "run"
    code, output = ray_sassl_here(
        cluster, "job", "submit", "--wait", "--", *_pretrain(run_dir, "train.epochs=1", "scaling.num_workers=0"), cwd=project
    )
    assert code == 0, output
    data = tmp_path / "labeled"
    data.mkdir()
    paths = [f"evaluate.train.path={write_shards(data)}", f"evaluate.test.path={write_held_shards(data)}"]
    code, output = ray_sassl_here(
        cluster, "job", "submit", "--wait", "--", "evaluate", str(run_dir), "knn", *paths, "--actor-cpus", "0.5", cwd=project
    )
    assert code == 0, output
    assert (run_dir / "evaluation").is_dir()


def test_a_search_is_a_job(cluster: JobCluster, project: Path, tmp_path: Path):
    data, study_dir = "data/*.parquet", str(tmp_path / "study")
    words = [
        "search", "style_strength", f"data.path={data}", f"evaluate.train.path={data}", "evaluate.test.path=data/held/*.parquet", *_TINY,
        "train.epochs=0.3", "views.size_px=32",
        "scaling.num_workers=0", "--experiment", "moco_cifar10_cpu_sassl", "--trials", "2", "--searcher", "random", "--scheduler", "fifo",
        "--study-dir", study_dir,
    ]  # fmt: skip
    code, output = ray_sassl_here(cluster, "job", "submit", "--name", "search", "--wait", "--", *words, cwd=project)
    assert code == 0, output
    assert [trial.state for trial in read_trials(study_dir)] == ["finished", "finished"]
    code, output = ray_sassl_here(cluster, "job", "submit", "--name", "search", "--wait", "--", *words, cwd=project)
    assert code == 0, output
    assert [trial.state for trial in read_trials(study_dir)] == ["finished", "finished"]


_SPACE = """\"\"\"A space that ends the job.\"\"\"
import os

from ray_sassl.study.space import Float, SearchSpace

EXPERIMENT = "moco_cifar10_cpu"
if "TRACKER_KEY" in os.environ:
    os._exit(7 if os.environ["TRACKER_KEY"] == "open-sesame" else 8)


def space(base):
    return SearchSpace(parameters=(Float(path="optim.base_lr", low=0.1, high=0.2),))
"""


def test_a_job_has_its_secrets_and_its_record_has_not(cluster: JobCluster, project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (project / "space.py").write_text(_SPACE)
    kubectl(tmp_path, {"TRACKER_KEY": b"open-sesame"}, monkeypatch)
    paths = ["data.path=data/*.parquet", "evaluate.train.path=data/*.parquet", "evaluate.test.path=data/held/*.parquet", *_TINY]
    words = ("--", "search", "space.py", *paths, "--trials", "1", "--study-dir", str(tmp_path / "study"))
    code, output = ray_sassl_here(cluster, "job", "submit", "--name", "secret", "--env-from-secret", "secret/trackers", *words, cwd=project)
    assert code == 0, output
    code, output = ray_sassl_here(cluster, "job", "wait", "secret", cwd=project)
    assert code == 7, output
    record = _record_of(cluster, "secret")
    assert record["metadata"]["secrets"] == "TRACKER_KEY"
    assert "open-sesame" not in json.dumps(record)
    # What docs/jobs.md admits: the file with the code is on the disk of each node that ran the job.
    assert any("open-sesame" in path.read_text() for path in cluster.folder.rglob("job_secrets.json"))


def _refusal(cluster: JobCluster, folder: Path, *words: str) -> str:
    """Why `job submit` refuses, in this process and so in a second."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("RAY_API_SERVER_ADDRESS", cluster.address)
        patch.setenv("RAY_AUTH_TOKEN", TOKEN)
        with pytest.raises(UsageError) as refused:
            CliRunner().invoke(app, ["job", "submit", *words], catch_exceptions=False)
    return str(refused.value)


def test_what_cannot_work_is_refused_before_anything_is_sent(cluster: JobCluster, project: Path, tmp_path: Path):
    before = len(_jobs(cluster))
    run_dir = tmp_path / "refused"
    good = _pretrain(run_dir)
    for words, reason in (
        (["pretrain", "moco_cifar", "--run-dir", str(run_dir)], "did you mean 'moco_cifar10'"),
        ([*good, "train.epoch=3"], r"the nearest is train\.epochs"),
        ([*good, "--workers", "3"], "No such option: --workers"),
        ([*good[:-1], "runs/mine"], "a job runs in a temporary folder"),
        ([*good[:-2]], "give --run-dir s3://"),
        ([*good, "run_dir=/elsewhere"], "the run directory is given 2 times"),
        ([*good, "data.path=elsewhere/*.parquet"], "give a URI"),
        ([*good, "data.path=runs/"], "give a URI"),
        ([*good, "scaling.num_workers=8", "scaling.cpus_per_worker=1"], r"needs 8\.5 CPUs and the cluster can offer 2; 6\.5 are missing"),
        ([*good, "--address", "auto"], "leave --address out"),
        (["pretrain", "mine.yaml", "--run-dir", str(run_dir)], "there is no file mine.yaml"),
        (["stylize", "dataset", "data", "styled", "stylize=color_statistics"], "a job runs in a temporary folder"),
        (["evaluate", "s3//x", "knn"], "a job runs in a temporary folder"),
        (["demo"], "'demo' does not run as a job; the verbs that do: pretrain, search"),
        ([*good, "data.path=s3://bucket/x?access_key=AKIAAAAAAAAAAAAAAAAA"], "it would be in the job's record"),
    ):
        assert re.search(reason, found := _refusal(cluster, project, "--", *words)), (words, found)
    assert re.search(
        r"at most 0 MB are sent with a job[\s\S]*train-0\.parquet", _refusal(cluster, project, "--max-upload-mb", "0.0001", "--", *good)
    )
    assert "WANDB_API_KEY seems to be a secret" in _refusal(cluster, project, "--env", "WANDB_API_KEY=abc", "--", *good)
    assert "no folder elsewhere" in _refusal(cluster, project, "--working-dir", "elsewhere", "--", *good)
    assert "not a valid name for a job" in _refusal(cluster, project, "--name", "my job", "--", *good)
    assert len(_jobs(cluster)) == before


def test_a_cluster_that_grows_is_judged_by_its_definition(cluster: JobCluster, project: Path, tmp_path: Path):
    words = [*_pretrain(tmp_path / "growing"), "scaling.num_workers=64", "scaling.use_gpu=true", "train.global_batch=64"]
    assert "give its definition with --cluster FILE" in _refusal(cluster, project, "--", *words)
    found = _refusal(cluster, project, "--cluster", str(ROOT / "cluster" / "aws.yaml"), "--", *words)
    assert "needs 64 GPUs and the cluster can offer 40; 24 are missing" in found
    assert "--cluster FILE" not in found


def test_nobody_without_the_token_gets_in(cluster: JobCluster, project: Path):
    assert cluster.status("/api/jobs/", None) == 401
    assert cluster.status("/api/jobs/", "a-wrong-token") == 403
    code, output = ray_sassl(cluster, "job", "list", cwd=project, token=None)
    assert code == 2
    assert "the token is missing (401)" in output
    code, output = ray_sassl_here(cluster, "job", "list", cwd=project, token="a-wrong-token")
    assert code == 2
    assert "the token is wrong (403)" in output
    assert "Traceback" not in output


def test_an_address_where_nobody_answers_says_so(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(JobError, match=r"no job API answers at http://127\.0\.0\.1:1 "):
        Jobs("http://127.0.0.1:1")


def test_an_unknown_job_is_answered_with_the_nearest(cluster: JobCluster, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    with pytest.raises(JobError, match="has no job 'nothing'"):
        Jobs(cluster.address).status("nothing")


def _jobs(cluster: JobCluster) -> list[dict]:
    request = urllib.request.Request(f"{cluster.address}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def _record_of(cluster: JobCluster, job_id: str) -> dict:
    return next(job for job in _jobs(cluster) if job["submission_id"] == job_id)
