"""Where pictures come from: drawn sprites and (in their own modules) a learner's folders and the Hub's data sets."""

import importlib

_WHERE = {
    "Pictures": "collection",
    **dict.fromkeys(
        (
            "draw_sprites",
            "draw_sprite",
            "prompts",
            "OBJECTS",
            "HELD_OUT_OBJECTS",
            "COLOURS",
            "BACKGROUNDS",
            "STYLES",
            "HELD_OUT_STYLES",
        ),
        "sprites",
    ),
    "read_folder": "folders",
    "from_hub": "hub",
}
__all__ = list(_WHERE)


def __getattr__(
    name,
):  # lazy: importing the package must not load torch or Pillow before they are needed
    if name in _WHERE:
        return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
