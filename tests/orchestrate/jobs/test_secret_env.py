"""Secrets reach a job's processes by a file beside its code, wherever they come from."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path

import pytest

import ray_sassl
from ray_sassl.orchestrate.jobs.payload import select_files, stage
from ray_sassl.orchestrate.jobs.secret_env import read_secrets
from ray_sassl.process import job_secrets
from ray_sassl.process.errors import UsageError


def kubectl(folder: Path, data: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of this name that answers with a Secret; the words that it was given are in the file that is returned."""
    answer = json.dumps({"kind": "Secret", "data": {name: base64.b64encode(value).decode() for name, value in data.items()}})
    (folder / "answer.json").write_text(answer)
    program = folder / "kubectl"
    program.write_text(f'#!/bin/sh\necho "$@" > {folder}/words\ncat {folder}/answer.json\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder / "words"


def test_a_variable_of_this_process_is_taken(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_API_KEY", "a b=c")
    assert read_secrets(["WANDB_API_KEY"], {}) == {"WANDB_API_KEY": "a b=c"}


def test_all_keys_of_a_kubernetes_secret_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    words = kubectl(tmp_path, {"WANDB_API_KEY": b"one", "MLFLOW_TRACKING_PASSWORD": "zwölf".encode()}, monkeypatch)
    assert read_secrets(["secret/trackers"], {}) == {"WANDB_API_KEY": "one", "MLFLOW_TRACKING_PASSWORD": "zwölf"}
    assert words.read_text().split() == ["get", "secret", "trackers", "--output=json"]
    read_secrets(["secret/ray-sassl/trackers"], {})
    assert words.read_text().split() == ["get", "secret", "trackers", "--namespace", "ray-sassl", "--output=json"]


REFUSED = {
    "not set": ("MISSING_KEY", "this variable is not set here"),
    "with its value": ("WANDB_API_KEY=abc", r"^--env-from-secret 'WANDB_API_KEY' is neither .*; it takes no value$"),
    "an option of kubectl": ("secret/--all", "is neither the name of a variable"),
    "given as --env too": ("SET_KEY", "SET_KEY is given twice"),
    "bytes": ("secret/bytes", "holds bytes under 'KEY' and not a text"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_a_secret_of_the_environment_is_refused(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source, reason = REFUSED[case]
    kubectl(tmp_path, {"KEY": b"\xff\xfe"}, monkeypatch)
    monkeypatch.setenv("SET_KEY", "x")
    with pytest.raises(UsageError, match=reason):
        read_secrets([source], {"SET_KEY": "y"})


def test_a_cluster_that_refuses_and_a_missing_kubectl_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    kubectl(tmp_path, {}, monkeypatch)
    (tmp_path / "kubectl").write_text("#!/bin/sh\necho 'secrets \"x\" not found' >&2\nexit 1\n")
    with pytest.raises(UsageError, match='kubectl says secrets "x" not found'):
        read_secrets(["secret/x"], {})
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match="needs kubectl, which is not on this machine"):
        read_secrets(["secret/x"], {})


def test_every_process_that_imports_the_sent_code_has_the_secrets(tmp_path: Path):
    source = Path(ray_sassl.__file__).parent
    package = stage(select_files(source), tmp_path / "ray_sassl")
    job_secrets.put(package, {"WANDB_API_KEY": "a b=c"})
    code = "import os; before = 'WANDB_API_KEY' in os.environ; import ray_sassl; print(before, os.environ['WANDB_API_KEY'])"
    env = {"PYTHONPATH": str(tmp_path), "PATH": "/usr/bin:/bin"}
    ended = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stdout == "False a b=c\n"
    assert not (source / "job_secrets.json").exists()
