"""Whether a text holds a secret that ought not to be in it: a file under version control, the record of a job."""

from __future__ import annotations

import re
from typing import Any

from ray_sassl.cluster.findings import Finding

_ANYWHERE = r"[A-Z0-9_]*(?:SECRET|PASSWORD|PASSWD|API_KEY|ACCESS_KEY|AUTH_TOKEN)[A-Z0-9_]*"
_AS_A_WORD = r"(?:[A-Z0-9_]*_)?(?:TOKEN|KEY|PWD|PASS|APIKEY)(?:_[A-Z0-9_]*)?"
_NAME = rf"(?:{_ANYWHERE}|{_AS_A_WORD})"
_PATTERNS = (
    (re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"), "an AWS access key"),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"), "a private key"),
    (re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{30,})\b"), "a GitHub token"),
    (re.compile(r"\bhf_[A-Za-z0-9]{30,}\b"), "a Hugging Face token"),
    (re.compile(r"[a-z][a-z0-9+.-]*://[^/\s:@]*:[^/\s@]+@"), "a URL with a password"),
    (
        re.compile(
            r"(?:access_key|secret_key|session_token|client_secret|[?&](?:token|sig|signature|x-(?:amz|goog)-signature))=(?!\$)[^&\s]+",
            re.IGNORECASE,
        ),
        "a URI with a key among its options",
    ),
    (re.compile(rf"(?<![A-Za-z0-9_]){_NAME}(?<!_PATH)(?<!_FILE)=(?![\s'\"]*(?:\$|$))\S+", re.IGNORECASE), "a secret given by value"),
)
_SECRET_NAME = re.compile(rf"^{_NAME}$", re.IGNORECASE)


def secret_in(text: str) -> str | None:
    """What kind of secret the text seems to hold, or None."""
    return next((what for pattern, what in _PATTERNS if pattern.search(text)), None)


def is_secret_name(name: str) -> bool:
    """Whether an environment variable of this name would hold a secret; the path of a file is none."""
    return bool(_SECRET_NAME.match(name)) and not name.upper().endswith(("_PATH", "_FILE"))


def secrets_in(tree: Any, where: str = "") -> list[Finding]:
    """Every text in the tree that seems to hold a secret, and every environment variable of a secret's name that is given by value."""
    found = []
    if isinstance(tree, dict):
        name, value = tree.get("name"), tree.get("value")
        if isinstance(name, str) and isinstance(value, str) and value and is_secret_name(name):
            found.append(
                Finding(where, f"{name} is given by value; a file is not the place for a secret: use a Secret (valueFrom) or a role")
            )
        for key, child in tree.items():
            found += secrets_in(child, f"{where}.{key}" if where else str(key))
    elif isinstance(tree, list):
        for number, child in enumerate(tree):
            found += secrets_in(child, f"{where}[{number}]")
    elif isinstance(tree, str) and (what := secret_in(tree)):
        found.append(
            Finding(where, f"this seems to be {what}; a file is not the place for one: use the machine's role, or a file that is mounted")
        )
    return found
