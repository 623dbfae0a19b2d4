"""What people see while the Hugging Face hub does not answer."""

from __future__ import annotations

import logging

import pytest

from ray_sassl.files.hub_client import fetching


def test_a_hub_that_does_not_answer_is_told_once_and_its_client_has_its_own_words_back_afterward(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
):
    pytest.importorskip("huggingface_hub.utils.logging")
    library, client = logging.getLogger("huggingface_hub"), logging.getLogger("huggingface_hub.utils._http")
    before = library.handlers, library.propagate
    assert before[0], "the client prints its warnings by itself"
    with fetching("timm:resnet18"):
        client.warning("You send requests without a token.")
        for number in range(1, 6):
            client.warning("No name thrown while requesting HEAD x")
            client.warning("Retrying in 1s [Retry %d/5].", number)
    assert [record.getMessage() for record in caplog.records] == [
        "You send requests without a token.",
        "Fetching timm:resnet18: the hub does not answer, which is tried again for up to a minute. No name thrown while requesting HEAD x",
    ]
    assert capfd.readouterr().err == ""
    assert (library.handlers, library.propagate) == before
