"""Secrets in URIs: how they are recognized, hidden in texts that people read, and what to do instead of giving them there.

A path is written to configs, indexes, records and pages, so it may not hold a secret. `secret_in_uri` is asked wherever a path or a config
enters; `redacted` is the last line, for the texts of errors, which may quote what stands in an environment variable.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import unquote

HIDDEN = "***"

_OPEN_OPTIONS = frozenset((
    "region", "scheme", "endpoint_override", "allow_bucket_creation", "allow_bucket_deletion",
    "check_directory_existence_before_creation", "background_writes", "tls_ca_file_path", "tls_ca_dir_path", "tls_verify_certificates",
    "force_virtual_addressing", "connect_timeout", "request_timeout", "retry_limit_seconds", "project_id", "default_bucket_location",
    "blob_storage_authority", "dfs_storage_authority", "blob_storage_scheme", "dfs_storage_scheme", "credential_kind", "tenant_id",
    "client_id", "enable_tls", "user", "replication", "buffer_size", "default_block_size", "use_mmap", "page", "part", "id", "version",
    "versionid", "v",
))  # fmt: skip
"""Options of Arrow's filesystems and of web pages that are no secrets; the value of any other option may be one."""

_NAMED_USERS = ("abfs", "abfss", "wasb", "wasbs", "hdfs", "viewfs", "ssh", "sftp", "git")
"""Schemes with a name before the `@` that is no secret by itself."""

_URI = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]{0,19}):(?P<slashes>/{1,2})(?P<rest>(?:(?![a-z][a-z0-9+.-]{0,19}://)[^\s<>`])+)", re.IGNORECASE
)
"""Up to a space or to the next URI, which may be the value of an option."""
_USER_INFO = re.compile(
    r"(?P<user>[^\s/?#@:\"']*)"
    r"(?:(?P<password>:(?!\d{1,5}(?:/|$))[^\s@]*)?@)"  # a secret key of S3 may hold slashes; digits are a port
)
_OPTION = re.compile(r"(?P<name>[?&;#][\w.%~\[\]-]+)=(?P<value>[^&;#\"']*)")
_URI_START = re.compile(r"[a-z][a-z0-9+.-]{0,19}:/", re.IGNORECASE)

_TOKENS = re.compile(
    r"\b(?:hf_|ghp_|gho_|ghs_|github_pat_|glpat-|xox[abp]-|AIza|dapi|sk-)[\w-]{20,}"
    r"|(?<=\bBearer )\S{8,}|(?<=\bBasic )[\w+/=-]{8,}"
    r"|(?<=\bAccountKey=)[^;\s\"']+|(?<=\bSharedAccessSignature=)[^;\s\"']+"
)
"""Secrets that are known by their form, wherever they stand."""
_VARIABLE = re.compile(r"\b([A-Z][A-Z0-9_]*(?:SECRET|TOKEN|PASSWORD|API_KEY|ACCESS_KEY)[A-Z0-9_]*=)(?!\*\*\*)[^\s\"']+")
_PROXY = re.compile(r"(?<![\w./:@-])[\w.-]+:[^\s:/@]+(?=@[\w.-]+:\d)")
"""A name and a password before a host and its port, as in HTTPS_PROXY without a scheme."""

_ADVICE = (
    "paths are written to configs, records and pages, where a secret would stay. Give the path without it, and the secret by the "
    "environment: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE), GOOGLE_APPLICATION_CREDENTIALS, AZURE_STORAGE_ACCOUNT and "
    "AZURE_STORAGE_KEY; or let the machine have a role that may read the data"
)


def redacted(text: str) -> str:
    """The text with user names, passwords and all options but harmless ones replaced by `***` in every URI, and so tokens of well-known
    forms, also those in variables of the environment."""
    text = _URI.sub(_hide, text) if ":/" in text else text
    text = _PROXY.sub(HIDDEN, text) if "@" in text else text
    return _VARIABLE.sub(rf"\1{HIDDEN}", _TOKENS.sub(HIDDEN, text))


def redacted_tree(tree: Any) -> Any:
    """The same of every text in nested mappings, lists and tuples; lists and tuples become lists."""
    if isinstance(tree, str):
        return redacted(tree)
    if isinstance(tree, dict):
        return {redacted_tree(key): redacted_tree(value) for key, value in tree.items()}
    return [redacted_tree(value) for value in tree] if isinstance(tree, list | tuple) else tree


def secret_in_uri(value: Any) -> str | None:
    """Why a path, or a value with texts in it, may not be taken: a sentence that shows no secret, or None where there is none."""
    if isinstance(value, dict | list | tuple):
        parts = [*value.keys(), *value.values()] if isinstance(value, dict) else value
        return next(filter(None, map(secret_in_uri, parts)), None)
    if not isinstance(value, str):
        return None
    if (begins := _URI_START.search(value)) is not None:  # what follows is one URI, also if there are spaces in it
        value = value[: begins.start()] + re.sub(r"[\s<>`]", "_", value[begins.start() :].rstrip())
    if not any(_holds_secret(match[0]) for match in _URI.finditer(value)):
        return None
    return f"{redacted(value)} holds a user name, a password or an option that may be a secret: {_ADVICE}."


def _holds_secret(uri: str) -> bool:
    """Whether there is something to hide before the path or in the options, which are what follows the last `?`: earlier ones, and one
    with nothing behind it, belong to the name of a file."""
    address, mark, options = uri.rpartition("?")
    shown = address.replace("?", "_") + (mark + options if options else "") if mark else uri
    return redacted(shown) != shown


def _hide(match: re.Match[str]) -> str:
    scheme, rest = match["scheme"].lower(), match["rest"]
    if (found := _USER_INFO.match(rest)) and not _is_open_user(scheme, found["user"], found["password"]):
        rest = f"{HIDDEN}@{rest[found.end() :]}"
    begin = re.search(r"[?#]" if scheme in ("http", "https") else r"\?", rest)
    if begin:
        rest = rest[: begin.start()] + _OPTION.sub(_hide_option, rest[begin.start() :])
    return f"{match['scheme']}:{match['slashes']}{rest}"


def _is_open_user(scheme: str, user: str, password: str | None) -> bool:
    if password is None:
        return scheme in _NAMED_USERS or user in ("anonymous", HIDDEN) or not user
    return user.startswith("$") or password.startswith(":$")


def _hide_option(match: re.Match[str]) -> str:
    name, value = match["name"], match["value"]
    is_open = name[1:].lower() in _OPEN_OPTIONS and redacted(unquote(value)) == unquote(value)
    return match[0] if is_open or not value or value.startswith("$") else f"{name}={HIDDEN}"
