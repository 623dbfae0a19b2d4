"""The end of a head that nobody uses: `python -m ray_sassl.cluster.idle aws --minutes 120`, or `gcp`.

Ray's launcher removes idle workers and keeps the head until `ray down`. This process, on the head, asks the job API every minute, and
deletes the machine once there was neither a job, nor a driver, nor another node for so long. What a run has written is in object storage;
the next `ray up` makes another head. It ends with the head's raylet, as `notices` does, and needs the right to delete its own machine,
which the autoscaler needs too.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray_sassl.cluster.notices import AWS, GCP, Metadata, Raylet, find_raylet, say

EVERY_S = 60.0
_REQUEST_S = 20.0
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


def what_is_busy(ask: Callable[[str], Any]) -> str | None:
    """A job that has not ended, or a node beside the head, in a few words; None if there is none.

    Args:
        ask: The answer of the job API for a path.
    """
    for job in ask("/api/jobs/"):
        if job.get("status") not in _ENDED:
            return f"the job {job.get('submission_id') or job.get('job_id')} is {str(job.get('status')).lower()}"
    nodes = ask("/api/v0/nodes?detail=true&limit=10000")["data"]["result"]["result"]
    workers = [node for node in nodes if node.get("state") == "ALIVE" and not node.get("is_head_node")]
    return f"{len(workers)} nodes beside the head" if workers else None


def wait_until_idle(
    busy: Callable[[], str | None], raylet: Raylet, idle_s: float, every_s: float = EVERY_S, already_s: float = 0.0
) -> bool:
    """Whether nothing was busy for so long; False if Ray has ended here before. An API that does not answer counts as busy.

    Args:
        already_s: Nothing has been busy for so long when this is called.
    """
    since = time.monotonic() - already_s
    while raylet.is_alive:
        try:
            if busy() is not None:
                since = time.monotonic()
        except (OSError, ValueError, KeyError, TypeError, AttributeError, http.client.HTTPException) as error:
            say(f"the job API does not answer as it should: {error}")
            since = time.monotonic()
        if time.monotonic() - since >= idle_s:
            return True
        time.sleep(every_s)
    return False


def delete_machine(cloud: str, url: str | None = None) -> None:
    """Delete the machine on which this runs.

    Args:
        cloud: `aws` or `gcp`.
        url: Address of the metadata service, if it is not the cloud's own.
    """
    if cloud == "aws":
        from botocore.session import get_session

        metadata = Metadata(url or AWS)
        token, _ = metadata.get("/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, method="PUT")
        headers = {"X-aws-ec2-metadata-token": token}
        region, _ = metadata.get("/latest/meta-data/placement/region", headers)
        machine, _ = metadata.get("/latest/meta-data/instance-id", headers)
        get_session().create_client("ec2", region_name=region).terminate_instances(InstanceIds=[machine])
        return
    metadata, headers = Metadata(url or GCP), {"Metadata-Flavor": "Google"}
    project, zone, machine = (
        metadata.get(f"/computeMetadata/v1/{name}", headers)[0] for name in ("project/project-id", "instance/zone", "instance/name")
    )
    token = json.loads(metadata.get("/computeMetadata/v1/instance/service-accounts/default/token", headers)[0])["access_token"]
    request = urllib.request.Request(
        f"https://compute.googleapis.com/compute/v1/projects/{project}/zones/{zone.rpartition('/')[2]}/instances/{machine}",
        headers={"Authorization": f"Bearer {token}"},
        method="DELETE",
    )
    with urllib.request.urlopen(request, timeout=_REQUEST_S):
        pass


def _asking(address: str) -> Callable[[str], Any]:
    path = os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask(what: str) -> Any:
        file = Path(path).expanduser()
        token = os.environ.get("RAY_AUTH_TOKEN") or (file.read_text().strip() if file.is_file() else "")
        request = urllib.request.Request(address + what, headers={"Authorization": f"Bearer {token}"} if token else {})
        with opener.open(request, timeout=_REQUEST_S) as answer:
            return json.load(answer)

    return ask


def main(words: list[str] | None = None) -> None:
    """Wait until nobody has used the cluster for so long, and delete this machine."""
    parser = argparse.ArgumentParser(prog="python -m ray_sassl.cluster.idle", description="Delete a head that nobody uses.")
    parser.add_argument("cloud", choices=["aws", "gcp"])
    parser.add_argument("--minutes", type=float, default=120.0, help="Without a job, a driver and another node. [default: 120]")
    parser.add_argument("--address", default="http://127.0.0.1:8265", help="Of the job API. [default: http://127.0.0.1:8265]")
    given = parser.parse_args(words)
    if not 1 <= given.minutes < math.inf:
        parser.error(f"--minutes {given.minutes:g}: give 1 or more, since a head that has just started has no job")
    raylet, ask = find_raylet(None, None), _asking(given.address)
    say(f"this machine is deleted after {given.minutes:g} minutes without a job, a driver and another node")
    idle_s = 60 * given.minutes
    already_s, pause_s = 0.0, EVERY_S
    while wait_until_idle(lambda: what_is_busy(ask), raylet, idle_s, already_s=already_s):
        say("nobody uses this cluster: deleting this machine")
        try:
            delete_machine(given.cloud)
        except Exception as error:  # noqa: BLE001 - botocore's errors have no common base with urllib's
            say(f"the machine could not be deleted, which is tried again after {pause_s:g} s without use: {error}")
        already_s, pause_s = idle_s - pause_s, min(2 * pause_s, idle_s)


if __name__ == "__main__":
    main()
