"""Tables as CSV (RFC 4180), harmless in a spreadsheet."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any

import orjson

from itdesk.api.route import Call, Reply

MEDIA = "text/csv; charset=utf-8"
# What a spreadsheet would take for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def cell(value: Any) -> str:
    """Return a value as a cell shows it; text that would be a formula gets an apostrophe."""
    if value is None:
        return ""
    if isinstance(value, (list, dict)):
        return orjson.dumps(value).decode()
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    text = str(value)
    return f"'{text}" if isinstance(value, str) and text.lstrip(" ").startswith(_FORMULA) else text


def line(cells: Sequence[str]) -> bytes:
    """Return one line of CSV."""
    written = io.StringIO()
    csv.writer(written).writerow(cells)
    return written.getvalue().encode()


def wants_csv(call: Call) -> bool:
    """Return whether the answer shall be CSV: format=csv, or Accept names it and no other."""
    said: str | None = call.query.format
    if said is not None:
        return said == "csv"
    offered = {
        part.partition(";")[0].strip().lower(): part
        for part in call.request.headers.get("Accept", "").split(",")
    }
    return "text/csv" in offered and "application/json" not in offered


def table(name: str, kind: type, rows: Sequence[Any]) -> Reply:
    """Answer dataclasses of one kind as CSV, to be kept under a name."""
    columns = [field.name for field in fields(kind)]
    body = line(columns) + b"".join(
        line([cell(getattr(row, column)) for column in columns]) for row in rows
    )
    headers: Mapping[str, str] = {
        "Content-Type": MEDIA,
        "Content-Disposition": f'attachment; filename="{name}.csv"',
        "Vary": "Accept",
    }
    return Reply(body, 200, headers)
