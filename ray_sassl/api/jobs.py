"""Commands as jobs on a cluster, from Python."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ray_sassl.cluster.groups import groups_of, offered_by
from ray_sassl.files import storage
from ray_sassl.files.safe_yaml import load_documents
from ray_sassl.orchestrate.jobs.checks import JobCommand, check_actors, check_data, check_file, check_resources
from ray_sassl.orchestrate.jobs.payload import select_files
from ray_sassl.orchestrate.jobs.secret_env import read_secrets
from ray_sassl.orchestrate.jobs.submission import Job, JobError, Jobs, described, exit_code, job_environment, refuse_secrets
from ray_sassl.orchestrate.runtime.definitions import read_definition
from ray_sassl.process.errors import UsageError

__all__ = ["Job", "exit_code"]


@dataclass(frozen=True)
class JobRequest:
    """What is sent for a job.

    Attributes:
        id: Id of the try.
        entrypoint: The command as Ray runs it.
        metadata: What the job's record says of it, with the names of its secrets.
        env: The variables in the job's record.
        files: The files of the working folder.
    """

    id: str
    entrypoint: str
    metadata: dict[str, str]
    env: dict[str, str]
    files: tuple[str, ...]


@dataclass(frozen=True)
class SubmitResult:
    """A job that was submitted, or would be.

    Attributes:
        request: What was sent, or would be.
        job: Its status; None if nothing was sent.
        notes: What could not be checked from this machine.
        left_here: Files that were not sent because their names are those of secrets.
        num_files, num_bytes: Number and size of the files that were sent.
        address: Address of the cluster's job API, as it was given.
    """

    request: JobRequest
    job: Job | None
    notes: list[str]
    left_here: tuple[str, ...]
    num_files: int
    num_bytes: int
    address: str | None = None

    def follow(self, write: Callable[[str], object]) -> Job:
        """Pass on the job's output until it ends; returns its final status.

        Args:
            write: Called with each new piece of text.

        Raises:
            JobError: the cluster does not answer.
        """
        assert self.job is not None, "nothing was sent"
        return Jobs(self.address).follow(self.job, write)


def submit(
    command: Sequence[str],
    read: Callable[[list[str]], JobCommand],
    *,
    name: str | None,
    working_dir: str,
    env: Mapping[str, str] | None,
    cluster: str | None,
    max_upload_mb: float,
    address: str | None,
    secrets: Sequence[str] = (),
    dry_run: bool = False,
) -> SubmitResult:
    """Do the work of `ray_sassl.submit_job`, which belongs to the command line, since it takes words of it.

    Args:
        read: Finds out what the command would do, without running it.
        secrets: `env_from_secret`.
    """
    words = list(command)
    refuse_secrets(words, env or {})
    payload = select_files(Path(working_dir), round(max_upload_mb * 1e6))
    with contextlib.chdir(working_dir):
        order = read(words)
        sent = frozenset(payload.files)
        notes = [*order.notes]
        for what, path in order.files.items():
            notes += check_file(path, what, sent)
        for what, data in order.data.items():
            notes += check_data(data, what, sent)
    hidden = read_secrets(secrets, env or {})
    called = name or default_job_name(order.verb, order.target)
    jobs, job_id = None, called
    try:
        jobs = Jobs(address)
        job_id = jobs.next_id(called, order.target)
    except JobError as error:
        if not dry_run:
            raise
        notes.append(f"neither the name nor what the cluster has was checked: {error}")
    offered = _largest(cluster) if cluster is not None else jobs.resources() if jobs else None
    if offered is not None:
        if order.config is not None:
            check_resources(order.config, offered, is_all=cluster is not None)
        check_actors(order.actors, offered, is_all=cluster is not None)
    entrypoint, metadata = described(order.words, called, order.target, hidden)
    request = JobRequest(job_id, entrypoint, metadata, job_environment(env or {}), payload.files)
    job = None
    if not dry_run and jobs is not None:
        job = jobs.submit(order.words, name=called, target=order.target, payload=payload, env=env, secrets=hidden)
    return SubmitResult(request, job, notes, tuple(payload.secrets), len(payload.files), payload.num_bytes, address)


def default_job_name(verb: str, target: str) -> str:
    """A name such as `pretrain-first`, equal for the same verb and output path."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", f"{verb}-{storage.name_of(target)}").strip("-")[:80]


def _largest(path: str) -> dict[str, float]:
    """CPUs and GPUs of the cluster that a file defines, at its largest."""
    groups = [group for document in load_documents(read_definition(path), path) for group in groups_of(document)]
    if not groups:
        raise UsageError(f"{path} defines no cluster")
    return offered_by(groups)


def list_jobs(address: str | None = None) -> list[Job]:
    """The cluster's jobs, the newest first.

    Args:
        address: As for `ray_sassl.submit_job`.

    Raises:
        JobError: the cluster does not answer or refuses.
    """
    return Jobs(address).list()


def job_status(job: str, address: str | None = None) -> Job:
    """The status of a job.

    Args:
        job: A job's name, which stands for its newest try, or a try's id.
        address: As for `ray_sassl.submit_job`.

    Raises:
        JobError: the cluster does not answer or refuses.
        UsageError: there is no such job.
    """
    return Jobs(address).status(job)


def job_logs(job: str, *, follow: Callable[[str], object] | None = None, address: str | None = None) -> tuple[str, Job]:
    """The output of a job so far, and its status.

    Args:
        job: As for `job_status`.
        follow: Called with each new piece of text until the job ends; the text that is returned is then empty.
        address: As for `ray_sassl.submit_job`.

    Raises:
        JobError: the cluster does not answer or refuses.
        UsageError: there is no such job.
    """
    jobs = Jobs(address)
    found = jobs.status(job)
    return ("", jobs.follow(found, follow)) if follow is not None else (jobs.logs(found), found)


def stop_job(job: str, *, wait: bool = True, address: str | None = None) -> tuple[bool, Job]:
    """Stop a job as by Ctrl-C, so a pretraining or a search writes checkpoints first. A job that has not stopped after five minutes is
    killed.

    Args:
        job: As for `job_status`.
        wait: Whether to wait until it has stopped.
        address: As for `ray_sassl.submit_job`.

    Returns:
        Whether it was running, and its status now.

    Raises:
        JobError: the cluster does not answer or refuses.
        UsageError: there is no such job.
    """
    jobs = Jobs(address)
    found = jobs.status(job)
    was_running = jobs.stop(found)
    return was_running, jobs.wait(found) if was_running and wait else found


def wait_for_job(job: str, address: str | None = None) -> Job:
    """Wait until a job has ended.

    Args:
        job: As for `job_status`.
        address: As for `ray_sassl.submit_job`.

    Raises:
        JobError: the cluster does not answer or refuses.
        UsageError: there is no such job.
    """
    jobs = Jobs(address)
    return jobs.wait(jobs.status(job))
