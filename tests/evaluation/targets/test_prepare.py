import hashlib
import io
import json
import shutil
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torchvision.datasets as tv
from PIL import Image

from ray_sassl.data import DataConfig
from ray_sassl.data.inspect import inspect
from ray_sassl.data.reading import all_labels, all_names, build_index
from ray_sassl.evaluation.targets import prepare as module
from ray_sassl.evaluation.targets.cards import CARDS, card_of, find_card
from ray_sassl.evaluation.targets.prepare import check_card, fetch, how_to_get, is_prepared, prepare, prepared_cards, prepared_data
from ray_sassl.process.errors import UsageError
from tests.evaluation.targets.conftest import Written, dtd, image_bytes


def _labels(data: DataConfig) -> dict[str, int]:
    index = build_index(data)
    names = all_names(index)
    assert names is not None
    return dict(zip(names, all_labels(index).tolist(), strict=True))


def test_every_data_set_becomes_parquet_that_is_read_as_any_other(written: Written, tmp_path: Path):
    seen = []
    done = prepare(written.card, written.folder, str(tmp_path / "root"), advance=seen.append)
    assert done.num_images == sum(seen) == written.card.num_train + written.card.num_test
    assert (done.num_converted, done.num_unreadable) == (0, 0)
    train, test = prepared_data(written.card, str(tmp_path / "root"))
    for half, data, expected in (("train", train, written.train), ("test", test, written.test)):
        index = build_index(data)
        check_card(written.card, half, all_labels(index))
        assert not inspect(index).bad_rows
        if expected:
            assert _labels(data) == expected


def test_a_data_set_appears_only_when_it_is_complete(food: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = str(tmp_path / "root")
    (food.folder / "food-101" / "images" / "waffles" / "15.jpg").unlink()
    with pytest.raises(UsageError, match=r"an image is missing or cannot be read: .*15\.jpg"):
        prepare(food.card, food.folder, root)
    assert not is_prepared(food.card, root)
    assert prepared_cards(root) == []
    with pytest.raises(UsageError, match=r"Food-101 is not in .*root\. Get it with: ray-sassl data fetch food101"):
        prepared_data(food.card, root)


def test_a_description_is_written_next_to_the_data_set(food: Written, tmp_path: Path):
    done = prepare(food.card, food.folder, str(tmp_path))
    facts = json.loads((Path(done.path) / "card.json").read_text())
    assert facts["class_names"] == ["apple_pie", "waffles"]
    assert facts["license"] == food.card.license
    assert [card.name for card in prepared_cards(str(tmp_path))] == ["food101"]


def test_images_of_other_formats_become_png_and_what_is_none_is_kept_and_counted(food: Written, tmp_path: Path):
    folder = food.folder / "food-101" / "images" / "waffles"
    (folder / "15.jpg").write_bytes(image_bytes(3, "GIF"))
    (folder / "14.jpg").write_bytes(b"no image")
    done = prepare(food.card, food.folder, str(tmp_path))
    assert (done.num_converted, done.num_unreadable) == (1, 1)
    table = pq.read_table(tmp_path / "food101" / "test").to_pylist()
    content = {row["key"]: row["image"] for row in table}
    assert content["14.jpg"] == b"no image"
    gif = Image.open(io.BytesIO(image_bytes(3, "GIF"))).convert("RGB")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(content["15.jpg"]))), np.asarray(gif))


def test_large_splits_are_several_shards(food: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "_SHARD_ROWS", 4)
    prepare(food.card, food.folder, str(tmp_path))
    assert [pq.read_metadata(path).num_rows for path in sorted((tmp_path / "food101" / "train").iterdir())] == [4, 2]
    assert _labels(prepared_data(food.card, str(tmp_path))[0]) == food.train


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_train": 7}, r"Food-101 has 7 train images \(the authors'\), and 6 were found"),
        ({"num_test": 3}, "Food-101 has 3 test images .* and 4 were found"),
        ({"num_classes": 3}, "Food-101 has 3 classes, and these files have 2"),
    ],
)
def test_a_data_set_of_another_size_than_its_card_says_is_refused(food: Written, tmp_path: Path, change: dict, message: str):
    with pytest.raises(UsageError, match=message):
        prepare(replace(food.card, **change), food.folder, str(tmp_path))
    assert not (tmp_path / "food101").exists()


def test_labels_out_of_range_and_classes_without_images_are_named():
    card = replace(card_of("dtd"), num_classes=4, num_train=4, num_test=4)
    with pytest.raises(UsageError, match="DTD has the labels 0 to 3, and train has -1, 7"):
        check_card(card, "train", np.array([0, 7, -1, 2]))
    with pytest.raises(UsageError, match="DTD: no test images of class 1, 3"):
        check_card(card, "test", np.array([0, 2, 2, 2]))
    check_card(card, "test", np.array([3, 2, 1, 0]))


def test_missing_files_are_answered_with_the_layout(tmp_path: Path):
    for card in CARDS:
        with pytest.raises(UsageError) as caught:
            prepare(card, tmp_path / "nothing", str(tmp_path / "root"))
        assert str(tmp_path / "nothing") in str(caught.value) or card.layout in str(caught.value)


def test_a_download_is_prepared_and_its_files_are_deleted(food: Written, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_SASSL_CACHE", str(tmp_path / "cache"))
    asked = []

    def read(folder, half, download):
        asked.append(download)
        if not (folder / "food-101").exists():  # as torchvision does, which unpacks what it has checked
            shutil.copytree(food.folder, folder, dirs_exist_ok=True)
        return food.card.read(folder, half, False)

    card = replace(food.card, read=read)
    fetch(card, str(tmp_path / "root"), keep_files=True)
    assert (tmp_path / "cache" / "downloads" / "food101" / "food-101").exists()
    fetch(card, str(tmp_path / "root"))
    assert asked == [True] * 4
    assert not (tmp_path / "cache" / "downloads" / "food101").exists()
    assert is_prepared(card, str(tmp_path / "root"))


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """DTD's archive, small, on a server of this machine, where torchvision looks for it; its md5 is the published one."""
    (tmp_path / "archive").mkdir()
    dtd(tmp_path / "archive", monkeypatch)
    archive = tmp_path / "served" / "dtd-r1.0.1.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "archive" / "dtd" / "dtd", "dtd")
    handler = partial(QuietHandler, directory=str(archive.parent))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(tv.DTD, "_URL", f"http://127.0.0.1:{server.server_port}/{archive.name}")
        monkeypatch.setattr(tv.DTD, "_MD5", hashlib.md5(archive.read_bytes()).hexdigest())
        monkeypatch.setenv("RAY_SASSL_CACHE", str(tmp_path / "cache"))
        yield archive
        server.shutdown()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def test_torchvision_downloads_checks_and_unpacks(published: Path, tmp_path: Path):
    card = replace(card_of("dtd"), num_classes=2, num_train=4, num_test=2)
    fetch(card, str(tmp_path / "root"))
    assert sorted(_labels(prepared_data(card, str(tmp_path / "root"))[0]).values()) == [0, 0, 1, 1]
    assert not (tmp_path / "cache" / "downloads" / "dtd").exists()


def test_a_download_whose_checksum_is_wrong_is_refused_and_may_be_tried_again(published: Path, tmp_path: Path):
    content = published.read_bytes()
    published.write_bytes(content[:-8])
    card = replace(card_of("dtd"), num_classes=2, num_train=4, num_test=2)
    with pytest.raises(UsageError, match="DTD cannot be downloaded: File not found or corrupted"):
        fetch(card, str(tmp_path / "root"))
    assert not is_prepared(card, str(tmp_path / "root"))
    published.write_bytes(content)
    fetch(card, str(tmp_path / "root"))
    assert is_prepared(card, str(tmp_path / "root"))


def test_what_may_not_be_downloaded_says_how_to_get_it(tmp_path: Path):
    by_hand = [card for card in CARDS if card.by_hand]
    assert {card.name for card in by_hand} == {"imagenet_1percent", "diabetic_retinopathy", "cars"}
    for card in by_hand:
        with pytest.raises(UsageError, match=f"cannot be downloaded here: .*ray-sassl data fetch {card.name} --from FOLDER"):
            fetch(card, str(tmp_path))
    assert how_to_get(card_of("dtd")) == "Get it with: ray-sassl data fetch dtd"


def test_cards_are_found_by_name():
    assert len({card.name for card in CARDS}) == len(CARDS) == 11
    assert find_card("mine") is None
    with pytest.raises(UsageError, match=r"no card 'cifar' \(did you mean 'cifar10'\?\)\. Known: imagenet_1percent, .*flowers102"):
        card_of("cifar")
