"""Documents that a strict JSON reader must refuse or survive (P-04); for every route with a body.

`REFUSED` holds what is not readable at all: 400 whatever the route expects. `WRONG` is readable
JSON that no body of ours means: 400 or 422. `GOOD` must be read.
"""

from typing import Any

import orjson


def _member(text: str) -> bytes:
    return b'{"title": ' + text.encode() + b"}"


REFUSED: dict[str, bytes] = {
    # Not a document at all.
    "empty": b"",
    "blank": b" \t\r\n",
    "word": b"nul",
    "garbage": b"GET / HTTP/1.1",
    "xml": b"<?xml version='1.0'?><a/>",
    "form": b"title=a&body=b",
    "cut object": b'{"title": "a"',
    "cut string": b'{"title": "a',
    "cut key": b'{"tit',
    "cut array": b'{"tags": ["a"',
    "only open": b"{",
    "only close": b"}",
    "two documents": b"{}{}",
    "two lines": b"{}\n{}",
    "tail": b'{"title": "a"} x',
    # Grammar that other languages allow.
    "single quotes": b"{'title': 'a'}",
    "bare key": b'{title: "a"}',
    "trailing comma object": b'{"title": "a",}',
    "trailing comma array": b'{"tags": ["a",]}',
    "leading comma": b'{,"title": "a"}',
    "missing colon": b'{"title" "a"}',
    "missing comma": b'{"title": "a" "body": "b"}',
    "line comment": b'{"title": "a"} // really',
    "block comment": b'{/* here */"title": "a"}',
    "python true": _member("True"),
    "python none": _member("None"),
    "undefined": _member("undefined"),
    "semicolon": b'{"title": "a"};',
    "padding prefix": b')]}\',\n{"title": "a"}',
    # Numbers that are none.
    "nan": _member("NaN"),
    "infinity": _member("Infinity"),
    "minus infinity": _member("-Infinity"),
    "plus sign": _member("+1"),
    "leading zero": _member("01"),
    "no integer part": _member(".5"),
    "no fraction": _member("1."),
    "no exponent": _member("1e"),
    "hexadecimal": _member("0x10"),
    "underscore": _member("1_000"),
    "lone minus": _member("-"),
    "too large a float": _member("1e400"),
    "too small a float": _member("-1e400"),
    # Integers that no column holds, and that other readers silently round.
    "64 bits plus 1": _member("9223372036854775808"),
    "64 bits minus 1": _member("-9223372036854775809"),
    "unsigned 64 bits": _member("18446744073709551615"),
    "65 bits": _member("18446744073709551616"),
    "5000 digits": _member("9" * 5000),
    "300 digits": _member("7" * 300),
    "huge in array": b'{"tags": [1, 2, 99999999999999999999]}',
    # Keys said twice.
    "duplicate key": b'{"title": "a", "title": "b"}',
    "duplicate key equal": b'{"title": "a", "title": "a"}',
    "duplicate key escaped": b'{"title": "a", "\\u0074itle": "b"}',
    "duplicate key deep": b'{"x": {"y": [{"z": 1, "z": 2}]}}',
    "duplicate empty key": b'{"": 1, "": 2}',
    "duplicate role": b'{"title": "a", "role": "user", "role": "admin"}',
    "duplicate beside colons": b'{"a:b": "c:d", "a:b": ":"}',
    # Text that no database takes.
    "nul": _member('"a\\u0000b"'),
    "nul alone": _member('"\\u0000"'),
    "nul key": b'{"ti\\u0000tle": "a"}',
    "nul deep": b'{"tags": [["\\u0000"]]}',
    "nul after backslash": _member('"\\\\\\u0000"'),
    "raw nul": b'{"title": "a\x00b"}',
    "raw line feed": b'{"title": "a\nb"}',
    "raw control": b'{"title": "a\x1fb"}',
    "lone high surrogate": _member('"\\ud800"'),
    "lone low surrogate": _member('"\\udc00"'),
    "swapped surrogates": _member('"\\udc00\\ud800"'),
    "high then text": _member('"\\ud83dx"'),
    "surrogate key": b'{"\\ud800": 1}',
    "bad escape": _member('"\\x41"'),
    "short escape": _member('"\\u12"'),
    # Bytes that are not UTF-8.
    "latin 1": b'{"title": "caf\xe9"}',
    "overlong": b'{"title": "\xc0\xaf"}',
    "overlong nul": b'{"title": "\xc0\x80"}',
    "raw surrogate": b'{"title": "\xed\xa0\x80"}',
    "beyond unicode": b'{"title": "\xf4\x90\x80\x80"}',
    "cut sequence": b'{"title": "\xe2\x82"}',
    "continuation first": b'\x80{"title": "a"}',
    "bom": b'\xef\xbb\xbf{"title": "a"}',
    "utf-16": '{"title": "a"}'.encode("utf-16"),
    "utf-16-le": '{"title": "a"}'.encode("utf-16-le"),
    "utf-32": '{"title": "a"}'.encode("utf-32"),
    "no-break space": b'\xc2\xa0{"title": "a"}',
    "form feed": b'\x0c{"title": "a"}',
    # Shapes that cost more than they say.
    "100k arrays": b"[" * 100_000,
    "100k closed arrays": b"[" * 100_000 + b"]" * 100_000,
    "100k objects": b'{"a":' * 100_000,
    "1000 arrays": b'{"tags": ' + b"[" * 1000 + b"]" * 1000 + b"}",
    "33 arrays": b"[" * 33 + b"]" * 33,
    "33 objects": b'{"a":' * 33 + b"1" + b"}" * 33,
    "33 mixed": b'{"a": [' * 17 + b"]}" * 17,
}

WRONG: dict[str, bytes] = {
    "null": b"null",
    "true": b"true",
    "number": b"17",
    "string": b'"title"',
    "empty array": b"[]",
    "array of object": b'[{"title": "a ticket"}]',
    "unknown field": b'{"no_such_field": 1}',
    "prototype": b'{"__proto__": {"role": "admin"}}',
    "dunder": b'{"__class__": "x", "model_config": {}}',
    "empty key": b'{"": ""}',
    "long key": orjson.dumps({"k" * 5000: 1}),
    "many keys": orjson.dumps({f"k{n}": n for n in range(2000)}),
    "control key": b'{"\\u001b[2J": 1}',
    "32 arrays": b"[" * 32 + b"]" * 32,
}

GOOD: dict[str, tuple[bytes, Any]] = {
    "empty object": (b"{}", {}),
    "blanks": (b' \r\n\t{ "a" : 1 }\n', {"a": 1}),
    "colons in text": (b'{"a:b": "::\\":", "c": ":"}', {"a:b": '::":', "c": ":"}),
    "backslashes": (b'{"a": "\\\\", "b": ":"}', {"a": "\\", "b": ":"}),
    "no nul": (b'{"a": "\\\\u0000"}', {"a": "\\u0000"}),
    "pair": (b'{"a": "\\ud83d\\ude00"}', {"a": "\U0001f600"}),
    "raw emoji": ('{"a": "\U0001f600"}'.encode(), {"a": "\U0001f600"}),
    "largest": (b"[9223372036854775807, -9223372036854775807]", [2**63 - 1, 1 - 2**63]),
    "smallest": (b"[-9223372036854775808]", [-(2**63)]),
    "long fraction": (b"[0.12345678901234567890123]", [0.12345678901234568]),
    "long digits in text": (b'["99999999999999999999999"]', ["99999999999999999999999"]),
    "exponent": (b"[1e2, 1E-2, 12345678901234567890e1]", [100.0, 0.01, 123456789012345678900.0]),
    "same key elsewhere": (b'[{"a": 1}, {"a": {"a": 2}}]', [{"a": 1}, {"a": {"a": 2}}]),
    "32 arrays": (b"[" * 32 + b"]" * 32, None),
}
