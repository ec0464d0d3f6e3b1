"""A captioned data set of the Hugging Face Hub, by name, becomes `Pictures`.

For a learner who is online and wants more pictures than the lab ships (lab 03's second tab, "Your own pictures").
"""

from pathlib import Path

from fedgen_lab.pictures.collection import Candidate, gather, text_of

SPLIT, IMAGES = "train", "image"  # where data sets of pictures usually have theirs


def from_hub(name, text_column="text", size=32):
    """Download (or load from the cache) the training split of a Hub data set and make square pictures of it.

    name: OWNER/NAME on https://huggingface.co/datasets, or a local folder in the Hub's layout. Its images stand in a
        column "image".
    text_column: where the captions are. A column of class numbers gives the classes' names.
    size: width and height in pixels.

    Columns of plain values become attributes. Unusable pictures are skipped, warned of and listed as in `read_folder`.

    Raises ModuleNotFoundError without the library datasets, ConnectionError where the data set cannot be fetched, and
    ValueError where the split or a column does not exist or not one picture can be used.
    """
    remedy = "; or download its pictures on another machine and use read_folder on the folder."
    datasets, table = load_dataset(name, remedy, SPLIT)
    for column, advice in (
        (text_column, "Name the right one with text_column=."),
        (IMAGES, "Take one whose images stand in that column."),
    ):
        if column not in table.column_names:
            columns = ", ".join(map(repr, table.column_names))
            raise ValueError(
                f"The data set {name!r} has no column {column!r}; it has {columns}. {advice}"
            )
    if not isinstance(table.features[IMAGES], datasets.Image):
        raise ValueError(
            f"Column {IMAGES!r} of {name!r} holds no images but {table.features[IMAGES]}."
        )
    # Bytes, not decoded images: a broken one must not end the loop.
    table = table.cast_column(IMAGES, datasets.Image(decode=False))
    skipped: list[str] = []
    candidates = _candidates(table, text_column, skipped)
    searched = f"Its split {SPLIT!r} has {len(table)} rows."
    return gather(candidates, len(table), size, skipped, repr(name), searched)


def load_dataset(name, remedy, split=None):
    """The library datasets, and a data set of the Hub or one split of it. The library is no part of the course.

    It takes 100 MB, and an open lab 45 MB more. remedy: what else there is where the data set can't be had.

    Raises ModuleNotFoundError without the library, ConnectionError where the data set cannot be fetched, and ValueError
    for a split that it has not.
    """
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Pictures of the Hugging Face Hub need the library datasets. Install it with pip install 'datasets>=4,<5' "
            "and restart the kernel; or download the pictures and use a folder."
        ) from error
    try:
        return datasets, datasets.load_dataset(name, split=split)
    except (
        Exception
    ) as error:  # offline, unknown, gated and wrongly spelt look alike, in a dozen types
        if split and isinstance(error, ValueError):  # an unknown split or an unreadable layout
            raise ValueError(
                f"The data set {name!r} has no usable split {split!r}: {error}"
            ) from error
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise ConnectionError(
            f"The data set {name!r} could not be fetched from the Hugging Face Hub ({type(error).__name__}: {reason}). "
            f"Check its name and your connection{remedy}"
        ) from error


def _candidates(table, text_column, skipped):
    """One `Candidate` for each row with a caption; the others are noted in `skipped`."""
    # Columns of texts, truths and numbers are attributes.
    kinds = ("string", "large_string", "bool", "float32", "float64", "int", "uint")
    plain = [
        column
        for column, feature in table.features.items()
        if column not in (IMAGES, text_column)
        and str(getattr(feature, "dtype", None)).startswith(kinds)
    ]
    for number, row in enumerate(table):
        image = row[IMAGES] or {}
        label = image.get("path") or f"row {number}"
        caption = text_of(_value(table, row, text_column))
        if not caption:
            skipped.append(f"{label}: no caption")
            continue
        attributes = {column: _value(table, row, column) for column in plain}
        yield Candidate(
            label,
            caption,
            attributes,
            lambda image=image, label=label: image.get("bytes") or Path(label).read_bytes(),
        )


def _value(table, row, column):
    """The name of a class instead of its number; everything else as it is."""
    feature, value = table.features[column], row[column]
    is_class = hasattr(feature, "int2str") and value is not None and value >= 0
    return feature.int2str(value) if is_class else value
