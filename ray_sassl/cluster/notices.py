"""A cloud's notice that this machine will go, passed on to Ray: `python -m ray_sassl.cluster.notices aws`, or `gcp`.

Ray's launcher does not look for notices. This process does, on a node of Ray, and calls `ray drain-node`: the node gets no more work, and a
run writes a checkpoint. It ends with the node's raylet, so every start of Ray is followed by a start of this. It needs neither Ray nor
torch in memory while it waits.

Amazon EC2: the documents `spot/instance-action` (two minutes before) and `events/recommendations/rebalance` (a higher risk, without a time)
of the instance metadata service, version 2, which AWS asks to be read every 5 s. Google Compute Engine: the value `instance/preempted` of
the metadata server, which answers when it changes (30 s before).
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from ray_sassl.process.console import write

AWS, GCP = "http://169.254.169.254", "http://metadata.google.internal"
EVERY_S = 5.0
_PATIENCE_S = 120.0
_REQUEST_S = 4.0
_TOKEN_S = 60
_DRAIN_S = 20.0
_AWS_NOTICE_S = 120.0
_GCP_NOTICE_S = 30.0
_GCP_WAIT_S = 10
_MAX_BYTES = 65_536
_REASON = "DRAIN_NODE_REASON_PREEMPTION"


@dataclass(frozen=True)
class Notice:
    """What the cloud has said.

    Attributes:
        text: In a few words.
        seconds: Until the machine goes, where the cloud says so.
        is_last: Whether nothing more is to be expected.
    """

    text: str
    seconds: float | None
    is_last: bool


@dataclass(frozen=True)
class Raylet:
    """A running raylet.

    Attributes:
        process: Its folder below `/proc`.
        node_id: Ray's number of the node.
        address: The cluster's address.
    """

    process: Path
    node_id: str
    address: str

    @property
    def is_alive(self) -> bool:
        return any(found.node_id == self.node_id for found in raylets([self.process]))


class Metadata:
    """A cloud's metadata service, reached without a proxy."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def get(self, path: str, headers: dict[str, str], *, method: str = "GET", timeout_s: float = _REQUEST_S) -> tuple[str, str | None]:
        """The text and its ETag.

        Raises:
            urllib.error.HTTPError: the service refuses, with 404 for what it does not have.
            OSError: it does not answer.
        """
        request = urllib.request.Request(self._url + path, headers=headers, method=method)
        with self._opener.open(request, timeout=timeout_s) as answer:
            return answer.read(_MAX_BYTES).decode(), answer.headers.get("ETag")


def aws_notices(metadata: Metadata, every_s: float = EVERY_S) -> Iterator[Notice | None]:
    """New notices of EC2, and None after each look without one.

    Raises:
        OSError: the service does not answer; the next iterator begins again.
    """
    recommended = False
    while True:
        token, _ = metadata.get("/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_S)}, method="PUT")
        headers = {"X-aws-ec2-metadata-token": token}
        action = _document(metadata, "/latest/meta-data/spot/instance-action", headers)
        recommendation = None if recommended else _document(metadata, "/latest/meta-data/events/recommendations/rebalance", headers)
        if action is not None:
            yield Notice(f"AWS will {action.get('action', 'terminate')} this machine", _seconds_until(action.get("time")), True)
        elif recommendation is not None:
            recommended = True
            yield Notice("AWS recommends to leave this machine", None, False)
        else:
            yield None
        time.sleep(every_s)


def gcp_notices(metadata: Metadata) -> Iterator[Notice | None]:
    """New notices of Compute Engine, and None after each look without one.

    Raises:
        OSError: the service does not answer; the next iterator begins again.
    """
    path, wait = "/computeMetadata/v1/instance/preempted", ""
    while True:
        text, etag = metadata.get(path + wait, {"Metadata-Flavor": "Google"}, timeout_s=_GCP_WAIT_S + _REQUEST_S)
        if text.strip().upper() == "TRUE":
            yield Notice("Google will take this machine", _GCP_NOTICE_S, True)
        yield None
        wait = f"?wait_for_change=true&timeout_sec={_GCP_WAIT_S}&last_etag={etag or 0}"


_CLOUDS: dict[str, tuple[str, Callable[[Metadata, float], Iterator[Notice | None]]]] = {
    "aws": (AWS, aws_notices),
    "gcp": (GCP, lambda metadata, every_s: gcp_notices(metadata)),
}


def watch(cloud: str, raylet: Raylet, *, url: str | None = None, rebalance: bool = True, every_s: float = EVERY_S) -> None:
    """Pass notices on to Ray until the machine's end is announced, or the raylet has ended.

    Args:
        cloud: `aws` or `gcp`.
        url: Address of the metadata service, if it is not the cloud's own.
        rebalance: Whether a recommendation of AWS, which names no time, is a notice too.
        every_s: Pause between looks, and after a failure.
    """
    own, look = _CLOUDS[cloud]
    failed = False
    while raylet.is_alive:
        try:
            for notice in look(Metadata(url or own), every_s):
                failed = False
                if notice is not None and (notice.is_last or rebalance):
                    _drain_until_accepted(raylet, notice, every_s)
                if (notice is not None and notice.is_last) or not raylet.is_alive:
                    return
        except (OSError, ValueError, http.client.HTTPException) as error:
            if not failed:
                say(f"the metadata service of {cloud} does not answer, and is asked again: {error}")
            failed = True
            time.sleep(every_s)


def drain(raylet: Raylet, notice: Notice) -> bool:
    """Tell Ray that the node will go; whether Ray has accepted it within 20 s."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "drain-node", f"--address={raylet.address}", f"--node-id={raylet.node_id}"]
    command += [f"--reason={_REASON}", f"--reason-message={notice.text}"]
    if notice.seconds is not None:
        command.append(f"--deadline-remaining-seconds={max(1, int(notice.seconds))}")
    try:
        ended = subprocess.run(command, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=_DRAIN_S)
    except subprocess.TimeoutExpired:
        say(f"{notice.text}, and Ray does not answer within {_DRAIN_S:g} s")
        return False
    say(f"{notice.text}: Ray drains the node" if ended.returncode == 0 else f"{notice.text}, and Ray refuses: {ended.stdout.strip()}")
    return ended.returncode == 0


def raylets(processes: Iterable[Path] | None = None) -> list[Raylet]:
    """The raylets of this machine, or those among the given processes (folders below `/proc`)."""
    found = []
    for process in Path("/proc").glob("[0-9]*") if processes is None else processes:
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:  # it has ended, or belongs to somebody else
            continue
        named = dict(word[2:].split("=", 1) for word in words[1:] if word.startswith("--") and "=" in word)
        if Path(words[0]).name == "raylet" and {"node_id", "gcs-address"} <= named.keys():
            found.append(Raylet(process, named["node_id"], named["gcs-address"]))
    return found


def _drain_until_accepted(raylet: Raylet, notice: Notice, every_s: float) -> None:
    until = time.monotonic() + (notice.seconds or _PATIENCE_S)
    while raylet.is_alive and not drain(raylet, notice) and time.monotonic() < until:
        time.sleep(every_s)
        if notice.seconds is not None:
            notice = replace(notice, seconds=until - time.monotonic())


def _document(metadata: Metadata, path: str, headers: dict[str, str]) -> dict[str, str] | None:
    try:
        found = json.loads(metadata.get(path, headers)[0])
    except urllib.error.HTTPError as error:
        if error.code == 404:  # nothing is announced
            return None
        raise
    return found if isinstance(found, dict) else {}


def _seconds_until(moment: object) -> float:
    """Two minutes, which AWS promises, where no time is given, or none that can be read."""
    try:
        return (datetime.fromisoformat(str(moment)).astimezone(UTC) - datetime.now(UTC)).total_seconds()
    except ValueError:
        return _AWS_NOTICE_S


def say(text: str) -> None:
    """Print the text with the time."""
    write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} {text}\n")


def find_raylet(node_id: str | None, address: str | None, patience_s: float = _PATIENCE_S) -> Raylet:
    """The raylet of this machine with this node id or of this cluster, once it has started.

    Raises:
        SystemExit: there is none after so long, or more than one.
    """
    until = time.monotonic() + patience_s
    while True:
        found = [raylet for raylet in raylets() if node_id in (None, raylet.node_id) and address in (None, raylet.address)]
        if len(found) == 1:
            return found[0]
        if len(found) > 1:
            sys.exit(f"{len(found)} nodes of Ray are on this machine; choose one with --address or --node-id")
        if time.monotonic() > until:
            sys.exit("there is no such node of Ray on this machine; start Ray first")
        time.sleep(0.5)


def main(words: list[str] | None = None) -> None:
    """Watch until the machine is to go, or Ray has ended here."""
    parser = argparse.ArgumentParser(prog="python -m ray_sassl.cluster.notices", description="Tell Ray of a spot machine's notice.")
    parser.add_argument("cloud", choices=sorted(_CLOUDS))
    parser.add_argument("--no-rebalance", action="store_true", help="Wait for the final notice of AWS, and ignore recommendations.")
    parser.add_argument("--node-id", help="Ray's number of the node, where several are on this machine.")
    parser.add_argument("--address", help="Address of the node's cluster (HOST:PORT), where nodes of several are on this machine.")
    parser.add_argument("--metadata", help="Address of the metadata service. [default: the cloud's own]")
    given = parser.parse_args(words)
    raylet = find_raylet(given.node_id, given.address)
    say(f"watching for notices of {given.cloud} on node {raylet.node_id}")
    watch(given.cloud, raylet, url=given.metadata, rebalance=not given.no_rebalance)


if __name__ == "__main__":
    main()
