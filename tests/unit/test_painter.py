"""The painter of lab 01 and its picture book."""

import pytest
import torch

from fedgen_lab.painter import COLOURS, OBJECTS, error, new_painter, picture_book


def test_the_same_seed_draws_the_same_book_and_the_same_painter():
    one, other = picture_book(12, seed=3), picture_book(12, seed=3)
    assert torch.equal(one.pictures, other.pictures) and one.captions == other.captions
    assert not torch.equal(one.pictures, picture_book(12, seed=4).pictures)
    assert torch.equal(new_painter()[0].weight, new_painter()[0].weight)


def test_making_a_painter_leaves_the_global_dice_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    new_painter()
    assert torch.equal(torch.rand(1), expected)


def test_each_picture_has_one_object_and_one_colour():
    book = picture_book(20, seed=0)
    assert book.pictures.shape == (20, 3, 16, 16) and book.pictures.abs().max() <= 1
    assert book.words.shape == (20, 8)
    assert (book.words[:, :4].sum(1) == 1).all() and (book.words[:, 4:].sum(1) == 1).all()
    first = book.attributes.iloc[0]
    assert book.words[0].nonzero().flatten().tolist() == [
        OBJECTS.index(first["object"]),
        4 + COLOURS.index(first["colour"]),
    ]


def test_one_of_each_holds_every_object_in_the_order_asked_for():
    some = picture_book(256, seed=0).one_of_each(["red", "blue"])
    assert some.captions == [f"{colour} {thing}" for colour in ("red", "blue") for thing in OBJECTS]


def test_a_painter_of_the_true_pictures_has_no_error():
    book = picture_book(8, seed=0)
    assert error(lambda words: book.pictures, book) == 0
    assert error(new_painter(), book) > 0.05


def test_the_error_of_one_object_looks_at_that_object_only():
    book = picture_book(64, seed=0)
    parts = [
        error(new_painter(), book, [thing]) * (book.attributes["object"] == thing).mean()
        for thing in OBJECTS
    ]
    assert sum(parts) == pytest.approx(error(new_painter(), book), rel=1e-4)
    with pytest.raises(ValueError, match="no picture"):
        error(new_painter(), book, ["spaceship"])
