"""Real pictures that nobody here drew: 1,875 emoji with captions, where the picture sets lie beside the repository."""

import warnings
from pathlib import Path

import numpy as np
import pytest

from fedgen_lab.partition import by_skew, concept_counts, dirichlet, mean_js_distance
from fedgen_lab.pictures.folders import read_folder

ZIP = Path(__file__).parents[3] / "shared" / "data" / "openmoji" / "openmoji-72-plain.zip"
pytestmark = pytest.mark.skipif(not ZIP.exists(), reason="../shared/data/openmoji is absent")


@pytest.fixture(scope="module")
def emoji():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return read_folder(
            ZIP, caption_file="captions.csv", file_column="file", text_column="caption"
        )


def test_all_emoji_come_in_with_their_captions(emoji):
    assert len(emoji) == 1875 and tuple(emoji.images.shape) == (1875, 3, 32, 32)
    assert emoji.attributes.attrs["skipped"] == [] and all(emoji.captions)
    assert {"Smileys & Emotion", "Food & Drink"} <= set(emoji.attributes["unicode_group"])


def test_emoji_lie_on_white(emoji):
    corners = np.asarray(emoji.images)[:, :, 0, 0]
    assert (corners == 255).all(1).mean() > 0.95


def test_a_folder_of_emoji_without_arguments_says_which_argument_is_missing():
    with pytest.raises(ValueError, match="caption_file='captions.csv'"):
        read_folder(ZIP)
    with pytest.raises(ValueError, match="its columns are 'file', 'emoji', 'caption'"):
        read_folder(ZIP, caption_file="captions.csv")


def test_emoji_groups_can_be_spread_or_given_one_to_a_client(emoji):
    counts = [
        concept_counts(
            emoji.attributes,
            "unicode_group",
            by_skew(emoji.attributes, "unicode_group", 4, s, 64, 0),
        )
        for s in (0.0, 1.0)
    ]
    assert mean_js_distance(counts[0]) < 1e-6 < 0.5 < mean_js_distance(counts[1])
    assert ((counts[1] > 0).sum(axis=1) == 1).all()
    assert all(map(len, dirichlet(emoji.attributes, "unicode_group", 50, 0.01, seed=0)))
