"""No line of the tree runs what a file from elsewhere says: a linter over the source, and over what it must find."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TREES = ("ray_sassl", "tune_spaces", "benchmarks", "cluster")

FORBIDDEN = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "cloudpickle.load", "cloudpickle.loads", "dill.load", "dill.loads", "joblib.load",
    "marshal.load", "marshal.loads", "shelve.open", "torch.jit.load", "torch.hub.load", "pandas.read_pickle", "pd.read_pickle",
    "ray.data.read_webdataset", "os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput",
    "asyncio.create_subprocess_shell", "shutil.unpack_archive", "yaml.unsafe_load", "yaml.full_load", "yaml.unsafe_load_all",
    "yaml.full_load_all", "ssl._create_unverified_context", "eval", "exec",
}  # fmt: skip
"""Calls that run code, or may, whatever their arguments are."""

EXTRACTING = {"extract", "extractall", "_extract_member"}
"""Methods by which an archive writes to the disk."""

YAML_READERS = {"yaml.load", "yaml.load_all", "yaml.safe_load", "yaml.safe_load_all"}
"""Allowed in `safe_yaml.py` alone, which caps the size."""


def _name(node: ast.expr) -> str:
    """A dotted name such as `torch.load`, or an empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{head}.{node.attr}" if (head := _name(node.value)) else f".{node.attr}"
    return ""


def _is(call: ast.Call, argument: str, value: object) -> bool:
    given = next((keyword.value for keyword in call.keywords if keyword.arg == argument), None)
    return isinstance(given, ast.Constant) and given.value is value


def findings(source: str, file: str) -> Iterator[str]:
    """What the source does that it must not, with the line."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in {"pickle", "cloudpickle", "dill", "marshal", "shelve", "yaml"}:
            taken = {alias.name for alias in node.names} - {"UnpicklingError", "SafeLoader", "CSafeLoader", "YAMLError"}
            if taken:
                yield f"{file}:{node.lineno}: takes {', '.join(sorted(taken))} from {node.module} under another name"
        if isinstance(node, ast.Assign) and any(_name(target).endswith("MAX_IMAGE_PIXELS") for target in node.targets):
            yield f"{file}:{node.lineno}: changes Pillow's limit against image bombs"
        if not isinstance(node, ast.Call):
            continue
        name = _name(node.func)
        where = f"{file}:{node.lineno}: {name}"
        if name in FORBIDDEN:
            yield f"{where} may run code"
        elif name == "torch.load" and not _is(node, "weights_only", True):
            yield f"{where} without weights_only=True"
        elif name in {"np.load", "numpy.load"} and not _is(node, "allow_pickle", False):
            yield f"{where} without allow_pickle=False"
        elif name.endswith("Image.open") and not any(keyword.arg == "formats" for keyword in node.keywords):
            yield f"{where} without formats=, so that any decoder may run"
        elif name in YAML_READERS and not file.endswith("ray_sassl/files/safe_yaml.py"):
            yield f"{where} outside safe_yaml.py, which caps the size"
        elif isinstance(node.func, ast.Attribute) and node.func.attr in EXTRACTING:
            yield f"{where} writes an archive's members to the disk"
        if any(keyword.arg == "shell" and not _is(node, "shell", False) for keyword in node.keywords):
            yield f"{where} goes through a shell"
        if _is(node, "verify", False) or _is(node, "allow_pickle", True) or _is(node, "trust_remote_code", True):
            yield f"{where} switches a guard off"


def _sources() -> list[Path]:
    return [path for tree in TREES for path in sorted((ROOT / tree).rglob("*.py"))]


def test_the_tree_runs_nothing_that_a_file_from_elsewhere_says():
    assert len(_sources()) > 100
    found = [line for path in _sources() for line in findings(path.read_text(), str(path.relative_to(ROOT)))]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle; pickle.loads(data)",
        "from pickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "torch.jit.load(path)",
        "np.load(path)",
        "Image.open(path)",
        "PIL.Image.open(data)",
        "np.load(path, allow_pickle=True)",
        "tarfile.open(path).extractall(folder)",
        "with tarfile.open(path) as tar:\n    tar.extract(name)",
        "zipfile.ZipFile(path).extract(name)",
        "shutil.unpack_archive(path)",
        "subprocess.run(command, shell=True)",
        "subprocess.run(command, shell=flag)",
        "os.system(command)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.safe_load(text)",
        "yaml.unsafe_load(text)",
        "from yaml import load",
        "eval(text)",
        "exec(text)",
        "Image.MAX_IMAGE_PIXELS = None",
        "requests.get(url, verify=False)",
        "ray.data.read_webdataset(path)",
    ],
)
def test_the_linter_finds(line: str):
    assert list(findings(line, "ray_sassl/some.py"))


@pytest.mark.parametrize(
    "line",
    [
        "torch.load(path, weights_only=True)",
        "except_ = pickle.UnpicklingError",
        "subprocess.run([program, argument])",
        "model.eval()",
        "np.load(path, allow_pickle=False)",
        'Image.open(path, formats=["PNG"])',
        "safetensors.torch.load(data)",
    ],
)
def test_the_linter_lets_pass(line: str):
    assert not list(findings(line, "ray_sassl/some.py"))
