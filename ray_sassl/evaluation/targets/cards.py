"""The data sets of the papers' transfer tables, each with its split, metric and terms.

Metrics and splits are those of Kornblith, Shlens and Le 2019 (arXiv 1805.08974, table 1), which SimCLR and BYOL follow, where it has the
data set; the others are reported by top-1 accuracy in papers on transfer, and so does SASSL (arXiv 2312.01187).
"""

from __future__ import annotations

from ray_sassl.evaluation.targets import Card, layouts
from ray_sassl.plugins import did_you_mean
from ray_sassl.process.errors import UsageError

_RESEARCH = "no license stated; for research"

CARDS = (
    Card(
        name="imagenet_1percent",
        title="ImageNet-1 %",
        metric="top1",
        num_classes=1000,
        num_train=12_811,
        num_test=50_000,
        splits="train: the 1 % of SimCLR's published list; test: the validation images of ILSVRC 2012",
        license="ImageNet's terms of access: non-commercial research and education",
        source="https://image-net.org, and 1percent.txt of https://github.com/google-research/simclr/tree/master/imagenet_subsets",
        paper="Russakovsky et al. 2015, arXiv 1409.0575; Chen et al. 2020, arXiv 2002.05709, section 6",
        layout="train/WNID/*.JPEG (those of the list suffice), val/WNID/*.JPEG, 1percent.txt",
        read=layouts.imagenet_1percent,
        by_hand="ImageNet asks for an account and consent to its terms",
    ),
    Card(
        name="inat2021",
        title="iNaturalist 2021",
        metric="top1",
        num_classes=10_000,
        num_train=2_686_843,
        num_test=100_000,
        splits="the challenge's train images, and its validation images to test (the test labels are not public)",
        license="each image its photographer's, most of them non-commercial; for research and education",
        source="https://github.com/visipedia/inat_comp/tree/master/2021",
        paper="Van Horn et al. 2021, arXiv 2103.16483",
        layout="2021_train/CLASS/*.jpg, 2021_valid/CLASS/*.jpg (torchvision's INaturalist)",
        read=layouts.inat2021,
    ),
    Card(
        name="diabetic_retinopathy",
        title="Diabetic Retinopathy",
        metric="top1",
        also=("quadratic_kappa",),
        num_classes=5,
        num_train=35_126,
        num_test=42_670,
        splits="the challenge's train images, and the test images of its private leaderboard",
        license="Kaggle's competition rules; for the challenge and research",
        source="https://www.kaggle.com/c/diabetic-retinopathy-detection/data",
        paper="Kaggle and EyePACS 2015; the challenge's own metric is the quadratic kappa, papers on transfer report top-1",
        layout="train/*.jpeg, trainLabels.csv, test/*.jpeg, retinopathy_solution.csv (Kaggle's files, unpacked)",
        read=layouts.diabetic_retinopathy,
        by_hand="Kaggle asks for an account and consent to the competition's rules",
    ),
    Card(
        name="dtd",
        title="DTD",
        metric="top1",
        num_classes=47,
        num_train=3_760,
        num_test=1_880,
        splits="train and val of the first of the ten splits to train, its test images to test",
        license="for research",
        source="https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        paper="Cimpoi et al. 2014, arXiv 1311.3618",
        layout="dtd/dtd/images/CLASS/*.jpg, dtd/dtd/labels/*1.txt (torchvision's DTD)",
        read=layouts.dtd,
    ),
    Card(
        name="food101",
        title="Food-101",
        metric="top1",
        num_classes=101,
        num_train=75_750,
        num_test=25_250,
        splits="the authors'",
        license="images of foodspotting.com, whose terms hold; for research",
        source="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        paper="Bossard, Guillaumin and Van Gool 2014",
        layout="food-101/images/CLASS/*.jpg, food-101/meta/train.json, test.json (torchvision's Food101)",
        read=layouts.food101,
    ),
    Card(
        name="cifar10",
        title="CIFAR-10",
        metric="top1",
        num_classes=10,
        num_train=50_000,
        num_test=10_000,
        splits="the authors'",
        license=_RESEARCH,
        source="https://www.cs.toronto.edu/~kriz/cifar.html",
        paper="Krizhevsky 2009",
        layout="cifar-10-batches-py/ (torchvision's CIFAR10)",
        read=layouts.cifar10,
    ),
    Card(
        name="cifar100",
        title="CIFAR-100",
        metric="top1",
        num_classes=100,
        num_train=50_000,
        num_test=10_000,
        splits="the authors'; the 100 fine classes",
        license=_RESEARCH,
        source="https://www.cs.toronto.edu/~kriz/cifar.html",
        paper="Krizhevsky 2009",
        layout="cifar-100-python/ (torchvision's CIFAR100)",
        read=layouts.cifar100,
    ),
    Card(
        name="sun397",
        title="SUN397",
        metric="top1",
        num_classes=397,
        num_train=19_850,
        num_test=19_850,
        splits="the first of the authors' ten splits: 50 images of each class to train, 50 to test",
        license=_RESEARCH,
        source="https://vision.princeton.edu/projects/2010/SUN/",
        paper="Xiao et al. 2010",
        layout="SUN397/LETTER/CLASS/*.jpg, SUN397/ClassName.txt (torchvision's SUN397), Partitions/Training_01.txt, Testing_01.txt",
        read=layouts.sun397,
    ),
    Card(
        name="cars",
        title="Stanford Cars",
        metric="top1",
        num_classes=196,
        num_train=8_144,
        num_test=8_041,
        splits="the authors'",
        license="non-commercial research",
        source="https://ai.stanford.edu/~jkrause/cars/car_dataset.html (gone)",
        paper="Krause et al. 2013",
        layout="stanford_cars/cars_train/*.jpg, cars_test/*.jpg, devkit/*.mat, cars_test_annos_withlabels.mat (torchvision's StanfordCars)",
        read=layouts.cars,
        by_hand="the authors' address is gone; copies are on the usual hubs",
    ),
    Card(
        name="caltech101",
        title="Caltech-101",
        metric="mean_per_class",
        num_classes=102,
        num_train=3_060,
        num_test=6_084,
        splits="30 images of each class to train, drawn here with a fixed seed since no list is published, all others to test; "
        "the background is a class",
        license="CC BY 4.0",
        source="https://data.caltech.edu/records/mzrjq-6wc02",
        paper="Fei-Fei, Fergus and Perona 2004",
        layout="caltech101/101_ObjectCategories/CLASS/*.jpg, caltech101/Annotations/ (torchvision's Caltech101)",
        read=layouts.caltech101,
    ),
    Card(
        name="flowers102",
        title="Flowers-102",
        metric="mean_per_class",
        num_classes=102,
        num_train=2_040,
        num_test=6_149,
        splits="the authors' train and validation images to train, their test images to test",
        license=_RESEARCH,
        source="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        paper="Nilsback and Zisserman 2008",
        layout="flowers-102/jpg/*.jpg, imagelabels.mat, setid.mat (torchvision's Flowers102)",
        read=layouts.flowers102,
    ),
)

_BY_NAME = {card.name: card for card in CARDS}


def find_card(name: str) -> Card | None:
    """The card of that name, if there is one."""
    return _BY_NAME.get(name)


def card_of(name: str) -> Card:
    """The card of that name.

    Raises:
        UsageError: there is none; the message lists all names, and the nearest.
    """
    if name not in _BY_NAME:
        raise UsageError(f"there is no card {name!r}{did_you_mean(name, _BY_NAME)}. Known: {', '.join(_BY_NAME)}.")
    return _BY_NAME[name]
