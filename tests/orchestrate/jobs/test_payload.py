"""What travels with a job: what the job may need, nothing secret, and not too much."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import ray_sassl
from ray_sassl.orchestrate.jobs.payload import select_files, stage
from ray_sassl.process.errors import UsageError


def _fill(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return folder


def test_what_a_job_does_not_need_stays_here(tmp_path: Path):
    kept = ("mine.yaml", "package/code.py", "package/data.json")
    _fill(tmp_path, *kept, "runs/first/config.yaml", ".venv/bin/python", "package/__pycache__/code.pyc", ".git/config", "node_modules/x.js")
    payload = select_files(tmp_path)
    assert payload.files == kept
    assert payload.num_bytes == sum(map(len, kept))
    assert payload.secrets == ()


def test_a_package_travels_whatever_its_name(tmp_path: Path):
    _fill(tmp_path, "package/__init__.py", "package/runs/__init__.py", "package/runs/record.py", "runs/first/config.yaml")
    assert select_files(tmp_path).files == ("package/__init__.py", "package/runs/__init__.py", "package/runs/record.py")


def test_all_modules_of_this_library_travel():
    folder = Path(ray_sassl.__file__).parent
    modules = {str(path.relative_to(folder)) for path in folder.rglob("*.py")}
    assert modules <= set(select_files(folder).files)


def test_files_with_names_of_secrets_stay_here_and_are_named(tmp_path: Path):
    secrets = (".aws/credentials", ".env", ".env.local", "auth_token", "job_secrets.json", "keys/server.pem", "my-service-account-1.json")
    _fill(tmp_path, "mine.yaml", *secrets)
    payload = select_files(tmp_path)
    assert payload.files == ("mine.yaml",)
    assert payload.secrets == secrets


def test_names_of_secrets_are_known_in_either_case_and_without_their_folders(tmp_path: Path):
    secrets = (
        ".ENV", ".envrc", ".git-credentials", ".huggingface/token", ".npmrc", ".vault-token", "application_default_credentials.json",
        "id_ecdsa",
        "id_ed25519_sk", "id_work", "key.PEM", "keys/ID_DSA.bak", "kubeconfig", "prod.kubeconfig",
    )  # fmt: skip
    kept = ("id_ecdsa.pub", "id_table.csv", "id_tables/code.py", "kubeconfig_reader.py", "tokens.py")
    _fill(tmp_path, *secrets, *kept)
    payload = select_files(tmp_path)
    assert payload.secrets == secrets
    assert payload.files == kept


def test_of_a_repository_what_git_ignores_stays_here(tmp_path: Path):
    _fill(tmp_path, "code.py", "new.py", "big/data.bin", ".env")
    (tmp_path / ".gitignore").write_text("big/\n")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    subprocess.run(["git", "-C", str(tmp_path), "add", "code.py", "-f", ".env"], check=True)
    payload = select_files(tmp_path)
    assert payload.files == (".gitignore", "code.py", "new.py")
    assert payload.secrets == (".env",), "also where it is under version control"


def test_a_package_in_an_ignored_environment_travels_nevertheless(tmp_path: Path):
    _fill(tmp_path, "env/package/__init__.py", "env/package/code.py")
    (tmp_path / ".gitignore").write_text("env/\n")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    assert select_files(tmp_path / "env" / "package").files == ("__init__.py", "code.py")


def test_too_much_is_refused_with_the_largest_files(tmp_path: Path):
    (tmp_path / "large.bin").write_bytes(b"0" * 3_000_000)
    (tmp_path / "small.bin").write_bytes(b"0" * 1000)
    with pytest.raises(UsageError, match=r"has 3 MB in 2 files; at most 2 MB are sent with a job. The largest:\n +3\.0 MB +large\.bin"):
        select_files(tmp_path, max_bytes=2_000_000)


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path):
    _fill(tmp_path, "outside/secret.txt", "folder/mine.yaml")
    (tmp_path / "folder" / "link.txt").symlink_to(tmp_path / "outside" / "secret.txt")
    assert select_files(tmp_path / "folder").files == ("mine.yaml",)


def test_what_is_sent_is_a_copy_of_what_was_counted(tmp_path: Path):
    _fill(tmp_path / "folder", "mine.yaml", "package/code.py")
    payload = select_files(tmp_path / "folder")
    _fill(tmp_path / "folder", "later.py")
    target = stage(payload, tmp_path / "copy")
    assert sorted(str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()) == list(payload.files)
