"""Sprites: drawn, captioned, reproducible; held-out words never appear unless asked for."""

import numpy as np
import pytest
import torch

from fedgen_lab.pictures import sprites

EVERY_WORD = {
    "objects": sprites.OBJECTS + sprites.HELD_OUT_OBJECTS,
    "styles": sprites.STYLES + sprites.HELD_OUT_STYLES,
}


def test_same_seed_draws_the_same_sprites_and_another_seed_draws_others():
    one, same, other = (sprites.draw_sprites(20, seed) for seed in (3, 3, 4))
    assert torch.equal(one.images, same.images) and one.captions == same.captions
    assert one.attributes.equals(same.attributes)
    assert not torch.equal(one.images, other.images)


def test_the_world_has_at_least_20_objects_8_colours_8_backgrounds_8_styles():
    assert len(set(sprites.OBJECTS)) >= 20 and len(sprites.COLOURS) >= 8
    assert len(sprites.BACKGROUNDS) >= 8 and len(set(sprites.STYLES)) >= 8


def test_held_out_words_are_not_drawn_by_default():
    table = sprites.draw_sprites(400, 0).attributes
    assert set(table["object"]) == set(sprites.OBJECTS) and set(table["style"]) == set(
        sprites.STYLES
    )
    assert not set(sprites.OBJECTS) & set(sprites.HELD_OUT_OBJECTS)
    assert not set(sprites.STYLES) & set(sprites.HELD_OUT_STYLES)


def test_the_background_never_has_the_colour_of_the_object():
    table = sprites.draw_sprites(500, 1).attributes
    assert (table["colour"] != table["background"]).all()


def test_a_caption_names_object_colour_background_and_any_style_but_solid():
    pictures = sprites.draw_sprites(300, 2, **EVERY_WORD)
    for caption, row in zip(pictures.captions, pictures.attributes.to_dict("records"), strict=True):
        words = caption.replace(",", "").split()
        assert row["object"] in words and row["colour"] in words and row["background"] in words
        assert row["style"] in words or row["style"] == "solid"
    assert len({len(caption.split()) for caption in pictures.captions}) > 2  # several templates


def test_prompts_use_one_template_and_ask_for_what_the_sprites_of_that_seed_show():
    captions, table = sprites.prompts(50, 9)
    assert table.equals(sprites.draw_sprites(50, 9).attributes)
    row = table.iloc[0]
    a, b = ("an" if row[name][0] in "aeiou" else "a" for name in ("style", "background"))
    expected = (
        f"{a} {row['style']} {row['colour']} {row['object']} on {b} {row['background']} background"
    )
    assert captions[0] == expected


def test_pixels_show_the_named_background_and_colour():
    picture = sprites.draw_sprite("square", "red", "blue", "solid")
    assert picture.shape == (32, 32, 3) and picture.dtype == np.uint8
    assert (
        tuple(picture[0, 0]) == sprites.BACKGROUNDS["blue"]
        and tuple(picture[16, 16]) == sprites.COLOURS["red"]
    )


@pytest.mark.parametrize("thing", EVERY_WORD["objects"])
def test_each_style_changes_the_picture_of_each_object(thing):
    drawn = [
        sprites.draw_sprite(thing, "orange", "blue", style).astype(int)
        for style in EVERY_WORD["styles"]
    ]
    for i, one in enumerate(drawn):
        for other in drawn[:i]:
            assert (
                abs(one - other).max(-1) > 40
            ).sum() >= 20  # at least 20 of 1024 pixels differ plainly


def test_jitter_moves_the_shape_to_the_right_and_down():
    def centre(picture):
        inside = np.argwhere((picture == sprites.COLOURS["white"]).all(-1))
        return inside.mean(0)

    still = centre(sprites.draw_sprite("circle", "white", "black", "solid"))
    moved = centre(sprites.draw_sprite("circle", "white", "black", "solid", shift=(2.0, 1.0)))
    assert np.allclose(moved - still, (1.0, 2.0), atol=0.2)  # (row, column)


def test_a_smaller_scale_covers_fewer_pixels():
    full, small = (
        sprites.draw_sprite("circle", "white", "black", "solid", scale=s)[..., 0].mean()
        for s in (1.0, 0.8)
    )
    assert small < 0.75 * full


def test_no_sprites_is_an_empty_collection():
    assert len(sprites.draw_sprites(0, 0)) == 0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"number": -1}, "-1"),
        ({"number": 2.5}, "2.5"),
        ({"seed": -3}, "-3"),
        ({"objects": ("dragon",)}, "dragon"),
        ({"objects": ()}, "no object"),
        ({"styles": ("chalk",)}, "chalk"),
        ({"colours": ("pink",)}, "pink"),
        ({"objects": "star"}, "sequence"),
        ({"colours": ("red",), "backgrounds": ("red",)}, "differ"),
    ],
)
def test_a_bad_argument_is_named_in_the_error(arguments, named):
    with pytest.raises(ValueError, match=named):
        sprites.draw_sprites(**({"number": 2, "seed": 0} | arguments))


def test_take_keeps_pictures_captions_and_attributes_together():
    pictures = sprites.draw_sprites(6, 5)
    some = pictures.take([4, 0])
    assert (
        torch.equal(some.images[0], pictures.images[4]) and some.captions[1] == pictures.captions[0]
    )
    assert some.attributes["object"].tolist() == pictures.attributes["object"].iloc[[4, 0]].tolist()
    with pytest.raises(ValueError, match="6"):
        pictures.take([6])


def test_as_tensor_maps_bytes_to_minus_one_and_one():
    tensor = sprites.draw_sprites(8, 0).as_tensor()
    assert tensor.shape == (8, 3, 32, 32) and tensor.min() >= -1 and tensor.max() <= 1
    assert torch.allclose(
        (tensor + 1) * 127.5, sprites.draw_sprites(8, 0).images.float(), atol=1e-4
    )
