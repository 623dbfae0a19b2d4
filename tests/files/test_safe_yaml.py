import pytest

from ray_sassl.files.safe_yaml import load_document, load_documents
from ray_sassl.process.errors import UsageError


def test_documents_come_out_as_plain_values():
    assert load_documents("a: [1, x]\n---\nb: {c: null}\n---\n", "it") == [{"a": [1, "x"]}, {"b": {"c": None}}]
    assert load_document("a: &x {b: 1}\nc: *x", "it") == {"a": {"b": 1}, "c": {"b": 1}}
    assert load_document("", "it") is None


@pytest.mark.parametrize("text", ["!!python/object/apply:os.system ['true']", "!!python/name:os.system", "a: !!python/tuple [1]"])
def test_a_tag_that_would_make_an_object_is_refused(text: str):
    with pytest.raises(UsageError, match="config is not valid YAML"):
        load_document(text, "config")


def test_a_text_over_the_cap_is_refused_before_it_is_parsed():
    with pytest.raises(UsageError, match="at most 100 bytes"):
        load_document("[" * 101, "config", max_bytes=100)
    with pytest.raises(UsageError, match="at most 100 bytes"):
        load_document("ä" * 60, "config", max_bytes=100)


def test_a_few_lines_of_aliases_cannot_stand_for_a_billion_values():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    with pytest.raises(UsageError, match="expands to more than"):
        load_document("\n".join(lines), "config")
    with pytest.raises(UsageError, match="or contains itself"):
        load_document("&a [*a]", "config")


def test_nesting_ends_in_a_message_and_not_in_a_crash():
    assert load_document("[" * 100 + "]" * 100, "config") is not None
    for depth in (101, 400_000):
        with pytest.raises(UsageError, match="more than 100 deep"):
            load_document("[" * depth + "]" * depth, "config")


def test_a_duplicate_key_is_refused():
    with pytest.raises(UsageError, match="'max' is there twice"):
        load_document("min: 1\nmax: 2\nmax: 3", "config")
    with pytest.raises(UsageError, match="a key is a list or a mapping"):
        load_document("{[1, 2]: 3}", "config")


def test_several_documents_instead_of_one_are_refused():
    with pytest.raises(UsageError, match="2 YAML documents"):
        load_document("a: 1\n---\nb: 2", "config")


def test_010_is_refused_in_our_own_documents_and_octal_in_those_of_kubernetes():
    with pytest.raises(UsageError, match="the number 010 begins with 0, as octal numbers do; write 10"):
        load_document("epochs: 010", "config")
    assert load_documents("defaultMode: 0644", "manifest") == [{"defaultMode": 0o644}]
    assert load_document("[0, 0x10, 0.10, '010', a010]", "config") == [0, 16, 0.1, "010", "a010"]
