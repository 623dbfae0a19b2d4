"""Objects of S3 stores by requests of our own, where pyarrow's filesystem asks more often than needed: it looks up the size of an object
before each read, knows no conditions, and lists without ETags.

`botocore` finds the credentials and signs (AWS Signature Version 4). Connections are kept open and shared by the threads of a process.
"""

from __future__ import annotations

import os
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import formatdate
from functools import lru_cache
from typing import Any, cast
from xml.etree import ElementTree

_CONNECTIONS = 64
_CONNECT_S, _READ_S = 10.0, 60.0
_PAGE_KEYS = 1000
_TRIES, _PAUSE_S = 10, 0.2
"""For a store that refuses now and then; `storage.retried` waits longer for one that does not answer."""


class ChangedError(Exception):
    """The object is not the one that was meant."""


class RefusedError(PermissionError):
    """The store refuses the request, and would refuse it again."""


@dataclass(frozen=True)
class Stamp:
    """What an object must be for a request to be answered.

    Attributes:
        size_bytes: Its size.
        mtime_ns: Its time of change in nanoseconds since 1970.
        etag: Its ETag; empty if it is not known.
    """

    size_bytes: int
    mtime_ns: int
    etag: str = ""


@dataclass(frozen=True)
class Object:
    """An object of a listing; `key` is its whole name."""

    key: str
    stamp: Stamp


@dataclass(frozen=True)
class Bucket:
    """A bucket of a store.

    Attributes:
        url: Of the bucket, without a `/` at its end.
        region: For the signature.
        ca_file: Certificates to trust, instead of the system's.
    """

    url: str
    region: str
    ca_file: str | None = None

    def read(self, key: str, span: tuple[int, int] | None = None, stamp: Stamp | None = None) -> bytes:
        """The bytes of an object, or of a span (start, stop) of it, by a single request.

        Raises:
            ChangedError: the object is not as the stamp says.
            FileNotFoundError: there is no such object.
            PermissionError: it may not be read, or the store refuses the request for another lasting reason.
            OSError: the store cannot be reached, or is too busy.
        """
        headers = {}
        if span is not None:
            headers["Range"] = f"bytes={span[0]}-{span[1] - 1}"
        if stamp is not None:
            headers |= {"If-Match": stamp.etag} if stamp.etag else {"If-Unmodified-Since": formatdate(stamp.mtime_ns // 10**9, usegmt=True)}
        answer = self._get(f"{self.url}/{urllib.parse.quote(key, safe='/-_.~')}", headers)
        total = answer.headers.get("Content-Range", "").rpartition("/")[2] if answer.status == 206 else str(len(answer.data))
        if stamp is not None and total != str(stamp.size_bytes):
            raise ChangedError(key)
        return answer.data if span is None or answer.status == 206 else answer.data[span[0] : span[1]]

    def list(self, prefix: str) -> Iterator[Object]:
        """The objects whose keys begin so, in the order of their keys, by one request for each thousand.

        Raises:
            As for `read`.
        """
        query = {"list-type": "2", "encoding-type": "url", "max-keys": str(_PAGE_KEYS), "prefix": prefix}
        while True:
            encoded = urllib.parse.urlencode(sorted(query.items()), quote_via=urllib.parse.quote, safe="-_.~")
            page = ElementTree.fromstring(self._get(f"{self.url}?{encoded}", {}).data)
            space = page.tag.rpartition("}")[0] + "}" if page.tag.startswith("{") else ""
            for found in page.iterfind(f"{space}Contents"):
                field = {name: found.findtext(space + name, "") for name in ("Key", "Size", "LastModified", "ETag")}
                changed = datetime.fromisoformat(field["LastModified"])
                stamp = Stamp(int(field["Size"]), round(changed.timestamp() * 1000) * 10**6, field["ETag"])
                yield Object(urllib.parse.unquote_plus(field["Key"]), stamp)
            token = page.findtext(f"{space}NextContinuationToken")
            if page.findtext(f"{space}IsTruncated") != "true" or not token:
                return
            query["continuation-token"] = token

    def _get(self, url: str, headers: Mapping[str, str]) -> Any:
        for left in range(_TRIES, 0, -1):
            try:
                return self._get_once(url, headers)
            except (FileNotFoundError, PermissionError):
                raise
            except OSError:
                if left == 1:
                    raise
                time.sleep(_PAUSE_S)
        raise AssertionError

    def _get_once(self, url: str, headers: Mapping[str, str]) -> Any:
        import urllib3.exceptions

        try:
            answer = _connections(os.getpid(), self.ca_file).request("GET", url, headers=_signed(url, headers, self.region), redirect=False)
        except urllib3.exceptions.HTTPError as error:
            raise OSError(f"http: {error}") from error
        if answer.status in (200, 206):
            return answer
        name = _error_name(answer.data)
        if answer.status == 404 and name != "NoSuchBucket":
            raise FileNotFoundError(url)
        if answer.status in (412, 416):
            raise ChangedError(url)
        if answer.status == 403:
            raise PermissionError(f"HTTP {answer.status} {name}")
        if answer.status >= 500 or answer.status in (408, 429):
            raise OSError(f"HTTP {answer.status} {name}")
        raise RefusedError(f"HTTP {answer.status} {name}")


@lru_cache(maxsize=64)
def bucket_of(name: str, query: str, region: str) -> Bucket:
    """The bucket by its name, the options of its URI, and its region."""
    options = dict(urllib.parse.parse_qsl(query.lstrip("?")))
    given = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    if endpoint := options.get("endpoint_override", given):
        scheme, mark, host = endpoint.rpartition("://")
        url = f"{scheme if mark else options.get('scheme', 'https')}://{host.rstrip('/')}/{name}"
    else:
        domain = "amazonaws.com.cn" if region.startswith("cn-") else "amazonaws.com"
        host = f"s3.{region}.{domain}"
        url = f"https://{host}/{name}" if "." in name else f"https://{name}.{host}"
    return Bucket(url, region, options.get("tls_ca_file_path"))


@lru_cache(maxsize=4)
def _connections(process: int, ca_file: str | None) -> Any:
    """The connections of a process; one that was forked must not use those of its parent."""
    import urllib3

    timeout = urllib3.Timeout(connect=_CONNECT_S, read=_READ_S)
    trust = {"ca_certs": ca_file} if ca_file else {}
    return urllib3.PoolManager(8, maxsize=_CONNECTIONS, timeout=timeout, retries=False, **cast(Any, trust))


@lru_cache(maxsize=1)
def _session() -> Any:
    import botocore.session

    return botocore.session.Session()


def _signed(url: str, headers: Mapping[str, str], region: str) -> dict[str, str]:
    """The headers with a signature, if there are credentials; those that end are renewed by `botocore`."""
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest

    credentials = _session().get_credentials()
    if credentials is None:
        return dict(headers)
    request = AWSRequest("GET", url, headers=dict(headers))
    S3SigV4Auth(credentials.get_frozen_credentials(), "s3", region).add_auth(request)
    return dict(request.headers.items())


def _error_name(body: bytes) -> str:
    try:
        found = ElementTree.fromstring(body)
    except ElementTree.ParseError:
        return ""
    return next((part.text or "" for part in found.iter() if part.tag.rpartition("}")[2] == "Code"), "")
