"""Our commands as Ray jobs on a cluster: submit, list, status, logs, stop, wait."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import shlex
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import aiohttp
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from ray_sassl.cluster.secrets import is_secret_name, secret_in
from ray_sassl.files import storage
from ray_sassl.orchestrate.jobs.payload import Payload, select_files, stage
from ray_sassl.orchestrate.runtime.watched import run_watched
from ray_sassl.plugins import did_you_mean
from ray_sassl.process import job_secrets
from ray_sassl.process.errors import UsageError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
_STOP_WAIT_S = 300
_LOOK_EVERY_S = 0.2
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_OURS = "ray_sassl"
_ENDED = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)
_INTERRUPTED = 130
_PATIENCE_S = (10, 50)
"""How long to wait for a connection, and for the next part of an answer; Ray's client waits for ever."""
_LAST_TIME_S = 253402300800
"""The year 10000, of which Python has no dates."""
_TOKEN_BYTES = 1 << 16
_SHOWN_CHARS = 500
"""Of an answer in a message."""
_PACKAGES = ("ray_sassl", "tune_spaces")


class JobError(UsageError):
    """The cluster does not answer, refuses access, or has no such job."""


@dataclass(frozen=True)
class Job:
    """A job.

    Attributes:
        id: Id of this try.
        name: Common name of all its tries.
        status: `pending`, `running`, `succeeded`, `failed` or `stopped`.
        command: The submitted command.
        target: Its output path, if known.
        started, ended: Seconds since 1970, or None.
        message: Ray's message on how it ended.
        exit_code: Exit code of the command, if it ended by itself.
    """

    id: str
    name: str
    status: str
    command: str
    target: str | None
    started: float | None
    ended: float | None
    message: str | None
    exit_code: int | None

    @property
    def has_ended(self) -> bool:
        return self.status in {status.value.lower() for status in _ENDED}


class _Client(JobSubmissionClient):
    """Ray's client with patience that ends."""

    def _do_request(self, *words: Any, **named: Any) -> requests.Response:
        return super()._do_request(*words, timeout=_PATIENCE_S, **named)


class Jobs:
    """The jobs of one cluster.

    Args:
        address: Address of the job API, `http://HOST:8265`; by default RAY_API_SERVER_ADDRESS, else port 8265 of this machine.

    Raises:
        JobError: nothing answers there, or the token is missing or wrong.
    """

    def __init__(self, address: str | None = None) -> None:
        self._asked = address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
        if "@" in self._asked and "://" not in self._asked:  # so that messages hide the password
            self._asked = f"http://{self._asked}"
        self._headers = _token_header()
        with self._clear_errors(), _without("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
            self._client = _Client(self._asked, headers=dict(self._headers))

    @property
    def address(self) -> str:
        """Address of the job API."""
        return self._client.get_address()

    def resources(self) -> dict[str, float]:
        """CPUs and GPUs of the nodes that are up."""
        with self._clear_errors():
            answer = self._get("/api/v0/nodes?detail=true&limit=10000")
            nodes = answer.get("data", {}).get("result", {}).get("result", [])
            alive = [node.get("resources_total") or {} for node in nodes if node.get("state") == "ALIVE"]
            return {name: sum(float(node.get(name, 0.0)) for node in alive) for name in ("CPU", "GPU")}

    def submit(
        self,
        command: list[str],
        *,
        name: str,
        target: str | None,
        payload: Payload,
        env: Mapping[str, str] | None = None,
        secrets: Mapping[str, str] | None = None,
    ) -> Job:
        """Send the code and start `ray-sassl COMMAND` on the head node; it is the next try of the name's earlier jobs.

        Args:
            command: Arguments of `ray-sassl`.
            name: The first try's id; later ones get the suffixes `-2`, `-3` and so on.
            target: The job's output path; earlier tries of the name must have the same.
            payload: Files of the job's current folder.
            env: Environment variables of the job and of its workers.
            secrets: Further variables, which do not stand in the job's record.

        Raises:
            UsageError: the name is in use or is the id of a try of another job, or something to be recorded has a secret; nothing was sent.
            JobError: the cluster refuses.
        """
        refuse_secrets(command, env or {})
        job_id = self.next_id(name, target)
        entrypoint, metadata = described(command, name, target, secrets or {})
        with tempfile.TemporaryDirectory(prefix="ray-sassl-job-") as folder:
            runtime_env = {
                "working_dir": str(stage(payload, Path(folder) / "working_dir")),
                "py_modules": [str(module) for module in _own_packages(Path(folder) / "modules", secrets or {})],
                "env_vars": job_environment(env or {}),
            }
            with self._clear_errors():
                self._client.submit_job(entrypoint=entrypoint, submission_id=job_id, runtime_env=runtime_env, metadata=metadata)
        return self._now(job_id)

    def list(self) -> list[Job]:
        """All jobs that were submitted, the newest first."""
        with self._clear_errors():
            found = self._client.list_jobs()
        return sorted((_job(details) for details in found if details.submission_id), key=lambda job: -(job.started or 0.0))

    def status(self, job: str) -> Job:
        """The newest try with this name, or the job with this id.

        Raises:
            JobError: there is none.
        """
        all_jobs = self.list()
        tries = [one for one in all_jobs if one.name == job]
        found = next(iter(tries), None) or next((one for one in all_jobs if one.id == job), None)
        if found is None:
            known = [one.id for one in all_jobs]
            raise JobError(
                f"the cluster at {self.address} has no job {job!r}{did_you_mean(job, known)}; `ray-sassl job list` shows what it has"
            )
        return found

    def logs(self, job: Job) -> str:
        """The command's output so far."""
        with self._clear_errors():
            text = self._client.get_job_logs(job.id)
            if not isinstance(text, str):
                raise TypeError("the log is not a text")
            return text

    def follow(self, job: Job, write: Callable[[str], object]) -> Job:
        """Pass on the command's output until it ends; returns the job then."""

        async def tail() -> None:
            async for text in self._client.tail_job_logs(job.id):
                write(text)

        with self._clear_errors():
            # In a thread, since an event loop may be running in this one; after Ctrl-C nothing waits for it.
            error = run_watched(lambda: asyncio.run(tail()), lambda is_running: None, every_s=_LOOK_EVERY_S)
            if error is not None:
                raise error
        return self.wait(self._now(job.id))

    def stop(self, job: Job) -> bool:
        """Ask the command to stop as by Ctrl-C, so a pretraining writes a checkpoint first. False if it had already ended."""
        if job.has_ended:
            return False
        with self._clear_errors():
            return self._client.stop_job(job.id)

    def wait(self, job: Job, timeout_s: float | None = None, every_s: float = 1.0) -> Job:
        """The job when it has ended, or when the time is over."""
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while not job.has_ended and (until is None or time.monotonic() < until):
            time.sleep(every_s)
            job = self._now(job.id)
        return job

    def _now(self, job_id: str) -> Job:
        with self._clear_errors():
            return _job(self._client.get_job_info(job_id))

    def next_id(self, name: str, target: str | None) -> str:
        """The id of the name's next try.

        Raises:
            UsageError: the name is in use, or is the id of a try of another job.
        """
        if not _NAME.fullmatch(name):
            raise UsageError(f"{name!r} is not a valid name for a job; use at most 80 letters, digits, '.', '_' and '-'")
        all_jobs = self.list()
        tries = [job for job in all_jobs if job.name == name]
        for job in all_jobs:
            if job.id == name != job.name:
                raise UsageError(f"{name!r} is the id of a try of the job {job.name!r}; give another --name")
        for job in tries:
            if not job.has_ended:
                raise UsageError(f"the job {name!r} is {job.status} (as {job.id}); wait for it, or stop it first")
            if job.target != target:
                raise UsageError(
                    f"the job {name!r} wrote to {job.target} and this one would write to {target}; a job continues under its name, so give "
                    "the same path, or another --name"
                )
        taken = {job.id for job in all_jobs} | {job.name for job in all_jobs if job.name != name}
        number = len(tries) + 1
        while (job_id := name if number == 1 else f"{name}-{number}") in taken:
            number += 1
        return job_id

    def _get(self, path: str) -> Any:
        request = urllib.request.Request(self.address + path, headers=self._headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    @contextmanager
    def _clear_errors(self) -> Iterator[None]:
        """Turn errors of the connection to the cluster, and answers that Ray's client does not understand, into helpful messages."""
        try:
            yield
        except UsageError:
            raise
        except AuthenticationError as error:
            wrong = "failed" in str(error).splitlines()[0]
            raise JobError(
                f"the cluster at {self._asked} refuses access: the token is {'wrong (403)' if wrong else 'missing (401)'}. Put the "
                "cluster's token into ~/.ray/auth_token, or its path into RAY_AUTH_TOKEN_PATH; docs/clusters.md says where it is kept."
            ) from error
        except (ConnectionError, urllib.error.URLError, TimeoutError, requests.ConnectionError, requests.Timeout) as error:
            raise JobError(
                f"no job API answers at {self._asked} ({_in_short(error)}). Give --address http://HOST:8265; `ray dashboard FILE` or "
                "`kubectl port-forward` brings a cluster's to this machine."
            ) from error
        except _NOT_UNDERSTOOD as error:
            raise JobError(
                f"what answers at {self._asked} is not Ray's job API, or another version's ({type(error).__name__}: {_in_short(error)}). "
                "Give --address http://HOST:8265."
            ) from error
        except RuntimeError as error:
            raise JobError(f"the cluster at {self._asked} refuses: {_in_short(error)}") from error


_NOT_UNDERSTOOD = (
    requests.RequestException, aiohttp.ClientError, http.client.HTTPException,
    RecursionError, LookupError, TypeError, ValueError, AttributeError, AssertionError,
)  # fmt: skip
"""What Ray's client raises for an answer that is not JSON, or has another shape."""


def _in_short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}..."


def described(command: Sequence[str], name: str, target: str | None, secrets: Iterable[str] = ()) -> tuple[str, dict[str, str]]:
    """What a job's record says of it: its entry point and its metadata, with the names of its secrets."""
    metadata = {_OURS: "1", "name": name, "command": shlex.join(command)} | ({"target": target} if target else {})
    if names := ",".join(secrets):
        metadata["secrets"] = names
    # `exec`, so that the signal reaches the command and not a shell around it.
    return f"exec {shlex.join(['python', '-m', 'ray_sassl.cli', *command])}", metadata


def job_environment(env: Mapping[str, str]) -> dict[str, str]:
    """The variables in a job's record: the user's, and ours."""
    return {
        # So that `stop` sends a Ctrl-C, after which a checkpoint is written, instead of killing the process.
        "RAY_JOB_STOP_SIGNAL": "SIGINT",
        "RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_WAIT_S),
        "PYTHONUNBUFFERED": "1",
        **env,
    }


def refuse_secrets(command: Sequence[str], env: Mapping[str, str]) -> None:
    """Refuse secrets in a job's command and environment, which Ray keeps and shows to everybody with the token.

    Raises:
        UsageError: something in them looks like a secret.
    """
    advice = "it would be in the job's record; give the nodes a role that may read it, or a file with it"
    for word in command:
        if what := secret_in(word):
            raise UsageError(f"the command seems to hold {what}: {advice}")
        storage.refuse_secret(word)
    for name, value in env.items():
        if is_secret_name(name) or secret_in(value):
            raise UsageError(f"the environment variable {name} seems to be a secret: {advice}, or send it by --env-from-secret {name}")


def exit_code(job: Job) -> int:
    """The exit code of `wait`: the command's own, 128 and the number of the signal that ended it, 130 if it was stopped, else 1."""
    if job.status == "succeeded":
        return 0
    if job.status == "stopped":
        return _INTERRUPTED
    code = job.exit_code or 1
    code = 128 - code if code < 0 else code
    return code if code < 256 else 1


def _job(details: JobDetails) -> Job:
    metadata = details.metadata or {}
    job_id = cast(str, details.submission_id)
    return Job(
        id=job_id,
        name=metadata.get("name", job_id) if _OURS in metadata else job_id,
        status=details.status.value.lower(),
        command=metadata.get("command", details.entrypoint),
        target=metadata.get("target"),
        started=_seconds(details.start_time),
        ended=_seconds(details.end_time),
        message=details.message,
        exit_code=details.driver_exit_code,
    )


def _seconds(time_ms: int | None) -> float | None:
    """Seconds since 1970; None where there is no time, or one that no clock shows."""
    return time_ms / 1000 if time_ms and 0 < time_ms < 1000 * _LAST_TIME_S else None


def _own_packages(target: Path, secrets: Mapping[str, str]) -> list[Path]:
    """Copies of our own code, so that the cluster runs the same; the first has the job's secrets beside it."""
    root = Path(__file__).parents[3]
    target.mkdir()
    packages = [stage(select_files(root / name), target / name) for name in _PACKAGES]
    if secrets:
        job_secrets.put(packages[0], secrets)
    return packages


def _token_header() -> dict[str, str]:
    """The token from the places where Ray looks for it, in its order. RAY_AUTH_MODE is ignored: the cluster decides whether it needs a
    token."""
    token = os.environ.get("RAY_AUTH_TOKEN")
    if not token:
        given = os.environ.get("RAY_AUTH_TOKEN_PATH")
        path = Path(storage.with_home(given)) if given else Path(os.path.expanduser("~/.ray/auth_token"))
        if given and not path.is_file():
            raise JobError(f"RAY_AUTH_TOKEN_PATH names {given}, and there is no such file")
        token = storage.read_text(path, _TOKEN_BYTES).strip() if path.is_file() else ""
        if not (token.isascii() and token.isprintable()):
            raise JobError(f"{path} is not a token: it has several lines, or characters that a header cannot have")
    return {"Authorization": f"Bearer {token}"} if token else {}


@contextmanager
def _without(*names: str) -> Iterator[None]:
    """Without these environment variables within the block; Ray would prefer them to the given address."""
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)
