"""A learner's own pictures: whatever lies in the folder, what is usable comes in and what is not is named."""

import io
import json
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedgen_lab.pictures.folders import read_folder
from fedgen_lab.pictures.hub import from_hub
from fedgen_lab.pictures.squares import FORMATS, square


def png(width=40, height=40, colour=(200, 30, 30), mode="RGB", **more):
    return encoded(Image.new(mode, (width, height), colour), **more)


def encoded(image, format="PNG", **more):
    file = io.BytesIO()
    image.save(file, format=format, **more)
    return file.getvalue()


def fill(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def zipped(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


CAT_AND_DOG = {
    "metadata.csv": "file_name,text,animal\ncat.png,a cat,cat\ndog.png,a dog,dog\n",
    "cat.png": png(),
    "dog.png": png(colour=(0, 0, 250)),
}


def read_quietly(*args, **more):
    """Fails on any warning: nothing was skipped."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_folder(*args, **more)


# -- captions
def test_metadata_csv_is_found_by_itself(tmp_path):
    pictures = read_quietly(fill(tmp_path, CAT_AND_DOG))
    assert pictures.captions == ["a cat", "a dog"]
    assert tuple(pictures.images.shape) == (2, 3, 32, 32)
    assert pictures.images[0].flatten(1).T.unique(dim=0).tolist() == [[200, 30, 30]]
    assert pictures.attributes["animal"].tolist() == ["cat", "dog"]
    assert pictures.attributes.attrs["skipped"] == []


def test_metadata_jsonl_is_found_by_itself(tmp_path):
    lines = [{"file_name": "cat.png", "text": "a cat", "legs": 4, "tags": ["a", "b"]}]
    files = {"metadata.jsonl": "\n".join(map(json.dumps, lines)), "cat.png": png()}
    pictures = read_quietly(fill(tmp_path, files))
    assert pictures.captions == ["a cat"] and pictures.attributes["legs"].tolist() == [4]
    assert pictures.attributes["tags"].tolist() == [
        '["a", "b"]'
    ]  # a value that can be counted and compared


def test_a_zip_gives_the_same_as_its_folder(tmp_path):
    folder = read_quietly(fill(tmp_path / "folder", CAT_AND_DOG))
    archive = read_quietly(zipped(tmp_path / "pets.zip", CAT_AND_DOG))
    wrapped = read_quietly(
        zipped(tmp_path / "more.zip", {f"pets/{name}": c for name, c in CAT_AND_DOG.items()})
    )
    for other in (archive, wrapped):
        assert (other.images == folder.images).all() and other.captions == folder.captions


def test_names_of_file_and_columns_are_arguments(tmp_path):
    fill(
        tmp_path, {"captions.csv": "file;caption\ncat.png;eine Katze, süß\n", "png/cat.png": png()}
    )
    pictures = read_quietly(tmp_path, "captions.csv", file_column="file", text_column="caption")
    assert pictures.captions == [
        "eine Katze, süß"
    ]  # found in a sub-folder, and in a table with semicolons


def test_letter_case_backslashes_and_accents_do_not_hide_a_file(tmp_path):
    table = "file_name,text\nImages\\CAT.PNG,a cat\nimages/cafe\u0301.png,a café\n"
    fill(
        tmp_path,
        {"metadata.csv": "\ufeff" + table, "images/cat.png": png(), "images/caf\u00e9.png": png()},
    )
    assert read_quietly(tmp_path).captions == ["a cat", "a café"]


def test_captions_that_look_like_missing_numbers_stay_text(tmp_path):
    fill(
        tmp_path,
        {"metadata.csv": "file_name,text\na.png,None\nb.png,007\n", "a.png": png(), "b.png": png()},
    )
    assert read_quietly(tmp_path).captions == ["None", "007"]


def test_without_a_table_the_sub_folders_are_the_captions_and_that_is_said(tmp_path):
    fill(
        tmp_path,
        {"grey_cats/1.png": png(), "dogs/1.png": png(), "dogs/2.png": png(), "notes.txt": "mine"},
    )
    with pytest.warns(UserWarning, match="names of its sub-folders are the captions"):
        pictures = read_folder(tmp_path)
    assert pictures.captions == ["dogs", "dogs", "grey cats"]
    assert pictures.attributes["folder"].tolist() == ["dogs", "dogs", "grey_cats"]


# -- pictures
@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "I;16", "I", "CMYK", "F"]
)
def test_every_kind_of_pixel_becomes_rgb(mode):
    format = {"CMYK": "JPEG", "F": "TIFF", "PA": "PNG"}.get(mode, "PNG")
    image = Image.new("L", (50, 50), 255).convert(mode if mode != "I;16" else "L")
    if mode in ("I;16", "I"):
        image = Image.fromarray(np.full((50, 50), 65535, np.uint16))
    elif mode == "PA":
        image = Image.new("LA", (50, 50), (255, 255)).convert("PA").convert("P")
    found = square(encoded(image, format), 32)
    assert found.shape == (3, 32, 32) and found.dtype == np.uint8 and found.min() >= 250


def test_sixteen_bits_keep_their_shades():
    shades = np.linspace(0, 65535, 32).astype(np.uint16)
    found = square(encoded(Image.fromarray(np.tile(shades, (32, 1)))), 32)
    assert np.abs(found[0, 0].astype(int) - np.linspace(0, 255, 32)).max() <= 1


def test_alpha_is_flattened_on_white():
    half = square(png(32, 32, (0, 0, 0, 128), "RGBA"), 32)
    assert abs(int(half[0, 5, 5]) - 127) <= 1
    assert (
        square(png(32, 32, (0, 0, 0, 0), "RGBA"), 32).min() == 255
    )  # not the black that lies below


def test_a_palette_with_a_transparent_colour_is_flattened_too():
    image = Image.new("P", (40, 40), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    assert square(encoded(image, transparency=0), 32).min() == 255


@pytest.mark.parametrize("width, height", [(64, 32), (32, 64), (3000, 2), (1, 1), (31, 33)])
def test_pictures_keep_their_shape_inside_the_square(width, height):
    found = square(png(width, height, (10, 20, 30, 255), "RGBA"), 32)
    assert found.shape == (3, 32, 32)
    padded = square(encoded(Image.new("RGBA", (64, 32), (0, 0, 0, 0))), 32)
    assert padded.min() == 255


def test_padding_takes_the_colour_of_the_border():
    image = Image.new("RGB", (64, 32), (0, 120, 0))
    image.paste((255, 255, 255), (20, 8, 44, 24))
    found = square(encoded(image), 32)
    assert found[:, 0, 0].tolist() == [0, 120, 0] and found[:, 16, 16].tolist() == [255, 255, 255]


def test_shrinking_averages_instead_of_picking_pixels():
    checks = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    assert np.abs(square(encoded(Image.fromarray(checks)), 32).astype(int) - 127).max() < 12


def test_a_photo_lying_on_its_side_is_turned_upright():
    image = Image.new("RGB", (40, 40), "white")
    image.paste((0, 0, 0), (0, 0, 40, 20))  # dark half on top
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned
    found = square(encoded(image, "JPEG", exif=exif, quality=95), 32)
    assert found[0, :, 28].mean() < 30 and found[0, :, 4].mean() > 220


# -- rubbish
def test_broken_pictures_are_named_counted_and_skipped(tmp_path):
    whole = encoded(Image.effect_noise((64, 64), 80), "PNG")
    rows = [
        "good.png,good",
        "cut.png,cut",
        "text.png,text",
        "gone.png,gone",
        "silent.png,",
        ",nobody",
        "empty.png,nil",
    ]
    fill(
        tmp_path,
        {
            "metadata.csv": "file_name,text\n" + "\n".join(rows),
            "good.png": whole,
            "cut.png": whole[: len(whole) // 2],
            "text.png": "I am no picture",
            "silent.png": whole,
            "empty.png": b"",
            "unlisted.png": whole,
        },
    )
    with pytest.warns(UserWarning, match="Kept 1 pictures of .*Skipped 7: .*; and 2 more") as said:
        pictures = read_folder(tmp_path)
    assert len(said) == 1 and pictures.captions == ["good"] and len(pictures) == 1
    skipped = "\n".join(pictures.attributes.attrs["skipped"])
    for words in (
        "cut.png: cut short or damaged",
        "text.png: not an image",
        "gone.png: no such file",
        "silent.png: no caption",
        "no file name in column 'file_name'",
        "empty.png: empty",
        "unlisted.png: no caption",
    ):
        assert words in skipped


def test_two_files_of_one_name_are_not_guessed_between(tmp_path):
    table = "file_name,text\n1.png,which?\na/1.png,this\n"
    fill(tmp_path, {"metadata.csv": table, "a/1.png": png(), "b/1.png": png()})
    with pytest.warns(UserWarning, match="1.png: fits 2 files; write its sub-folder too"):
        assert read_folder(tmp_path).captions == ["this"]


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"letter.txt": "dear all", "virus.exe": b"MZ\x00"},
        {"a.png": b"nonsense", "b.jpg": "more nonsense"},
        {"photo.png": png()},
        {"metadata.csv": "", "photo.png": png()},
        {"metadata.csv": "file_name,text\n", "photo.png": png()},
        {"metadata.csv": b"\x89PNG\r\n\x00\xff\xfe", "photo.png": png()},
        {"metadata.csv": "file_name,text\nphoto.png,x\n", "photo.png": b"\x00" * 3000},
        {"metadata.jsonl": "{]\n[1, 2]\n17\n"},
        {"metadata.jsonl": '{"file_name": 3, "text": null}\n{"file_name": {"a": 1}, "text": [1]}'},
        {"x/a.png": b"", "y/b.png": b""},
    ],
)
@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_folder_of_rubbish_is_an_error_that_says_what_was_looked_for(tmp_path, files, kind):
    source = (
        zipped(tmp_path / "rubbish.zip", files)
        if kind == "zip"
        else fill(tmp_path / "rubbish", files)
    )
    source.mkdir(exist_ok=True) if kind == "folder" else None
    with pytest.raises(ValueError) as error:
        read_folder(source)
    assert "rubbish" in str(error.value)
    assert any(
        words in str(error.value)
        for words in ("Looked for", "has no column", "is not UTF-8", "is not JSON lines")
    )


def test_a_missing_column_is_an_error_that_names_those_there_are(tmp_path):
    fill(tmp_path, {"metadata.csv": "file_name,title\ncat.png,a cat\n", "cat.png": png()})
    with pytest.raises(
        ValueError, match="no column 'text'; its columns are 'file_name', 'title'.*text_column="
    ):
        read_folder(tmp_path)


def test_a_caption_file_of_another_name_is_pointed_out(tmp_path):
    fill(tmp_path, {"captions.csv": "file,caption\ncat.png,a cat\n", "png/cat.png": png()})
    with pytest.raises(
        ValueError,
        match="no caption file metadata.csv or metadata.jsonl.*caption_file='captions.csv'",
    ):
        read_folder(tmp_path)


def test_a_path_that_is_not_there_or_neither_folder_nor_zip_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder or zip at"):
        read_folder(tmp_path / "nowhere")
    (tmp_path / "text.zip").write_text("not a zip", encoding="utf-8")
    with pytest.raises(ValueError, match="neither a folder nor a zip"):
        read_folder(tmp_path / "text.zip")


def test_nothing_outside_the_folder_is_opened(tmp_path):
    (tmp_path / "secret.png").write_bytes(png())
    table = f"file_name,text\n../secret.png,stolen\n{tmp_path}/secret.png,stolen\nmine.png,mine\n"
    files = {"metadata.csv": table, "mine.png": png()}
    sources = (
        fill(tmp_path / "mine", files),
        zipped(tmp_path / "mine.zip", {**files, "../evil.png": png()}),
    )
    for source in sources:
        with pytest.warns(UserWarning, match="no such file"):
            assert read_folder(source).captions == ["mine"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "mine",
        "mine.zip",
        "secret.png",
    ]  # nothing unpacked


def test_a_zip_bomb_and_a_picture_of_absurd_size_are_skipped(tmp_path):
    huge = Image.new("1", (8000, 8000))  # 8 kB as a file, 256 MB as RGBA
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("metadata.csv", "file_name,text\nzeros.png,z\nhuge.png,h\nmine.png,mine\n")
        with archive.open("zeros.png", "w") as member:
            for _ in range(260):
                member.write(bytes(2**20))
        archive.writestr("huge.png", encoded(huge))
        archive.writestr("mine.png", png())
    with pytest.warns(UserWarning) as said:
        assert read_folder(tmp_path / "bomb.zip").captions == ["mine"]
    assert "at most 64 MB" in str(said[0].message) and "huge.png" in str(said[0].message)


@pytest.mark.parametrize("size", [0, -1, 2.5, True])
def test_a_size_that_is_no_number_of_pixels_is_an_error(tmp_path, size):
    with pytest.raises(ValueError, match="size must be a whole number"):
        read_folder(fill(tmp_path, CAT_AND_DOG), size=size)


def test_other_sizes_come_out_as_asked(tmp_path):
    assert tuple(read_quietly(fill(tmp_path, CAT_AND_DOG), size=48).images.shape) == (2, 3, 48, 48)


# -- the Hub, tried on a local folder in the Hub's own layout
@pytest.fixture
def hub_folder(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", Path(tmp_path / "cache"))
    table = "file_name,text,legs\ncat.png,a cat,4\nbad.png,broken,0\nbird.png,a bird,2\n"
    return fill(
        tmp_path / "pets",
        {
            f"train/{name}": content
            for name, content in {
                "metadata.csv": table,
                "cat.png": png(60, 30),
                "bad.png": b"nonsense",
                "bird.png": png(),
            }.items()
        },
    )


def test_a_hub_data_set_becomes_pictures_with_attributes(hub_folder):
    with pytest.warns(UserWarning, match="Skipped 1: .*bad.png: not an image"):
        pictures = from_hub(str(hub_folder))
    assert pictures.captions == ["a cat", "a bird"] and pictures.attributes["legs"].tolist() == [
        4,
        2,
    ]
    assert tuple(pictures.images.shape) == (2, 3, 32, 32)


def test_a_wrong_split_or_column_of_a_hub_data_set_is_named(hub_folder, tmp_path):
    with pytest.raises(
        ValueError, match="no column 'caption'; it has 'image', 'text', 'legs'.*text_column="
    ):
        from_hub(str(hub_folder), text_column="caption")
    table = fill(tmp_path / "table", {"train.csv": "image,text\n1,a cat\n"})
    with pytest.raises(ValueError, match="Column 'image' of .* holds no images"):
        from_hub(str(table))
    nameless = fill(tmp_path / "nameless", {"train.csv": "photo,text\n1,a cat\n"})
    with pytest.raises(ValueError, match="no column 'image'; it has 'photo', 'text'"):
        from_hub(str(nameless))
    tested = fill(tmp_path / "tested", {"test.csv": "image,text\n1,a cat\n"})
    with pytest.raises(ValueError, match="no usable split 'train'"):
        from_hub(str(tested))


def test_a_hub_data_set_with_several_captions_a_picture_gives_the_first(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", Path(tmp_path / "cache"))
    rows = [("a.png", ["a cat", "cat asleep"]), ("b.png", [])]
    lines = [json.dumps({"file_name": name, "text": captions}) for name, captions in rows]
    files = {"metadata.jsonl": "\n".join(lines), "a.png": png(), "b.png": png()}
    fill(tmp_path / "pets" / "train", files)
    with pytest.warns(UserWarning, match="Skipped 1: .*b.png: no caption"):
        assert from_hub(str(tmp_path / "pets")).captions == ["a cat"]


def test_without_the_library_of_the_hub_an_error_says_how_to_install_it(hub_folder, monkeypatch):
    monkeypatch.setitem(
        sys.modules, "datasets", None
    )  # as Python finds it where it isn't installed
    with pytest.raises(
        ModuleNotFoundError,
        match="pip install 'datasets.*or download the pictures and use a folder",
    ):
        from_hub(str(hub_folder))


def test_a_data_set_that_cannot_be_fetched_is_an_error_that_says_what_to_do(tmp_path):
    with pytest.raises(ConnectionError, match="could not be fetched.*read_folder"):
        from_hub(str(tmp_path / "no" / "such" / "set"))


# -- captions beside the pictures, as LoRA trainers have them
SIDECARS = {
    "10_cat/a.png": png(),
    "10_cat/a.txt": "\ufeff a red cat,\non a mat \n",
    "10_cat/B.PNG": png(colour=(0, 0, 250)),
    "10_cat/b.txt": "a blue cat",
    "5_dog/c.jpg": encoded(Image.new("RGB", (9, 9)), "JPEG"),
    "5_dog/c.caption": "a dog",
}


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_text_file_beside_each_picture_is_its_caption(tmp_path, kind):
    make, name = (zipped, "pets.zip") if kind == "zip" else (fill, "pets")
    pictures = read_quietly(make(tmp_path / name, SIDECARS))
    assert pictures.captions == ["a blue cat", "a red cat, on a mat", "a dog"]
    assert pictures.attributes["folder"].tolist() == ["10_cat", "10_cat", "5_dog"]


def test_pictures_and_text_files_without_a_partner_are_named_with_what_to_do(tmp_path):
    more = {"d.png": png(), "e.png": png(), "e.txt": " \n", "f.png": png(), "f.txt": b"\xff\xfe"}
    with pytest.warns(UserWarning, match="Kept 3 pictures"):
        pictures = read_folder(fill(tmp_path, {**SIDECARS, **more, "notes.txt": "mine"}))
    assert pictures.attributes.attrs["skipped"] == [
        "d.png: no caption; write it into d.txt",
        "e.png: no caption; e.txt is empty",
        "f.png: no caption; f.txt is not UTF-8 text, save it as UTF-8",
        "notes.txt: no picture of the same name beside it",
    ]


def test_a_table_of_another_name_is_not_passed_over_for_text_files(tmp_path):
    fill(tmp_path, {**SIDECARS, "list.csv": "file_name,text\n"})
    with pytest.raises(ValueError, match="caption_file='list.csv'.* Or take .* 10_cat/b.txt"):
        read_folder(tmp_path)


def test_the_repeats_before_a_folders_name_are_no_part_of_a_caption(tmp_path):
    fill(tmp_path / "img", {"10_grey_cat/1.png": png()})
    with pytest.warns(UserWarning, match="names of its sub-folders are the captions"):
        assert read_folder(tmp_path).captions == ["grey cat"]
    fill(tmp_path, {"dog2/1.png": png()})
    with pytest.warns(UserWarning, match="names of its sub-folders are the captions"):
        assert read_folder(tmp_path).captions == ["dog2", "grey cat"]


# -- tables as hands and scripts write them
def test_a_caption_with_commas_but_no_quotes_stays_whole_in_the_last_column(tmp_path):
    table = "file_name,text,,\na.png,a red cat, on a mat\nb.png,a dog,,\n"
    fill(tmp_path, {"metadata.csv": table, "a.png": png(), "b.png": png()})
    assert read_quietly(tmp_path).captions == ["a red cat, on a mat", "a dog"]


def test_a_caption_with_commas_but_no_quotes_in_another_column_is_named_by_line(tmp_path):
    table = "file_name,text,kind\na.png,a red cat, on a mat,cat\nb.png,a dog,dog\n"
    fill(tmp_path, {"metadata.csv": table, "a.png": png(), "b.png": png()})
    with pytest.warns(
        UserWarning, match="Skipped 1: a.png: line 2 of metadata.csv has more cells .* in quotes"
    ):
        assert read_folder(tmp_path).captions == ["a dog"]


def test_json_lines_end_at_a_newline_alone(tmp_path):
    text = "a cat\u2028on a\u0085mat"
    line = json.dumps({"file_name": "a.png", "text": text}, ensure_ascii=False)
    fill(tmp_path, {"metadata.jsonl": f"{line}\r\n\r\n", "a.png": png()})
    assert read_quietly(tmp_path).captions == [text]


@pytest.mark.parametrize(
    "content, words",
    [
        ('[{"file_name": "a.png", "text": "a cat"}]', "but one JSON array"),
        ('[\n{"file_name": "a.png",\n"text": "a"},\n{"file_name": "a.png"}\n]', "one JSON array"),
        ('{\n"file_name": "a.png",\n"text": "a cat"\n}\n' * 2, "runs over several lines"),
        ("a.png: a cat\n", "no line holds a JSON object"),
        ("", "no line holds a JSON object"),
        ("[" * 100_000, "no line holds a JSON object"),
    ],
)
def test_a_file_that_is_not_json_lines_is_named_as_what_it_is(tmp_path, content, words):
    fill(tmp_path, {"metadata.jsonl": content, "a.png": png()})
    with pytest.raises(ValueError, match=f"metadata.jsonl in .* is not JSON lines .*{words}"):
        read_folder(tmp_path)


def test_captions_of_another_type_are_a_lists_first_text_or_none(tmp_path):
    captions = ["NaN", "false", "null", "{}", "[]", '[null, "a cat", "cat asleep"]', "7"]
    lines = [f'{{"file_name": "{n}.png", "text": {text}}}' for n, text in enumerate(captions)]
    fill(tmp_path, {f"{n}.png": png() for n in range(7)} | {"metadata.jsonl": "\n".join(lines)})
    with pytest.warns(UserWarning, match="Skipped 5"):
        pictures = read_folder(tmp_path)
    assert pictures.captions == ["a cat", "7"]
    assert pictures.attributes.attrs["skipped"] == [f"{n}.png: no caption" for n in range(5)]


def test_a_header_of_commas_alone_has_no_columns(tmp_path):
    with pytest.raises(ValueError, match="its columns are none"):
        read_folder(fill(tmp_path, {"metadata.csv": ",,\na.png,a cat\n", "a.png": png()}))


def test_half_a_character_is_skipped_by_the_name_of_its_picture(tmp_path):
    lines = [r'{"file_name": "a.png", "text": "bad \ud800"}', '{"file_name": "b.png", "text": "b"}']
    fill(tmp_path, {"metadata.jsonl": "\n".join(lines), "a.png": png(), "b.png": png()})
    with pytest.warns(UserWarning, match="a.png: its .* not Unicode .*; write them again"):
        assert read_folder(tmp_path).captions == ["b"]


# -- links and zips
def test_links_that_leave_the_folder_are_skipped_with_that_reason(tmp_path):
    table = "file_name,text\na.png,a cat\nb.png,same cat\nc.png,stolen\nmore/d.png,lost\n"
    fill(tmp_path / "mine", {"metadata.csv": table, "a.png": png()})
    fill(tmp_path / "other", {"c.png": png(), "d.png": png()})
    try:
        (tmp_path / "mine" / "b.png").symlink_to("a.png")
        (tmp_path / "mine" / "c.png").symlink_to(tmp_path / "other" / "c.png")
        (tmp_path / "mine" / "more").symlink_to(tmp_path / "other", target_is_directory=True)
    except OSError:
        pytest.skip("this system lets nobody make links")
    with pytest.warns(UserWarning, match="Skipped 3"):
        pictures = read_folder(tmp_path / "mine")
    assert pictures.captions == ["a cat", "same cat"]
    assert pictures.attributes.attrs["skipped"] == [
        "more: a link to a folder; put the folder itself there",
        "more/d.png: no such file",
        "c.png: a link that leaves the folder; put the file itself there",
    ]


def test_a_zip_made_with_backslashes_is_read_and_its_advice_works(tmp_path):
    table = "file_name,text\na.png,a cat\n"
    source = zipped(
        tmp_path / "pets.zip", {"pics\\": "", "pics\\list.csv": table, "pics\\a.png": png()}
    )
    with pytest.raises(ValueError, match="caption_file='pics/list.csv'"):
        read_folder(source)
    for name in ("pics/list.csv", "pics\\list.csv"):
        assert read_quietly(source, name).captions == ["a cat"]


def test_a_caption_file_that_cannot_be_read_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "pets.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.png", png())
        with archive.open("metadata.csv", "w") as member:
            for _ in range(300):
                member.write(b" " * 2**20)
    with pytest.raises(ValueError, match="metadata.csv in .*pets.zip cannot be .* 300 MB; at most"):
        read_folder(tmp_path / "pets.zip")


# -- pictures of other kinds and of many pixels
OTHERS = {
    "photo.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
    "scan.jp2": b"\0\0\0\x0cjP  \r\n\x87\n",
    "logo.svg": '<?xml version="1.0"?>\n<!-- drawn -->\n<svg xmlns="x"/>',
    "renamed.jpg": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
}


def test_pictures_of_other_kinds_are_counted_and_named_with_what_to_do(tmp_path):
    read = {"cats/a.png": png(), "dogs/b.png": png()}
    fill(tmp_path, {**read, **{f"cats/{name}": content for name, content in OTHERS.items()}})
    with pytest.warns(UserWarning) as said:
        pictures = read_folder(tmp_path)
    assert len(pictures) == 2 and "Skipped 4" in str(said[0].message)
    assert pictures.attributes.attrs["skipped"] == [
        f"cats/{name}: {kind} is not read here; save it as PNG or JPEG"
        for name, kind in (
            ("logo.svg", "SVG"),
            ("photo.heic", "HEIC"),
            ("renamed.jpg", "HEIC"),
            ("scan.jp2", "JPEG 2000"),
        )
    ]


@pytest.mark.skipif("AVIF" not in FORMATS, reason="this Pillow reads no AVIF")
def test_avif_is_read_where_pillow_can(tmp_path):
    content = encoded(Image.new("RGB", (40, 40), (200, 30, 30)), "AVIF")
    fill(tmp_path, {"a.avif": content, "a.txt": "a cat"})
    pictures = read_quietly(tmp_path)
    assert pictures.captions == ["a cat"]
    assert abs(pictures.images[0, :, 16, 16].int() - torch.tensor([200, 30, 30])).max() < 9


@pytest.mark.parametrize(
    "how, small, large, most",
    [
        ({"format": "PNG"}, (4032, 3024), (4000, 3200), "PNG are .* 12.6"),
        ({"format": "WEBP"}, (3000, 3000), (4032, 3024), "WEBP are .* 9.0"),
        ({"format": "JPEG", "progressive": True}, (6000, 4000), (6000, 4001), "JPEG are .* 24.0"),
    ],
)
def test_a_picture_of_too_many_pixels_is_refused_with_what_to_do(how, small, large, most):
    with pytest.raises(ValueError, match=f"{most} million pixels are read"):
        square(encoded(Image.new("L", large), **how), 32)
    assert square(encoded(Image.new("L", small), **how), 32).shape == (3, 32, 32)


def test_a_photo_of_many_pixels_is_decoded_at_an_eighth_of_its_size():
    assert square(encoded(Image.new("RGB", (8000, 6000)), "JPEG"), 32).shape == (3, 32, 32)


PEAK = """
import io, resource, sys
from PIL import Image
from fedgen_lab.pictures.squares import square

content = open(sys.argv[1], "rb").read()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
square(content, 32)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems count memory otherwise")
@pytest.mark.parametrize("mode", ["RGBA", "P", "I;16"])
def test_the_largest_picture_takes_less_than_150_megabytes(tmp_path, mode):
    more = {"transparency": 0} if mode == "P" else {}
    image = Image.new(mode, (4032, 3024))
    (tmp_path / "large.png").write_bytes(encoded(image, **more))
    found = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "large.png")],
        capture_output=True,
        check=True,
    )
    assert int(found.stdout) < 150 * 1024
