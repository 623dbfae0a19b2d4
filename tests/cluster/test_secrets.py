"""What looks like a secret, and what only sounds like one."""

from __future__ import annotations

import pytest

from ray_sassl.cluster.secrets import is_secret_name, secret_in

SECRETS = {
    "--env HF_TOKEN=abc": "a secret given by value",
    "TOKEN=abc": "a secret given by value",
    "db_pass=abc": "a secret given by value",
    "MYSQL_PWD='abc'": "a secret given by value",
    "OPENAI_APIKEY=abc": "a secret given by value",
    "MASTER_KEY=abc": "a secret given by value",
    "TOKEN_OF_MINE=abc": "a secret given by value",
    f"github_pat_{'a1' * 11}_{'b2' * 29}": "a GitHub token",
    "https://host/shards.tar?token=abc": "a URI with a key among its options",
    "https://host/shards.tar?part=1&token=abc": "a URI with a key among its options",
    "https://bucket.s3.amazonaws.com/x?X-Amz-Date=1&X-Amz-Signature=abc": "a URI with a key among its options",
    "https://account.blob.core.windows.net/c?sv=2022&sig=abc": "a URI with a key among its options",
}
NO_SECRETS = (
    "num_tokens=4", "RAY_AUTH_MODE=token", "TOKEN=$TOKEN", "https://host/x?token=$TOKEN", "RAY_AUTH_TOKEN_PATH=/x/auth_token",
    "AWS_WEB_IDENTITY_TOKEN_FILE=/path", "monkey=1", "bypass=1", "stream.pool.num_gpus=0.5", "keyed=1",
)  # fmt: skip


@pytest.mark.parametrize("text", SECRETS)
def test_a_secret_is_told_by_its_name_or_its_form(text: str):
    assert secret_in(text) == SECRETS[text]


@pytest.mark.parametrize("text", NO_SECRETS)
def test_what_only_sounds_like_a_secret_is_none(text: str):
    assert secret_in(text) is None


def test_variables_are_secret_by_whole_words_of_their_names():
    assert all(
        map(is_secret_name, ("TOKEN", "hf_token", "KEY", "DB_PASS", "MYSQL_PWD", "MY_APIKEY", "PGPASSWORD", "AWS_SECRET_ACCESS_KEY"))
    )
    assert not any(map(is_secret_name, ("NUM_TOKENS", "KEYBOARD", "BYPASS", "RAY_AUTH_TOKEN_PATH", "AWS_WEB_IDENTITY_TOKEN_FILE", "HOME")))
