"""The rows of a caption table: CSV, TSV or JSON lines, as spreadsheets, scripts and hands write them.

Used by `fedgen_lab.pictures.folders`. A row that can't be used is named, with what to mend; it never ends the reading.
"""

import csv
import io
import json


def read_rows(path, table, content, columns, skipped):
    """(line number, row, fault) of each row of a table; `fault` says why a row can't be used, or is "".

    path, table: where it lies, for messages. content: its bytes. columns: the names of the file column and of the
        caption column. skipped: lines that are no row at all are added to it, as "name: reason".

    Raises ValueError where it is not UTF-8, no table of its kind, or lacks one of the columns.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{table} in {path} is not UTF-8 text ({error.reason}). Save it as UTF-8."
        ) from None
    try:
        if table.lower().endswith(".jsonl"):
            rows = _json_rows(text, table, skipped)
            present = list(dict.fromkeys(key for _, row, _ in rows for key in row))
        else:
            rows, present = _csv_rows(text, table, columns[1])
    except csv.Error as error:
        raise ValueError(
            f"{table} in {path} cannot be read as a table: {error}. Save it again as CSV UTF-8."
        ) from None
    except ValueError as error:
        raise ValueError(f"{table} in {path} is {error}") from None
    missing = [column for column in columns if column not in present]
    if missing:
        raise ValueError(
            f"{table} in {path} has no column {' or '.join(map(repr, missing))}; its columns are "
            f"{', '.join(map(repr, present)) or 'none'}. Name them with file_column= and text_column=."
        )
    return rows


def _csv_rows(text, table, text_column):
    """The rows of a CSV or TSV file and the names of its columns."""
    header = text.lstrip().partition("\n")[0]
    delimiter = max(",;\t", key=header.count)  # spreadsheets of half the world write semicolons
    reader = csv.DictReader(
        io.StringIO(text), delimiter=delimiter, skipinitialspace=True, restval=""
    )
    present = _without_empty_end([name.strip() for name in reader.fieldnames or []])
    reader.fieldnames, rows = present, []
    for row in reader:
        fault, surplus = "", _without_empty_end(row.pop(None, []))  # more cells than columns
        if surplus and present[-1:] == [text_column]:  # a caption with commas, without quotes
            row[text_column] = f"{delimiter.strip()} ".join([row[text_column], *surplus])
        elif surplus:
            fault = (
                f"line {reader.line_num} of {table} has more cells than the header; put a text that holds "
                f"{delimiter!r} in quotes"
            )
        rows.append((reader.line_num, row, fault))
    return rows, present


def _without_empty_end(cells):
    """The cells up to the last that holds something: spreadsheets fill lines up with commas."""
    filled = [number for number, cell in enumerate(cells, 1) if cell.strip()]
    return cells[: max(filled, default=0)]


def _json_rows(text, table, skipped):
    """The rows of a file of JSON lines; lines that hold no object are skipped by number."""
    rows, broken = [], []
    for number, line in enumerate(text.split("\n"), 1):  # JSON allows other line ends in a text
        row = _parsed(json.loads, line)
        if isinstance(row, dict):
            rows.append((number, row, ""))
        elif line.strip():
            broken.append(f"{table} line {number}: not a JSON object")
    whole, _ = _parsed(json.JSONDecoder().raw_decode, text.strip()) or (None, 0)
    is_array = isinstance(whole, list) and any(isinstance(row, dict) for row in whole)
    if is_array or not rows:
        kind = {list: "but one JSON array", dict: "but JSON that runs over several lines"}
        raise ValueError(
            f"not JSON lines {kind.get(type(whole), '(no line holds a JSON object)')}. Write one "
            '{"file_name": ..., "text": ...} on each line, without commas between the lines.'
        )
    skipped += broken
    return rows


def _parsed(parse, text):
    """What a JSON parser makes of a text; None where it fails."""
    try:
        return parse(text)
    except (ValueError, RecursionError):
        return None
