"""Labelled pictures by name: drawn ones, real digits, IDX files, the Hub's sets, sprites and captioned folders."""

import gzip
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fedgen_lab.pictures import drawn
from fedgen_lab.pictures.domains import OFFLINE, SPRITES, load_domain

SETS = Path(__file__).parents[3] / "shared" / "data"
DRAWN = tuple(drawn.KINDS)


def needs(name):
    return pytest.mark.skipif(not (SETS / name).exists(), reason=f"../shared/data/{name} is absent")


def as_rows(domain):
    return {picture.numpy().tobytes() for picture in domain.images}


def write_idx(path, array, zipped=False):
    content = (
        bytes((0, 0, 8, array.ndim))
        + np.array(array.shape, ">u4").tobytes()
        + array.astype(np.uint8).tobytes()
    )
    path.write_bytes(gzip.compress(content) if zipped else content)


@pytest.fixture
def idx_folder(tmp_path):
    rng = np.random.default_rng(0)
    for part, number in (("train", 40), ("t10k", 20)):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte", rng.integers(0, 256, (number, 28, 28)))
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte.gz", np.arange(number) % 10, zipped=True)
    return tmp_path


# -- what every domain keeps to --------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [*OFFLINE, "sprites:glowing"])
def test_a_domain_has_the_pictures_asked_for_and_ten_named_labels(name):
    domain = load_domain(name, number=60, side=14, seed=3)
    assert (
        tuple(domain.images.shape) == (60, 3 if ":" in name else 1, 14, 14)
        and domain.images.dtype == torch.uint8
    )
    assert domain.name == name and len(domain) == 60 and len(set(domain.label_names)) == 10
    assert domain.labels.dtype == torch.int64 and set(domain.labels.tolist()) == set(range(10))
    pictures = domain.as_tensor()
    assert (
        pictures.dtype == torch.float32
        and -1 <= pictures.min() < -0.5
        and 0.5 < pictures.max() <= 1
    )


@pytest.mark.parametrize("name", [*OFFLINE, "sprites:glowing"])
def test_the_seed_decides_every_pixel(name):
    first, again, other = (load_domain(name, number=30, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.images, again.images) and torch.equal(first.labels, again.labels)
    assert not torch.equal(first.images, other.images)


@pytest.mark.parametrize("name", [*OFFLINE, "sprites:glowing"])
def test_no_held_out_picture_is_in_the_training_part_whatever_the_seeds(name):
    number = {"digits": None, "sprites:glowing": 60}.get(name, 200)
    train = as_rows(load_domain(name, number, seed=1)) | as_rows(load_domain(name, number, seed=2))
    assert not train & as_rows(load_domain(name, number, seed=2, held_out=True))


def test_the_real_digits_are_all_there_in_two_parts():
    parts = [load_domain("digits", held_out=held_out) for held_out in (False, True)]
    assert [len(part) for part in parts] == [1438, 359]
    assert all(part.labels.bincount().min() > 0.09 * len(part) for part in parts)


def test_pictures_made_smaller_are_averaged_and_made_larger_stay_in_range():
    domain = load_domain("runes", number=10)
    blocks = domain.images.float().reshape(10, 1, 14, 2, 14, 2).mean((3, 5)).round()
    assert torch.equal(domain.resized(14).images.float(), blocks)
    assert domain.resized(28) is domain and tuple(domain.resized(32).images.shape) == (
        10,
        1,
        32,
        32,
    )
    with pytest.raises(ValueError, match="side must be a whole number"):
        domain.resized(0)


def test_take_keeps_pictures_and_labels_together():
    domain = load_domain("garments", number=20)
    part = domain.take([5, 2])
    assert torch.equal(part.images, domain.images[[5, 2]]) and torch.equal(
        part.labels, domain.labels[[5, 2]]
    )
    assert len(domain.take([])) == 0


@pytest.mark.parametrize("name", ["runez", "", "idx:", "mnist", "hub:", "folder:", "ftp:x"])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(
        ValueError, match="digits, letters, garments, runes, .*idx:FOLDER.*folder:PATH#COLUMN"
    ):
        load_domain(name)


@pytest.mark.parametrize("number", [0, -1, 2.5, True], ids=str)
def test_a_number_of_pictures_that_is_none_is_refused(number):
    with pytest.raises(ValueError, match="number must be a whole number"):
        load_domain("letters", number)


def test_more_pictures_than_there_are_is_an_error_that_says_how_many_there_are():
    with pytest.raises(ValueError, match="'digits' has 1,438 pictures in its training part; 5,000"):
        load_domain("digits", 5_000)


# -- drawn ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", DRAWN)
def test_the_first_of_many_drawn_pictures_are_those_of_few(name):
    few, many = (load_domain(name, number, seed=4) for number in (12, 40))
    assert torch.equal(few.images, many.images[:12]) and torch.equal(few.labels, many.labels[:12])


@pytest.mark.parametrize("name", DRAWN)
def test_drawn_pictures_are_light_on_black_inside_the_frame_and_never_twice_the_same(name):
    domain = load_domain(name, 300)
    images = domain.images
    rim = torch.cat([images[:, :, [0, -1]].flatten(), images[:, :, :, [0, -1]].flatten()])
    assert (rim == 0).float().mean() > 0.95 and images.flatten(1).max(1).values.min() > 100
    assert len(as_rows(domain)) == 300


@pytest.mark.parametrize("name", DRAWN)
def test_a_small_network_tells_the_ten_kinds_of_a_drawn_domain_apart_at_both_sizes(name):
    train, test = load_domain(name, 400), load_domain(name, 200, seed=1, held_out=True)
    for side in (14, 28):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            net = nn.Sequential(
                nn.Conv2d(1, 12, 3, side // 14, 1),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Conv2d(12, 24, 3, 1, 1),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Flatten(),
                nn.Linear(216, 10),
            )
        adam, order = torch.optim.Adam(net.parameters(), 5e-3), torch.Generator().manual_seed(0)
        pictures = train.resized(side).as_tensor()
        for _ in range(6):
            for rows in torch.randperm(len(train), generator=order).split(20):
                adam.zero_grad()
                nn.functional.cross_entropy(net(pictures[rows]), train.labels[rows]).backward()
                adam.step()
        assert (
            net(test.resized(side).as_tensor()).argmax(1) == test.labels
        ).float().mean() > 0.8  # chance: 0.1


def test_the_four_offline_domains_are_told_apart_by_their_mean_pictures_alone():
    means = torch.stack(
        [load_domain(name, 200).as_tensor().mean((0, 1)) for name in OFFLINE]
    )  # (4, 28, 28)
    others = torch.stack(
        [load_domain(name, 200, held_out=True).as_tensor().mean((0, 1)) for name in OFFLINE]
    )
    assert torch.cdist(others.flatten(1), means.flatten(1)).argmin(1).tolist() == [0, 1, 2, 3]


# -- IDX files -----------------------------------------------------------------------------------------------------
def test_idx_files_are_read_plain_and_gzipped(idx_folder):
    train, test = (
        load_domain(f"idx:{idx_folder}", held_out=held_out) for held_out in (False, True)
    )
    assert (len(train), len(test)) == (40, 20) and train.label_names == tuple("0123456789")
    assert not as_rows(train) & as_rows(test)
    assert load_domain(f"fashion:{idx_folder}").label_names[9] == "ankle boot"


@pytest.mark.parametrize("present", ["train", "t10k"])
def test_a_set_in_one_part_is_divided_four_to_one_within_each_label(idx_folder, present):
    for file in idx_folder.iterdir():
        if not file.name.startswith(present):
            file.unlink()
    number = {"train": 40, "t10k": 20}[present]
    train, test = (
        load_domain(f"idx:{idx_folder}", held_out=held_out, seed=held_out)
        for held_out in (False, True)
    )
    assert len(train) + len(test) == len(as_rows(train) | as_rows(test)) == number
    assert abs(len(test) - number / 5) <= 10 and set(train.labels.tolist()) == set(range(10))


def broken(folder, how):
    images = folder / "train-images-idx3-ubyte"
    content = images.read_bytes()
    if how == "cut short":
        images.write_bytes(content[:-100])
    elif how == "cut in the header":
        images.write_bytes(content[:10])
    elif how == "empty":
        images.write_bytes(b"")
    elif how == "too long":
        images.write_bytes(content + b"0")
    elif how == "gzip cut short":
        images.write_bytes(gzip.compress(content)[:-500])
    elif how == "gzip damaged":
        packed = bytearray(gzip.compress(content))
        packed[200:300] = bytes(100)
        images.write_bytes(packed)
    elif how == "labels in its place":
        write_idx(images, np.zeros(40))
    elif how == "absurd header":
        images.write_bytes(content[:4] + b"\xff" * 12 + content[16:])


@pytest.mark.parametrize(
    "how",
    [
        "cut short",
        "cut in the header",
        "empty",
        "too long",
        "gzip cut short",
        "gzip damaged",
        "labels in its place",
        "absurd header",
    ],
)
def test_a_broken_idx_file_is_named(idx_folder, how):
    broken(idx_folder, how)
    with pytest.raises(ValueError, match="train-images-idx3-ubyte.*Download it again"):
        load_domain(f"idx:{idx_folder}")


def test_pictures_and_labels_of_different_sets_are_refused(idx_folder):
    write_idx(idx_folder / "train-labels-idx1-ubyte.gz", np.arange(39) % 10)
    with pytest.raises(ValueError, match="40 pictures but 39 labels"):
        load_domain(f"idx:{idx_folder}")


def test_a_set_that_has_not_ten_labels_is_refused(idx_folder):
    write_idx(idx_folder / "train-labels-idx1-ubyte.gz", np.arange(40) % 9)
    with pytest.raises(ValueError, match="must have 10 labels.* has 9"):
        load_domain(f"idx:{idx_folder}")
    write_idx(idx_folder / "train-labels-idx1-ubyte.gz", np.arange(40) % 10 + 1)
    with pytest.raises(ValueError, match="labels must lie in 0..9.*1 to 10"):
        load_domain(f"idx:{idx_folder}")


def test_an_absent_folder_or_file_says_what_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder at"):
        load_domain(f"idx:{tmp_path / 'nowhere'}")
    (tmp_path / "notes.txt").write_text("nothing", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match="train-images-idx3-ubyte.gz; found notes.txt"):
        load_domain(f"idx:{tmp_path}")


@needs("mnist")
def test_mnist_is_read_whole():
    domain = load_domain(f"mnist:{SETS / 'mnist'}", held_out=True)
    assert tuple(domain.images.shape) == (10_000, 1, 28, 28)
    assert domain.labels.bincount().tolist() == [
        980,
        1135,
        1032,
        1010,
        982,
        892,
        958,
        1028,
        974,
        1009,
    ]


@needs("fashion-mnist")
def test_fashion_mnist_has_a_thousand_held_out_pictures_of_each_kind():
    domain = load_domain(f"fashion:{SETS / 'fashion-mnist'}", held_out=True)
    assert domain.labels.bincount().tolist() == [1000] * 10 and domain.label_names[8] == "bag"


@needs("notmnist")
def test_notmnist_comes_in_one_part_and_is_divided():
    sizes = [
        len(load_domain(f"notmnist:{SETS / 'notmnist'}", held_out=held_out))
        for held_out in (False, True)
    ]
    assert sizes == [8_000, 2_000]


# -- colour, folders, the Hub ------------------------------------------------------------------------------------------
def test_sprites_of_a_style_are_labelled_by_their_object():
    domain = load_domain("sprites:solid", number=50, side=32)
    assert domain.label_names == SPRITES and domain.labels.bincount().tolist() == [5] * 10
    with pytest.raises(ValueError, match="style 'marbled'"):
        load_domain("sprites:marbled")


@pytest.fixture
def captioned(tmp_path):
    rng, rows = np.random.default_rng(0), ["file_name,text,kind"]
    for number in range(60):
        kind = f"kind {number % 12:02d}" if number < 56 else ""
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(
            tmp_path / f"{number}.png"
        )
        rows.append(f"{number}.png,picture {number},{kind}")
    (tmp_path / "metadata.csv").write_text("\n".join(rows), encoding="utf-8")
    return tmp_path


def test_a_captioned_folder_is_labelled_by_the_ten_most_frequent_values_of_a_column(captioned):
    parts = [
        load_domain(f"folder:{captioned}#kind", side=32, held_out=held_out)
        for held_out in (False, True)
    ]
    assert [len(part) for part in parts] == [38, 10] and parts[0].label_names[:2] == (
        "kind 00",
        "kind 01",
    )
    assert tuple(parts[0].images.shape[1:]) == (3, 32, 32) and not as_rows(parts[0]) & as_rows(
        parts[1]
    )


@pytest.mark.parametrize(
    "end, message",
    [
        ("", "must read folder:PATH#COLUMN"),
        ("#kinds", "no column 'kinds'; they have 'file_name', 'kind'"),
        ("#kind&size=3", "must read folder:PATH#COLUMN"),
    ],
    ids=["no column", "unknown column", "unknown option"],
)
def test_a_folder_named_wrongly_says_how_to_name_it(captioned, end, message):
    with pytest.raises(ValueError, match=message):
        load_domain(f"folder:{captioned}{end}")


@needs("openmoji")
def test_emoji_become_a_domain_through_the_columns_of_their_own_table():
    columns = "caption_file=captions.csv&file_column=file&text_column=caption"
    path = SETS / "openmoji" / "openmoji-72-plain.zip"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        domain = load_domain(f"folder:{path}#openmoji_group&{columns}", side=32)
    assert len(domain) > 200 and len(domain.label_names) == 10


def test_a_hub_set_gives_the_pictures_that_its_idx_files_give(
    idx_folder, tmp_path_factory, monkeypatch
):
    import datasets

    from fedgen_lab.pictures.idx import read_part

    home = tmp_path_factory.mktemp("hub")
    monkeypatch.setattr(
        datasets.config, "HF_DATASETS_CACHE", Path(tmp_path_factory.mktemp("cache"))
    )
    features = datasets.Features(
        image=datasets.Image(), label=datasets.ClassLabel(names=list("0123456789"))
    )
    for split, held_out in (("train", False), ("test", True)):
        images, labels = read_part(idx_folder, held_out)
        rows = {
            "image": [Image.fromarray(image[0].numpy()) for image in images],
            "label": labels.tolist(),
        }
        datasets.Dataset.from_dict(rows, features=features).to_parquet(
            home / f"{split}-00000-of-00001.parquet"
        )
    for held_out in (False, True):
        ours = load_domain(f"idx:{idx_folder}", side=14, held_out=held_out)
        theirs = load_domain(f"hub:{home}", side=14, held_out=held_out)
        assert torch.equal(ours.images, theirs.images) and torch.equal(ours.labels, theirs.labels)
    with pytest.raises(ValueError, match="one of class numbers; its columns are image, label"):
        load_domain(f"hub:{home}#image")


def test_a_hub_set_that_cannot_be_fetched_names_the_domains_that_need_no_network(tmp_path):
    with pytest.raises(ConnectionError, match="no/such/set.*digits, letters, garments, runes"):
        load_domain(f"hub:{tmp_path / 'no' / 'such' / 'set'}")
