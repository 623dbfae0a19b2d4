"""Every definition that is shipped passes; every broken one fails, for its reason."""

from __future__ import annotations

import re
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any

import pytest
import yaml

from ray_sassl.cluster.check import check_text, rules_of
from ray_sassl.cluster.crds import Schemas, read_schemas, strict
from ray_sassl.cluster.findings import Finding
from ray_sassl.cluster.launcher import MIN_DRIVER
from ray_sassl.process.errors import UsageError

CLUSTER = Path(__file__).parents[2] / "cluster"
LAUNCHERS = [CLUSTER / "aws.yaml", CLUSTER / "gcp.yaml"]
MANIFESTS = sorted(path for path in (CLUSTER / "kuberay").rglob("*.yaml") if path.name != "helm-values.yaml")
RAY = "2.60.0"


def _check(text: str, schemas: Schemas | None = None, ray_version: str = RAY) -> list[Finding]:
    return check_text(text, "the file", ray_version, schemas, lambda config: [])


def _problems(text: str, schemas: Schemas | None = None, ray_version: str = RAY) -> list[str]:
    return [f"{finding.where}: {finding.text}" for finding in _check(text, schemas, ray_version) if not finding.is_note]


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.name)
def test_every_launcher_file_that_is_shipped_passes(path: Path):
    assert _check(path.read_text()) == []


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: str(path.relative_to(CLUSTER)))
def test_every_manifest_that_is_shipped_passes(path: Path, schemas: Schemas):
    assert _check(path.read_text(), schemas) == []


def test_every_disk_on_google_cloud_is_of_a_type_that_its_machine_takes():
    config = yaml.safe_load((CLUSTER / "gcp.yaml").read_text())
    disks = [disk for node_type in config["available_node_types"].values() for disk in node_type["node_config"]["disks"]]
    zone = config["provider"]["availability_zone"]
    assert {disk["initializeParams"]["diskType"] for disk in disks} == {f"zones/{zone}/diskTypes/pd-balanced"}


def test_the_shipped_files_name_the_ray_that_is_installed():
    import ray

    assert ray.__version__ == RAY
    dockerfile = (CLUSTER / "Dockerfile").read_text()
    assert f"ARG RAY_VERSION={RAY}\n" in dockerfile


def test_a_job_that_would_rent_its_machines_again_is_refused(schemas: Schemas):
    text = (CLUSTER / "kuberay/job/rayjob.yaml").read_text().replace("  backoffLimit: 0\n  sub", "  backoffLimit: 3\n  sub")
    _one_problem(_problems(text, schemas), "spec.backoffLimit: 3: each new try rents all machines again")


def test_pods_without_a_machine_or_on_an_unknown_one_are_noted(schemas: Schemas):
    text = (CLUSTER / "kuberay/base/raycluster.yaml").read_text()
    for new, reason in (("x: y", "no machine is named"), ("ray-sassl/machine: c7i.4xlrge", "did you mean 'c7i.4xlarge'")):
        (finding,) = _check(text.replace("ray-sassl/machine: c7i.4xlarge", new), schemas)
        assert finding.is_note
        assert reason in finding.text


def test_the_image_is_pinned_and_not_roots():
    lines = (CLUSTER / "Dockerfile").read_text().splitlines()
    commands = [line for line in lines if line and not line.startswith(("#", " "))]
    assert [line for line in commands if line.startswith("FROM")] == ["FROM rayproject/ray:${RAY_VERSION}-py311-cpu"]
    assert 'ARG WEIGHTS="magenta"' in commands, "the head starts runs, also without a GPU"
    assert [line for line in commands if line.startswith("USER")] == ["USER 1000"]
    assert commands[-1] == "USER 1000"
    assert "ENV RAY_AUTH_MODE=token" in commands


BROKEN_LAUNCHERS: dict[str, tuple[tuple[str, ...], Any, str]] = {
    "min over max": (("decode", "min_workers"), 17, "at most 16 and must be at least 17|at most 16 nodes and must be at least 17"),
    "negative minimum": (("decode", "min_workers"), -1, "decode.min_workers: -1 is negative"),
    "negative maximum": (("train", "max_workers"), -2, "train.max_workers: -2 is negative"),
    "negative idle time": (("train", "idle_timeout_s"), -5, "train.idle_timeout_s: -5 is negative"),
    "group over all": (("decode", "max_workers"), 99, "99 is more than the whole cluster may have"),
    "gpus forgotten": (("train", "resources"), {"CPU": 96}, r"its machines \(p4d.24xlarge\) have GPUs, but its resources list none"),
    "gpus invented": (("decode", "resources"), {"CPU": 16, "GPU": 1}, "1 GPUs are declared, but c7i.4xlarge has none"),
    "an image of Ray's choice": (("decode", "node_config", "ImageId"), None, "ImageId: is missing; Ray's own choice is of 2023"),
    "a group open to everybody": (("head", "node_config", "SecurityGroupIds"), [], "admits SSH from the whole Internet"),
    "no disk": (("train", "node_config", "BlockDeviceMappings"), [], "gives no disk of 100 GB or more"),
    "an old driver": (("train", "labels"), {"ray-sassl/nvidia-driver": "535.183.01"}, "driver is 535.183.01, and torch .* needs 580"),
    "other ray in a group's image": (("decode", "docker"), {"worker_image": "x/ray-sassl:1-ray2.54.0"}, "has Ray 2.54.0, and Ray 2.60.0"),
}


@pytest.mark.parametrize("case", BROKEN_LAUNCHERS)
def test_a_broken_node_group_is_refused_for_its_reason(case: str):
    _one_problem_of_a_group("aws.yaml", *BROKEN_LAUNCHERS[case])


BROKEN_LAUNCHER_TEXTS = {
    "no token mode": ("    - --env RAY_AUTH_MODE=token\n", "", "starts without token authentication", 2),
    "Ray's own setup": (
        "setup_commands: []\nhead_setup",
        "worker_setup_commands: []\nhead_setup",
        "setup_commands: is missing, and Ray",
        1,
    ),
    "no token": ("  /ray-sassl/auth_token: ~/.ray/auth_token\n", "  /a: /b\n", "no token is copied to the nodes", 1),
    "open dashboard": ("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "listen on every interface", 1),
    "open dashboard in quotes": ("--dashboard-host=127.0.0.1", '--dashboard-host="0.0.0.0"', "listen on every interface", 1),
    "open dashboard by IPv6": ("--dashboard-host=127.0.0.1", "--dashboard-host  '[::]'", "listen on every interface", 1),
    "Ray's own start of the head": ("head_start_ray_commands:", "worker_setup_commands:", "is missing, and with Ray's default", 1),
    "latest image": ("ray-sassl:0.1.0-ray2.60.0\n", "ray-sassl:latest\n", "does not say which Ray", 1),
    "untagged image": ("REGISTRY/ray-sassl:0.1.0-ray2.60.0\n", "host:5000/ray\n", "does not say which Ray", 1),
    "ray's image of another version": ("REGISTRY/ray-sassl:0.1.0-ray2.60.0\n", "rayproject/ray:2.9.3-py311\n", "has Ray 2.9.3", 1),
    "no image beside the others": ("  image: REG", "  worker_image: REG", "no node of decode, stylize, train", 1),
    "token by value": (
        "    - --env RAY_AUTH_MODE=token\n",
        "    - --env RAY_AUTH_MODE=token --env RAY_AUTH_TOKEN=abc\n",
        "a secret given by value",
        1,
    ),
    "aws key": ("  ssh_user: ubuntu", "  ssh_user: AKIAIOSFODNN7EXAMPLE", "an AWS access key", 1),
    "negative overall": ("max_workers: 28\n", "max_workers: -1\n", "max_workers: -1 is negative", 1),
}


@pytest.mark.parametrize("case", BROKEN_LAUNCHER_TEXTS)
def test_a_broken_launcher_file_is_refused_for_its_reason(case: str):
    old, new, reason, count = BROKEN_LAUNCHER_TEXTS[case]
    text = (CLUSTER / "aws.yaml").read_text()
    assert old in text
    problems = _problems(text.replace(old, new, 1))
    assert len(problems) == count, problems
    assert all(reason in problem for problem in problems)


def test_minimums_that_add_up_to_more_than_the_cluster_may_have_are_refused():
    text = (
        (CLUSTER / "aws.yaml")
        .read_text()
        .replace("max_workers: 28\n", "max_workers: 20\n")
        .replace("min_workers: 0\n    max_workers: 16", "min_workers: 16\n    max_workers: 16")
        .replace("min_workers: 0\n    max_workers: 8", "min_workers: 8\n    max_workers: 8")
    )
    _one_problem(_problems(text), "at most 20 workers, and the groups' min_workers add up to 24")


def test_a_launcher_file_without_images_must_pin_ray_in_its_commands():
    config = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
    del config["docker"]
    config["head_start_ray_commands"] = ["RAY_AUTH_MODE=token ray start --head"]
    config["worker_start_ray_commands"] = ["RAY_AUTH_MODE=token ray start --address=$RAY_HEAD_IP:6379"]
    _one_problem(_problems(yaml.safe_dump(config)), "no Ray version is given for the nodes")
    config["setup_commands"] = ["pip install 'ray[default]==2.55.1'"]
    _one_problem(_problems(yaml.safe_dump(config)), "Ray 2.55.1 is installed on the nodes, and Ray 2.60.0 here")
    config["setup_commands"] = ["pip install 'ray[default]==2.60.0'"]
    assert _problems(yaml.safe_dump(config)) == []


def test_ports_that_are_open_to_the_internet_are_refused_but_for_ssh():
    config = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
    for everybody in ({"IpRanges": [{"CidrIp": "0.0.0.0/0"}]}, {"Ipv6Ranges": [{"CidrIpv6": "::/0"}]}):
        rules = [{"FromPort": port, "ToPort": port, **everybody} for port in (22, 8265)]
        config["provider"]["security_group"] = {"IpPermissions": rules}
        _one_problem(_problems(yaml.safe_dump(config)), r"IpPermissions\[1\]: ports 8265 to 8265 are open to the whole Internet")


def test_a_group_without_gpus_is_refused_by_its_label_and_noted_by_its_name():
    config = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
    types = config["available_node_types"]
    types["train"] = types["decode"] | {"labels": {"ray-sassl/group": "train"}}
    _one_problem(_problems(yaml.safe_dump(config)), "its label says that it has GPUs, but its resources list none")
    types["train"] = types["constrained-cpu"] = types["decode"]
    (finding,) = _check(yaml.safe_dump(config))
    assert finding.is_note
    assert finding.where == "available_node_types.train.resources"
    assert "its name says that it has GPUs" in finding.text


def test_a_group_of_pods_without_gpus_is_refused_by_its_label_and_noted_by_its_name(schemas: Schemas):
    manifest = yaml.safe_load((CLUSTER / "kuberay/base/raycluster.yaml").read_text())
    groups = manifest["spec"]["workerGroupSpecs"]
    groups[2] = groups[0] | {"groupName": "constrained-cpu"}
    assert _check(yaml.safe_dump(manifest), schemas) == []
    groups[2] = groups[0] | {"groupName": "train"}
    (finding,) = _check(yaml.safe_dump(manifest), schemas)
    assert finding.is_note
    assert "the group's name says that it is for GPUs and asks for none" in finding.text
    groups[2] = groups[0] | {"groupName": "gradients", "labels": {"ray-sassl/group": "stylize"}}
    _one_problem(_problems(yaml.safe_dump(manifest), schemas), "the group is for GPUs and asks for none")


def test_the_path_of_a_file_with_a_token_is_no_secret():
    text = (CLUSTER / "aws.yaml").read_text()
    mode = "    - --env RAY_AUTH_MODE=token\n"
    assert _check(text.replace(mode, f"{mode}    - --env AWS_WEB_IDENTITY_TOKEN_FILE=/var/run/token\n", 1)) == []


def test_a_head_that_takes_work_or_may_vanish_is_a_note():
    config = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
    head = config["available_node_types"]["head"]
    head["resources"] = {"CPU": 8}
    head["node_config"]["InstanceMarketOptions"] = {"MarketType": "spot"}
    findings = _check(yaml.safe_dump(config))
    assert [finding.is_note for finding in findings] == [True, True]
    assert "runs tasks" in findings[0].text
    assert "spot" in findings[1].text


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.name)
def test_a_head_that_nothing_ends_is_noted(path: Path):
    config = yaml.safe_load(path.read_text())
    config["head_start_ray_commands"].pop()
    (finding,) = _check(yaml.safe_dump(config))
    assert finding.is_note
    assert "nothing ends the head, which is paid for until `ray down`" in finding.text


BROKEN_ON_GOOGLE_CLOUD: dict[str, tuple[tuple[str | int, ...], Any, str]] = {
    "no image": (("decode", "node_config", "disks", 0, "initializeParams", "sourceImage"), None, "names no image of the machine"),
    "a small disk": (("decode", "node_config", "disks", 0, "initializeParams", "diskSizeGb"), 50, "no disk of 100 GB or more"),
    "the project's own network": (("head", "node_config", "networkInterfaces"), [], "`default` admits SSH from the whole Internet"),
    "an old driver": (
        ("train", "node_config", "disks", 0, "initializeParams", "sourceImage"),
        "projects/deeplearning-platform-release/global/images/family/common-cu128-ubuntu-2204-nvidia-570",
        r"train.node_config.disks: the machine's NVIDIA driver is 570, and torch in the image needs 580",
    ),
}


@pytest.mark.parametrize("case", BROKEN_ON_GOOGLE_CLOUD)
def test_a_broken_node_group_on_google_cloud_is_refused_for_its_reason(case: str):
    _one_problem_of_a_group("gcp.yaml", *BROKEN_ON_GOOGLE_CLOUD[case])


def test_the_least_driver_is_that_of_the_pinned_torchs_cuda():
    pinned = re.search(r"^torch==(.+)$", (CLUSTER.parent / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned is not None
    assert pinned[1] == version("torch").partition("+")[0]
    cudas = {found[1] for need in requires("torch") or () if (found := re.match(r"cuda-toolkit\[.*\]==(\d+)", need))}
    assert (cudas, MIN_DRIVER) == ({"13"}, 580)


def test_an_unknown_driver_and_a_private_registry_without_a_login_are_noted():
    config = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
    config["docker"]["image"] = "1234.dkr.ecr.us-west-2.amazonaws.com/ray-sassl:0.1.0-ray2.60.0"
    assert _check(yaml.safe_dump(config)) == []
    types = config["available_node_types"]
    del types["train"]["labels"]["ray-sassl/nvidia-driver"]
    types["train"]["initialization_commands"] = ["nvidia-smi"]
    driver, login = _check(yaml.safe_dump(config))
    assert driver.is_note
    assert "nothing says which NVIDIA driver the machine's image has" in driver.text
    assert login.is_note
    assert login.where == "available_node_types.train.initialization_commands"


@pytest.mark.parametrize("path", LAUNCHERS, ids=lambda path: path.name)
def test_spot_machines_whose_notice_nobody_passes_on_are_noted(path: Path):
    config = yaml.safe_load(path.read_text())
    config["worker_start_ray_commands"].pop()
    (finding,) = _check(yaml.safe_dump(config))
    assert finding.is_note
    assert "nothing tells Ray that a machine of decode, stylize will be taken away" in finding.text
    types = config["available_node_types"]
    for group in ("decode", "stylize"):
        types[group] = types["train"]
    assert _check(yaml.safe_dump(config)) == []


Path_ = tuple[str | int, ...]
HEAD, DECODE, STYLIZE = ("spec", "headGroupSpec"), ("spec", "workerGroupSpecs", 0), ("spec", "workerGroupSpecs", 1)
TRAIN = ("spec", "workerGroupSpecs", 2)
CONTAINER = ("template", "spec", "containers", 0)

BROKEN_MANIFESTS: dict[str, tuple[Path_, Any, str]] = {
    "misspelled field": ((*DECODE, "maxReplica"), 3, r"there is no such field \(did you mean 'maxReplicas'\?\)"),
    "misspelled field deep below": ((*DECODE, *CONTAINER, "resorces"), {}, "did you mean 'resources'"),
    "text for a number": ((*DECODE, "minReplicas"), "many", "'many' is not of type 'integer'"),
    "unknown mode": (("spec", "authOptions", "mode"), "tokens", "'tokens' is not one of"),
    "number for a text": ((*HEAD, "rayStartParams", "num-gpus"), 0, "0 is not of type 'string'"),
    "authentication off": (("spec", "authOptions", "mode"), "disabled", "without token authentication whoever reaches the head runs code"),
    "no authentication": (("spec", "authOptions"), {}, "is missing: without token authentication"),
    "min over max": ((*DECODE, "minReplicas"), 17, "at most 16 and must be at least 17"),
    "negative": ((*DECODE, "minReplicas"), -1, "-1 is negative"),
    "replicas out of bounds": ((*DECODE, "replicas"), 20, "20 is not between minReplicas"),
    "other ray": (("spec", "rayVersion"), "2.59.0", "is 2.59.0, and Ray 2.60.0 is installed here"),
    "other ray in an image": ((*DECODE, *CONTAINER, "image"), "rayproject/ray:2.54.0", "has Ray 2.54.0"),
    "no gpu": ((*STYLIZE, *CONTAINER, "resources"), {"limits": {"cpu": 4}}, "the group is for GPUs and asks for none"),
    "gpus that differ": ((*STYLIZE, "rayStartParams"), {"num-gpus": "4"}, "is 4, and the pod has 1 GPUs"),
    "name twice": ((*STYLIZE, "groupName"), "decode", "two groups called 'decode'"),
    "open head": ((*HEAD, "serviceType"), "LoadBalancer", "opens the head to outside"),
    "open head by its own service": (
        (*HEAD, "headService"),
        {"spec": {"type": "LoadBalancer"}},
        "headService.spec.type: LoadBalancer opens",
    ),
    "pods that restart": ((*DECODE, "template", "spec", "restartPolicy"), "Always", "must be Never with autoscaler v2"),
    "old autoscaler": (("spec", "autoscalerOptions", "version"), "v1", "idleTimeoutSeconds: has no effect"),
    "kueue beside autoscaling": (("metadata", "labels", "kueue.x-k8s.io/queue-name"), "q", "admits clusters of a fixed size"),
    "memory over the machine's": (
        (*DECODE, *CONTAINER, "resources", "requests", "memory"),
        "28Gi",
        "28Gi do not fit on c7i.4xlarge, which has 27,381 MiB for all pods; ask for at most 26Gi",
    ),
    "cpus over the machine's": ((*STYLIZE, *CONTAINER, "resources", "requests", "cpu"), "4", r"4 CPUs do not fit on g6.xlarge, .*3\.92"),
    "gpus over the machine's": (
        (*STYLIZE, *CONTAINER, "resources", "limits", "nvidia.com/gpu"),
        "2",
        "2 GPUs are asked for, and g6.xlarge has 1",
    ),
    "no memory": ((*DECODE, *CONTAINER, "resources"), {"requests": {"cpu": "15"}}, "limits.memory: is missing"),
    "small shared memory": (
        (*HEAD, "template", "spec", "volumes", 0, "emptyDir", "sizeLimit"),
        "4Gi",
        r"/dev/shm has 4Gi, and Ray's object store 4\.8Gi.* sizeLimit 6Gi or more",
    ),
    "shared memory on disk": (
        (*HEAD, "template", "spec", "volumes", 0, "emptyDir"),
        {"sizeLimit": "8Gi"},
        "no memory is mounted at /dev/shm",
    ),
    "no shared memory": ((*HEAD, *CONTAINER, "volumeMounts"), [], "no memory is mounted at /dev/shm"),
    "object store larger than shared memory": (
        (*TRAIN, "rayStartParams", "object-store-memory"),
        "100000000000",
        r"/dev/shm has 75Gi, and Ray's object store 93\.1Gi",
    ),
    "no disk": (
        (*DECODE, *CONTAINER, "resources", "requests"),
        {"cpu": "15", "memory": "26Gi"},
        "ephemeral-storage: is missing; .* need 23Gi",
    ),
    "small disk": ((*DECODE, *CONTAINER, "resources", "requests", "ephemeral-storage"), "16Gi", "ephemeral-storage: is 16Gi; .* need 23Gi"),
    "a head that may be moved": (
        (*HEAD, "template", "metadata", "annotations"),
        {"ray-sassl/machine": "m7i.2xlarge"},
        "lacks karpenter.sh/do-not-disrupt",
    ),
    "trainers that may be evicted": (
        (*TRAIN, "template", "metadata", "annotations", "cluster-autoscaler.kubernetes.io/safe-to-evict"),
        "true",
        'lacks cluster-autoscaler.kubernetes.io/safe-to-evict: "false"',
    ),
    "labels of Ray's start": ((*DECODE, "rayStartParams", "labels"), "a=b", "rayStartParams.labels: the operator refuses labels here"),
    "the operator's label": ((*HEAD, "template", "metadata", "labels", "app.kubernetes.io/name"), "mine", "is the operator's own label"),
    "a grace shorter than the drain": (
        (*TRAIN, "template", "spec", "terminationGracePeriodSeconds"),
        45,
        "killed after 45 s, and Ray drains its node for 50 s",
    ),
    "secret by value": (
        (*DECODE, *CONTAINER, "env"),
        [{"name": "AWS_SECRET_ACCESS_KEY", "value": "x"}],
        "AWS_SECRET_ACCESS_KEY is given by value",
    ),
}


@pytest.mark.parametrize("case", BROKEN_MANIFESTS)
def test_a_broken_ray_cluster_is_refused_for_its_reason(case: str, schemas: Schemas):
    path, value, reason = BROKEN_MANIFESTS[case]
    manifest = yaml.safe_load((CLUSTER / "kuberay/base/raycluster.yaml").read_text())
    node: Any = manifest
    for name in path[:-1]:
        node = node[name]
    node[path[-1]] = value
    problems = _problems(yaml.safe_dump(manifest), schemas)
    assert any(_matches(reason, problem) for problem in problems), problems


def test_old_rays_know_no_tokens(schemas: Schemas):
    text = (CLUSTER / "kuberay/base/raycluster.yaml").read_text().replace("2.60.0", "2.51.0")
    _one_problem(_problems(text, schemas, "2.51.0"), "Ray 2.51.0 knows no tokens")


def test_a_token_of_ones_own_will_do(schemas: Schemas):
    manifest = yaml.safe_load((CLUSTER / "kuberay/base/raycluster.yaml").read_text())
    del manifest["spec"]["authOptions"]
    secret = {"secretKeyRef": {"name": "ray", "key": "auth_token"}}
    env = [{"name": "RAY_AUTH_MODE", "value": "token"}, {"name": "RAY_AUTH_TOKEN", "valueFrom": secret}]
    groups = [manifest["spec"]["headGroupSpec"], *manifest["spec"]["workerGroupSpecs"]]
    for group in groups:
        group["template"]["spec"]["containers"][0]["env"] = env
    assert _problems(yaml.safe_dump(manifest), schemas) == []
    groups[2]["template"]["spec"]["containers"][0]["env"] = env[:1]
    _one_problem(_problems(yaml.safe_dump(manifest), schemas), "without token authentication")


def test_a_fixed_group_of_nobody_is_refused(schemas: Schemas):
    manifest = yaml.safe_load((CLUSTER / "kuberay/job/rayjob.yaml").read_text())
    manifest["spec"]["rayClusterSpec"]["workerGroupSpecs"][0] |= {"replicas": 0, "minReplicas": 0}
    _one_problem(_problems(yaml.safe_dump(manifest), schemas), "autoscaling is off, so there will never be such a node")


OTHER_MANIFESTS = {
    "a secret": ("{apiVersion: v1, kind: Secret, metadata: {name: x}, data: {a: b}}", "a Secret in a file is not secret"),
    "an open policy": (
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: x}, spec: {podSelector: {}, ingress: [{}]}}",
        "lets everybody in",
    ),
    "a policy for the Internet": (
        (
            "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: x}, spec: {ingress: [{from: [{ipBlock: {cidr: "
            "0.0.0.0/0}}]}]}}"
        ),
        "lets every address in",
    ),
    "a policy for all namespaces": (
        (
            "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: x}, spec: {ingress: [{from: [{namespaceSelector: {}, "
            "podSelector: {matchLabels: {a: b}}}]}]}}"
        ),
        "lets pods of all namespaces in, and a pod may give itself any label",
    ),
    "a budget that holds nothing": (
        "{apiVersion: policy/v1, kind: PodDisruptionBudget, metadata: {name: x}, spec: {maxUnavailable: 0}}",
        "spec.maxUnavailable: is not allowed for pods that an operator owns",
    ),
    "a load balancer": ("{apiVersion: v1, kind: Service, metadata: {name: x}, spec: {type: LoadBalancer}}", "opens the service"),
    "no name": ("{apiVersion: v1, kind: ServiceAccount}", "metadata.name: is missing"),
    "something else": ("{a: b}", "neither a file for `ray up`"),
    "a list": ("[1]", "is not a mapping of fields but a list"),
    "nothing": ("# empty", "is empty"),
}


@pytest.mark.parametrize("case", OTHER_MANIFESTS)
def test_other_documents_are_refused_for_their_reason(case: str):
    text, reason = OTHER_MANIFESTS[case]
    _one_problem(_problems(text), reason)


def test_findings_say_in_which_document_they_are():
    good = (CLUSTER / "kuberay/base/disruption-budget.yaml").read_text()
    (problem,) = _problems(f"{good}\n---\n{{apiVersion: v1, kind: Secret, metadata: {{name: x}}}}")
    assert problem.startswith("document 2: kind: ")


def test_an_api_version_without_a_schema_is_refused(schemas: Schemas):
    text = (CLUSTER / "kuberay/base/raycluster.yaml").read_text().replace("ray.io/v1", "ray.io/v2")
    _one_problem(_problems(text, schemas), "the CRDs have no RayCluster of ray.io/v2")


def test_without_crds_a_note_says_so():
    findings = _check((CLUSTER / "kuberay/base/raycluster.yaml").read_text())
    assert [finding.is_note for finding in findings] == [True]
    assert "--crds" in findings[0].text


def test_manifests_of_any_shape_are_answered_with_findings(schemas: Schemas):
    for spec in (
        None,
        3,
        [],
        {"headGroupSpec": []},
        {"workerGroupSpecs": [3, {"template": []}], "headGroupSpec": {"template": {"spec": 1}}},
    ):
        text = yaml.safe_dump({"apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": {"name": "x"}, "spec": spec})
        assert _problems(text, schemas)
        assert isinstance(_problems(text), list)


def test_schemas_of_other_operators_are_used_and_a_list_of_crds_is_read(tmp_path: Path):
    spec = {"type": "object", "properties": {"replicas": {"type": "integer"}}}
    schema = {"openAPIV3Schema": {"type": "object", "properties": {"kind": {}, "apiVersion": {}, "metadata": {}, "spec": spec}}}
    crd = {
        "kind": "CustomResourceDefinition",
        "spec": {"group": "x.io", "names": {"kind": "Pool"}, "versions": [{"name": "v1", "schema": schema}]},
    }
    (tmp_path / "all.yaml").write_text(yaml.safe_dump({"kind": "List", "apiVersion": "v1", "items": [crd]}))
    text = "{apiVersion: x.io/v1, kind: Pool, metadata: {name: x}, spec: {replica: 1}}"
    _one_problem(_problems(text, read_schemas(tmp_path)), r"there is no such field \(did you mean 'replicas'\?\)")


def test_a_folder_without_crds_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="not a folder with CustomResourceDefinitions"):
        read_schemas(tmp_path)
    with pytest.raises(UsageError, match="not a folder with CustomResourceDefinitions"):
        read_schemas(tmp_path / "nothing")


def test_strict_schemas_honor_what_structural_schemas_mean():
    schema = strict(
        {
            "type": "object",
            "required": ["a", "b"],
            "properties": {
                "a": {"type": "string"},
                "b": {"type": "integer", "default": 1},
                "c": {"x-kubernetes-int-or-string": True, "anyOf": [{"type": "integer"}, {"type": "string"}]},
                "d": {"type": "object", "x-kubernetes-preserve-unknown-fields": True, "properties": {"e": {"type": "string"}}},
                "f": {"type": "string", "nullable": True},
            },
        }
    )
    import jsonschema

    def is_good(value: dict[str, Any]) -> bool:
        return jsonschema.Draft7Validator(schema).is_valid(value)

    assert is_good({"a": "x"})
    assert is_good({"a": "x", "c": 1, "d": {"anything": 1}, "f": None})
    assert is_good({"a": "x", "c": "50%"})
    assert not is_good({"b": 2})
    assert not is_good({"a": "x", "z": 1})
    assert not is_good({"a": "x", "c": 1.5})


def _one_problem_of_a_group(file: str, place: tuple[Any, ...], value: Any, reason: str) -> None:
    """The file has this problem alone once a group of nodes has the value at the place."""
    config = yaml.safe_load((CLUSTER / file).read_text())
    node = config["available_node_types"]
    for name in place[:-1]:
        node = node[name]
    node[place[-1]] = value
    _one_problem(_problems(yaml.safe_dump(config)), reason)


def _one_problem(problems: list[str], reason: str) -> None:
    assert len(problems) == 1, problems
    assert _matches(reason, problems[0]), problems


def _matches(reason: str, problem: str) -> bool:
    return re.search(reason, problem) is not None


def test_the_rules_of_a_file_are_those_of_its_kinds():
    launcher = rules_of((CLUSTER / "aws.yaml").read_text(), "the file", has_schemas=False)
    cluster = rules_of((CLUSTER / "kuberay/base/raycluster.yaml").read_text(), "the file", has_schemas=True)
    assert "images of private registries: a login before they are pulled" in launcher
    assert "every field against KubeRay's schemas" in cluster
    assert not set(launcher) & set(cluster)
