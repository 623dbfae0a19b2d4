import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from ray_sassl.files import safetensors_header
from ray_sassl.files.safetensors_header import read_header
from ray_sassl.process.errors import UsageError

CONTENT = save({"codes": np.arange(6, dtype=np.float32).reshape(2, 3)}, {"format": "mine"})


def _file(header: object) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text


def test_a_header_lists_the_tensors_the_metadata_and_where_the_bytes_begin():
    header = read_header(CONTENT, "styles")
    assert header.metadata == {"format": "mine"}
    assert header.entries["codes"]["shape"] == [2, 3]
    assert np.frombuffer(CONTENT[header.end :], np.float32).tolist() == [0, 1, 2, 3, 4, 5]


def test_the_beginning_of_a_file_is_enough():
    header = read_header(CONTENT, "styles")
    assert read_header(CONTENT[: header.end], "styles") == header


def test_a_file_without_metadata_has_none():
    assert read_header(save({"x": np.zeros(1)}), "x").metadata == {}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x01",
        b"something else",
        CONTENT[:40],
        (1 << 63).to_bytes(8, "little") + b"{}",
        _file(b"not json"),
        _file(b"\xff\xfe"),
        _file(b"[" * 10_000),
        _file([1]),
        _file({"__metadata__": "text"}),
        _file({"__metadata__": {"format": 1}}),
    ],
)
def test_what_is_not_a_safetensors_file_is_refused_by_name(content):
    with pytest.raises(UsageError, match=r"styles\.safetensors is damaged"):
        read_header(content, "styles.safetensors")


def test_a_huge_header_is_refused_before_it_is_parsed(monkeypatch):
    monkeypatch.setattr(safetensors_header, "MAX_BYTES", 20)
    with pytest.raises(UsageError, match="is damaged, or is not a safetensors file"):
        read_header(CONTENT, "styles")


def test_no_other_module_takes_a_header_apart_by_hand():
    package = Path(safetensors_header.__file__).parents[1]
    readers = [path.name for path in package.rglob("*.py") if 'from_bytes(content[:8], "little")' in path.read_text()]
    assert readers == ["safetensors_header.py"]
