"""The version of Ray in an image, according to its tag."""

from __future__ import annotations

import re

from ray_sassl.cluster.findings import Finding

_OWN_TAG = re.compile(r"(?:^|[^a-z])ray-?(\d+\.\d+\.\d+)")
_VERSION = re.compile(r"^(\d+\.\d+\.\d+)")


def ray_version_of(image: str) -> str | None:
    """The version in the tag: `2.60.0` of `rayproject/ray:2.60.0-py311-gpu` and of `mine:0.1-ray2.60.0`; None without a version."""
    name, _, tag = image.partition("@")[0].rpartition(":")
    if not name or "/" in tag:
        return None
    if match := _OWN_TAG.search(tag):
        return match[1]
    is_rays_own = re.search(r"(^|/)rayproject/ray(-ml|-llm)?$", name)
    match = _VERSION.match(tag) if is_rays_own else None
    return match[1] if match else None


def check_image(image: str, where: str, ray_version: str) -> list[Finding]:
    """Whether the image has the given version of Ray, without which nodes and drivers cannot communicate."""
    found = ray_version_of(image)
    if found is None:
        return [
            Finding(
                where,
                f"the tag of {image!r} does not say which Ray is in it; write it into the tag, as in name:1.0-ray{ray_version}, so that it "
                "can be compared",
            )
        ]
    if found != ray_version:
        return [Finding(where, f"{image!r} has Ray {found}, and Ray {ray_version} is installed here; all must be the same")]
    return []
