"""Secrets in URIs: what is hidden, what may be shown, and that every error and config heeds it."""

from __future__ import annotations

import time

import pytest

from ray_sassl.config.files import from_yaml, to_yaml
from ray_sassl.data import DataConfig
from ray_sassl.data.quarantine import BadRow
from ray_sassl.experiments import load_experiment
from ray_sassl.files import storage
from ray_sassl.files.paths import absolute
from ray_sassl.orchestrate.jobs.submission import refuse_secrets
from ray_sassl.orchestrate.runtime.reasons import reason_of
from ray_sassl.process.errors import UsageError
from ray_sassl.process.secrets import redacted, redacted_tree, secret_in_uri
from ray_sassl.study.space import SearchSpace
from ray_sassl.types import RunResult

S = "hunter2XY"
WITH_A_SECRET = (
    f"s3://KEY:{S}@bucket/shards", f"s3://KEY:a/{S}+x@bucket/shards?region=eu-1", f"S3://KEY:/{S}@bucket", f"s3:/KEY:{S}@bucket/x",
    f"s3://{S}@bucket", f"gs://bucket/x?token={S}", f"s3://bucket/k?X-Amz-Algorithm=A&X-Amz-Signature={S}&region=eu-1",
    f"https://account.blob.core.windows.net/c?sv=2022-11-02&sig={S}%3D", f"https://{S}@github.com/x", f"https://user:{S}@host:8265/x",
    f"https://host/x#access_token={S}", f"abfs://:{S}@account.blob.core.windows.net/c", f"hdfs://user:{S}@node:8020/x",
    f"s3://bucket?endpoint_override=http://user:{S}@minio:9000", f"s3://bucket?endpoint_override=http%3A%2F%2Fuser%3A{S}%40minio",
    f"data.path=[s3://a?token={S},s3://b?region=eu-1]", f"cannot open 's3://KEY:{S}@bucket/x': no", f'{{"uri":"gs://b?sas={S}"}}',
    f"http://user:{S}@proxy.example.org:3128",
)  # fmt: skip
WITHOUT_ONE = (
    "s3://bucket/k", "gs://anonymous@bucket/x", "abfs://container@account.dfs.core.windows.net/x", "hdfs://user@node:8020/x",
    "s3://bucket/x?region=eu-1&endpoint_override=localhost:9000&scheme=http", "http://host:8265/a@b", "s3://bucket/a&b=c.jpg",
    "s3://bucket/what?.jpg", "s3://bucket/what?x=y.jpg?", "s3://bucket/what?x=y.jpg?region=eu-1", "s3://bucket/a#b=c.jpg",
    "s3://bucket/dir@2x/a.tar", "/data/dir@2x/a:b@c?token=d", "C:/photos", "s3://bucket/x?token=$TOKEN", "photos?token=x",
)  # fmt: skip


@pytest.mark.parametrize("text", WITH_A_SECRET)
def test_the_text_of_a_uri_shows_no_secret_and_the_objection_neither(text: str):
    shown, objection = redacted(text), secret_in_uri(text)
    assert S not in shown
    assert redacted(shown) == shown
    assert objection is not None
    assert S not in objection
    assert "AWS_SECRET_ACCESS_KEY" in objection
    assert secret_in_uri(shown) is None, "what was hidden is no secret any more"


@pytest.mark.parametrize("text", WITHOUT_ONE)
def test_what_is_no_secret_is_taken(text: str):
    assert secret_in_uri(text) is None


@pytest.mark.parametrize("uri", [f"s3://bucket/a b?sig={S}", f"s3://KEY:{S} x@bucket/a", f"data.path=s3://bucket/x? token={S}"])
def test_a_uri_with_spaces_in_it_is_one_uri_where_it_enters(uri: str):
    objection = secret_in_uri(uri)
    assert objection is not None
    assert S not in objection


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"401 for hf_{S}{S}{S}: no access", "401 for ***: no access"),
        (f"Authorization: Bearer {S}", "Authorization: Bearer ***"),
        (f"user:{S}@proxy.example.org:3128 refused", "***@proxy.example.org:3128 refused"),
        (f"AccountName=a;AccountKey={S}==;EndpointSuffix=x", "AccountName=a;AccountKey=***;EndpointSuffix=x"),
        (f"AWS_SECRET_ACCESS_KEY={S} is wrong", "AWS_SECRET_ACCESS_KEY=*** is wrong"),
        (f"https://h/x?sig[]={S}", "https://h/x?sig[]=***"),
        ("class_token=average_pool_of_all", "class_token=average_pool_of_all"),
        ("10:30@noon, a:b@c", "10:30@noon, a:b@c"),
    ],
)
def test_tokens_of_known_forms_are_hidden_wherever_they_stand(text: str, shown: str):
    assert redacted(text) == shown
    assert redacted(shown) == shown


def test_what_surrounds_a_secret_stays():
    assert redacted(f"cannot open 's3://KEY:{S}@bucket/x?region=eu-1': no") == "cannot open 's3://***@bucket/x?region=eu-1': no"
    assert redacted_tree({"a": [f"s3://b?token={S}", 1], "b": None}) == {"a": ["s3://b?token=***", 1], "b": None}


@pytest.mark.parametrize("text", ["a" * 200_000 + ":/", "s3://" * 40_000, "s3://a:" + "b" * 200_000, "s3://a?" + "b=c&" * 50_000])
def test_long_texts_take_no_longer_than_their_length(text: str):
    began = time.process_time()
    redacted(text)
    secret_in_uri(text)
    assert time.process_time() - began < 20


@pytest.mark.parametrize("text", WITH_A_SECRET)
def test_errors_and_records_of_ours_show_no_secret(text: str):
    assert S not in repr(UsageError(f"cannot read {text}"))
    assert S not in str(RunResult("failed", 0, "run", None, {}, f"cannot read {text}"))
    assert S not in str(BadRow("x.tar", 1, 1, f"cannot read {text}"))
    assert S not in reason_of(OSError(f"cannot read {text}"))


URIS = [text for text in WITH_A_SECRET if "://" in text and text.index("://") < 6]


@pytest.mark.parametrize("uri", URIS)
def test_no_path_with_a_secret_enters(uri: str):
    for enter in (storage.exists, storage.list_dir, storage.read_bytes, storage.local_path, absolute):
        with pytest.raises(UsageError, match="AWS_SECRET_ACCESS_KEY") as raised:
            enter(uri)
        assert S not in str(raised.value)
    with pytest.raises(UsageError):
        storage.write_text(uri, "x")
    with pytest.raises(UsageError):
        refuse_secrets(["pretrain", f"data.path={uri}"], {})


@pytest.mark.parametrize("uri", URIS)
def test_no_config_holds_a_secret_and_a_saved_one_says_how_to_pass_it(uri: str):
    with pytest.raises(ValueError, match="AWS_SECRET_ACCESS_KEY") as raised:
        DataConfig(path=(uri, "photos"))
    assert S not in str(raised.value)
    saved = to_yaml(load_experiment("demo_plain").model_copy(update={"data": DataConfig(path="PHOTOS")})).replace("PHOTOS", f"'{uri}'")
    with pytest.raises(UsageError, match=r"config.yaml: data.path: .* AWS_SECRET_ACCESS_KEY") as raised:
        from_yaml(saved, "config.yaml")
    assert S not in str(raised.value)
    with pytest.raises(ValueError, match="AWS_SECRET_ACCESS_KEY") as raised:
        SearchSpace.model_validate({"parameters": [{"kind": "choice", "path": "data.path", "choices": [uri, "photos"]}]})
    assert S not in str(raised.value)
