"""Problems of files for `ray up` that Ray's own schema does not find."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ray_sassl.cluster.findings import Finding, at, is_whole, mapping, sequence
from ray_sassl.cluster.groups import is_labeled_for_gpus, is_named_for_gpus
from ray_sassl.cluster.images import check_image
from ray_sassl.cluster.secrets import secrets_in

_AWS_GPU = re.compile(r"^(p\d|g\d|gr\d)", re.IGNORECASE)
_GCP_GPU = re.compile(r"^(a2|a3|a4|a4x|g2|g4)-")
_AWS_CPU = re.compile(r"^(t\d|m\d|c\d|r\d|x\d|i\d)", re.IGNORECASE)
_ALL_INTERFACES = re.compile(r"""--dashboard-host[=\s]+['"]?(0\.0\.0\.0|\[?::)""")
_OPEN_BY_DEFAULT = ("aws", "azure", "gcp", "vsphere")
_ANYBODY = ("0.0.0.0/0", "::/0")
_SSH_PORT = 22
_DISK_GB = 100
MIN_DRIVER = 580
"""NVIDIA's first driver for CUDA 13, which the pinned torch brings (CUDA Toolkit Release Notes, table of minimum versions)."""
DRIVER_LABEL = "ray-sassl/nvidia-driver"
_PRIVATE_REGISTRY = re.compile(r"\.dkr\.ecr\.|\.pkg\.dev/|(^|\.)gcr\.io/")
_LOGIN = re.compile(r"docker login|configure-docker|docker-credential|helper")


def check_launcher(config: dict[str, Any], ray_version: str) -> list[Finding]:
    """The findings, in the order of the file.

    Args:
        ray_version: The version that the image, or the commands that install Ray, must have.
    """
    return [
        *_numbers(config),
        *_node_types(config),
        *_machines(config),
        *_login(config),
        *_notices(config),
        *_idle_head(config),
        *_setup(config),
        *_versions(config, ray_version),
        *_images(config),
        *_authentication(config),
        *_doors(config),
        *secrets_in(config),
    ]


def _numbers(config: dict[str, Any]) -> Iterator[Finding]:
    for name in ("max_workers", "upscaling_speed", "idle_timeout_minutes"):
        yield from _not_negative(config.get(name), name)
    types = mapping(config.get("available_node_types"))
    least = 0
    for name, node_type in types.items():
        where = f"available_node_types.{name}"
        low, high = mapping(node_type).get("min_workers", 0), mapping(node_type).get("max_workers")
        yield from _not_negative(low, f"{where}.min_workers")
        yield from _not_negative(high, f"{where}.max_workers")
        yield from _not_negative(mapping(node_type).get("idle_timeout_s"), f"{where}.idle_timeout_s")
        if is_whole(low) and is_whole(high) and low > high >= 0:
            yield Finding(f"{where}.max_workers", f"there may be at most {high} nodes and must be at least {low} (min_workers)")
        least += low if is_whole(low) and low > 0 else 0
    most = config.get("max_workers")
    if is_whole(most) and least > most >= 0:
        yield Finding("max_workers", f"the cluster may have at most {most} workers, and the groups' min_workers add up to {least}")
    for name, node_type in types.items():
        high = mapping(node_type).get("max_workers")
        if is_whole(most) and is_whole(high) and high > most >= 0:
            yield Finding(
                f"available_node_types.{name}.max_workers", f"{high} is more than the whole cluster may have (max_workers: {most})"
            )


def _not_negative(value: Any, where: str) -> Iterator[Finding]:
    if isinstance(value, int | float) and value < 0:
        yield Finding(where, f"{value} is negative")


def _node_types(config: dict[str, Any]) -> Iterator[Finding]:
    head = config.get("head_node_type")
    for name, node_type in mapping(config.get("available_node_types")).items():
        where = f"available_node_types.{name}"
        resources, node = mapping(mapping(node_type).get("resources")), mapping(mapping(node_type).get("node_config"))
        machine = str(node.get("InstanceType") or node.get("machineType") or "")
        has_gpu = bool(node.get("guestAccelerators") or _AWS_GPU.match(machine) or _GCP_GPU.match(machine.rpartition("/")[2]))
        gpus = resources.get("GPU", 0)
        if name == head:
            yield from _head(where, node_type, resources, node)
        elif not gpus and (has_gpu or is_labeled_for_gpus(node_type) or is_named_for_gpus(str(name))):
            is_sure = has_gpu or is_labeled_for_gpus(node_type)
            why = f"its machines ({machine}) have GPUs" if has_gpu else f"its {'label' if is_sure else 'name'} says that it has GPUs"
            yield Finding(
                f"{where}.resources",
                f"{why}, but its resources list none, so no request for a GPU would start a node; add GPU",
                is_note=not is_sure,
            )
        elif gpus and _AWS_CPU.match(machine) and "InstanceType" in node:
            yield Finding(f"{where}.resources.GPU", f"{gpus} GPUs are declared, but {machine} has none")


def _machines(config: dict[str, Any]) -> Iterator[Finding]:
    """What Ray or the cloud adds where a definition is silent: an old image with a small disk, and SSH open to everybody."""
    of_cloud = {"aws": _aws_machine, "gcp": _gcp_machine}.get(str(at(config, "provider.type")))
    for name, node_type in mapping(config.get("available_node_types")).items() if of_cloud else ():
        where, node = f"available_node_types.{name}", mapping(mapping(node_type).get("node_config"))
        yield from of_cloud(f"{where}.node_config", node)  # type: ignore[misc]
        if mapping(mapping(node_type).get("resources")).get("GPU"):
            yield from _driver(where, node_type, node)


def _aws_machine(where: str, node: dict[str, Any]) -> Iterator[Finding]:
    if not node.get("ImageId"):
        yield Finding(f"{where}.ImageId", "is missing; Ray's own choice is of 2023, whose driver is too old for today's torch: give an AMI")
    if not node.get("SecurityGroupIds") and not node.get("NetworkInterfaces"):
        yield Finding(f"{where}.SecurityGroupIds", "is missing; Ray makes a group that admits SSH from the whole Internet")
    sizes = [at(disk, "Ebs.VolumeSize") for disk in sequence(node.get("BlockDeviceMappings"))]
    if not any(is_whole(size) and size >= _DISK_GB for size in sizes):
        yield Finding(f"{where}.BlockDeviceMappings", f"gives no disk of {_DISK_GB} GB or more for the image and spilled blocks")


def _gcp_machine(where: str, node: dict[str, Any]) -> Iterator[Finding]:
    if "sourceMachineImage" in node:
        return
    disks = [mapping(mapping(disk).get("initializeParams")) for disk in sequence(node.get("disks"))]
    if not any(disk.get("sourceImage") for disk in disks):
        yield Finding(f"{where}.disks", "names no image of the machine (initializeParams.sourceImage)")
    sizes = [disk.get("diskSizeGb") for disk in disks]
    if not any(is_whole(size) and size >= _DISK_GB for size in sizes):
        yield Finding(f"{where}.disks", f"gives no disk of {_DISK_GB} GB or more for the image and spilled blocks")
    if not node.get("networkInterfaces"):
        yield Finding(
            f"{where}.networkInterfaces",
            "is missing; Ray takes a network of the project, and `default` admits SSH from the whole Internet: name a subnetwork",
        )


def _driver(where: str, node_type: Any, node: dict[str, Any]) -> Iterator[Finding]:
    """The machine image and the container's torch are a pair: CUDA does not start below a driver of its own time."""
    label = mapping(mapping(node_type).get("labels")).get(DRIVER_LABEL)
    images = [str(at(disk, "initializeParams.sourceImage")) for disk in sequence(node.get("disks"))]
    named = re.search(r"nvidia-(\d{3})\b", " ".join(images))
    driver = str(label) if label is not None else named[1] if named else None
    if driver is None:
        yield Finding(
            f"{where}.labels",
            f"nothing says which NVIDIA driver the machine's image has, and the image's torch needs {MIN_DRIVER} or newer; look "
            f"(`nvidia-smi`) and give the label {DRIVER_LABEL}",
            is_note=True,
        )
    elif not (major := re.match(r"\d+", driver)) or int(major[0]) < MIN_DRIVER:
        yield Finding(
            f"{where}.labels" if label is not None else f"{where}.node_config.disks",
            f"the machine's NVIDIA driver is {driver}, and torch in the image needs {MIN_DRIVER} or newer, so no GPU would work",
        )


def _login(config: dict[str, Any]) -> Iterator[Finding]:
    image = str(at(config, "docker.image") or at(config, "docker.worker_image") or "")
    if not _PRIVATE_REGISTRY.search(image):
        return
    everywhere = sequence(config.get("initialization_commands"))
    for name, node_type in mapping(config.get("available_node_types")).items():
        own = mapping(node_type).get("initialization_commands")
        commands = everywhere if own is None or name == config.get("head_node_type") else sequence(own)
        if not any(_LOGIN.search(str(command)) for command in commands):
            where = "initialization_commands" if commands is everywhere else f"available_node_types.{name}.initialization_commands"
            yield Finding(where, f"do not log in to the registry of {image}, so machines of {name} may not pull it", is_note=True)


def _notices(config: dict[str, Any]) -> Iterator[Finding]:
    """Ray's launcher does not look for the notice of a spot machine."""
    types = mapping(config.get("available_node_types"))
    spot = [str(name) for name, node_type in types.items() if name != config.get("head_node_type") and _is_on_spot(node_type)]
    commands = " ".join(map(str, sequence(config.get("worker_start_ray_commands"))))
    if spot and at(config, "provider.type") in ("aws", "gcp") and not re.search(r"cluster\.notices|drain-node", commands):
        yield Finding(
            "worker_start_ray_commands",
            f"nothing tells Ray that a machine of {', '.join(spot)} will be taken away; start `python -m ray_sassl.cluster.notices "
            f"{at(config, 'provider.type')}` after Ray, as in cluster/{at(config, 'provider.type')}.yaml",
            is_note=True,
        )


def _idle_head(config: dict[str, Any]) -> Iterator[Finding]:
    """Ray's launcher removes idle workers, and keeps the head."""
    cloud, commands = at(config, "provider.type"), " ".join(map(str, sequence(config.get("head_start_ray_commands"))))
    if cloud in ("aws", "gcp") and commands and not re.search(r"cluster\.idle|shutdown|stop-instances|instances (stop|delete)", commands):
        yield Finding(
            "head_start_ray_commands",
            f"nothing ends the head, which is paid for until `ray down`; start `python -m ray_sassl.cluster.idle {cloud}` after Ray, as in "
            f"cluster/{cloud}.yaml",
            is_note=True,
        )


def _setup(config: dict[str, Any]) -> Iterator[Finding]:
    """Ray's defaults for AWS and Google Cloud install things into the container."""
    if at(config, "provider.type") in ("aws", "gcp") and at(config, "docker"):
        for name in ("setup_commands", "head_setup_commands"):
            if config.get(name) is None:
                yield Finding(name, "is missing, and Ray's default installs another Ray or an old client into the image; give []")


def _head(where: str, node_type: Any, resources: dict[str, Any], node: dict[str, Any]) -> Iterator[Finding]:
    if resources.get("CPU") != 0:
        yield Finding(
            f"{where}.resources.CPU",
            "the head runs tasks, which may starve or kill it and the whole cluster; give it CPU: 0",
            is_note=True,
        )
    if _is_on_spot({"node_config": node}):
        yield Finding(f"{where}.node_config", "the head is on a spot machine: when it is taken away, the whole cluster ends", is_note=True)


def _is_on_spot(node_type: Any) -> bool:
    node = mapping(mapping(node_type).get("node_config"))
    scheduling = node.get("scheduling")
    parts = scheduling if isinstance(scheduling, list) else [scheduling]
    return "InstanceMarketOptions" in node or any(
        mapping(part).get("preemptible") or mapping(part).get("provisioningModel") == "SPOT" for part in parts
    )


def _versions(config: dict[str, Any], ray_version: str) -> Iterator[Finding]:
    images: list[tuple[str, Any]] = [(f"docker.{name}", at(config, f"docker.{name}")) for name in ("image", "head_image", "worker_image")]
    for name, node_type in mapping(config.get("available_node_types")).items():
        for key in ("image", "worker_image"):
            images.append((f"available_node_types.{name}.docker.{key}", at(node_type, f"docker.{key}")))
    given = [(where, image) for where, image in images if image]
    for where, image in given:
        yield from check_image(str(image), where, ray_version)
    if given:
        return
    commands = [str(command) for name in _COMMANDS for command in sequence(config.get(name))]
    versions = {found for command in commands for found in re.findall(r"\bray(?:\[[^\]]*\])?==(\d+\.\d+\.\d+)", command)}
    if not versions:
        yield Finding(
            "docker.image",
            f"no Ray version is given for the nodes; name an image, or install 'ray[default]=={ray_version}' in setup_commands",
        )
    for version in sorted(versions - {ray_version}):
        yield Finding("setup_commands", f"Ray {version} is installed on the nodes, and Ray {ray_version} here; all must be the same")


def _images(config: dict[str, Any]) -> Iterator[Finding]:
    """Ray's autoscaler reads `image` if `head_image` or `worker_image` is set (`AutoscalingConfig.get_docker_config`)."""
    lacking = []
    for name, node_type in mapping(config.get("available_node_types")).items():
        docker = {**mapping(config.get("docker")), **mapping(at(node_type, "docker"))}
        own = "head_image" if name == config.get("head_node_type") else "worker_image"
        if own in docker and "image" not in docker:
            lacking.append(str(name))
    if lacking:
        yield Finding(
            "docker.image",
            f"is missing next to head_image or worker_image, so Ray's autoscaler starts Ray on no node of {', '.join(lacking)}; add an "
            "image",
        )


_COMMANDS = ("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands")
_START = ("head_start_ray_commands", "worker_start_ray_commands")


def _authentication(config: dict[str, Any]) -> Iterator[Finding]:
    docker = mapping(config.get("docker"))
    everywhere = " ".join(map(str, sequence(docker.get("run_options"))))
    for side, start in zip(("head", "worker"), _START, strict=True):
        own = " ".join(map(str, [*sequence(docker.get(f"{side}_run_options")), *sequence(config.get(start))]))
        if not re.search(r"\bRAY_AUTH_MODE=['\"]?token\b", f"{everywhere} {own}"):
            yield Finding(
                start,
                f"the {side}'s Ray starts without token authentication, so whoever reaches it runs code there; add '--env "
                "RAY_AUTH_MODE=token' to docker.run_options, or RAY_AUTH_MODE=token before `ray start`",
            )
    mounts = [str(path) for pair in mapping(config.get("file_mounts")).items() for path in pair]
    if not any(path.endswith("auth_token") for path in mounts):
        yield Finding(
            "file_mounts", "no token is copied to the nodes; mount one made by `ray get-auth-token --generate` (~/.ray/auth_token)"
        )


def _doors(config: dict[str, Any]) -> Iterator[Finding]:
    if config.get("head_start_ray_commands") is None and at(config, "provider.type") in _OPEN_BY_DEFAULT:
        yield Finding(
            "head_start_ray_commands",
            "is missing, and with Ray's default the dashboard and the job API listen on every interface; start Ray with "
            "--dashboard-host=127.0.0.1",
        )
    for number, command in enumerate(sequence(config.get("head_start_ray_commands"))):
        if _ALL_INTERFACES.search(str(command)):
            yield Finding(
                f"head_start_ray_commands[{number}]",
                "the dashboard and the job API listen on every interface; leave them on 127.0.0.1 and reach them by `ray dashboard FILE`",
            )
    for number, rule in enumerate(sequence(at(config, "provider.security_group.IpPermissions"))):
        low, high = mapping(rule).get("FromPort"), mapping(rule).get("ToPort")
        ranges = [mapping(part) for name in ("IpRanges", "Ipv6Ranges") for part in sequence(mapping(rule).get(name))]
        is_open = any(part.get("CidrIp") in _ANYBODY or part.get("CidrIpv6") in _ANYBODY for part in ranges)
        if is_open and (low, high) != (_SSH_PORT, _SSH_PORT):
            where = f"provider.security_group.IpPermissions[{number}]"
            yield Finding(where, f"ports {low} to {high} are open to the whole Internet; open none but SSH, and that to known addresses")
