"""Which promises have a test: `python -m tests.covered` lists every id with the tests that cite it.

A test cites an id (S0-28, R-05) in its name, docstring or module. What nobody cites is listed last.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

TESTS = Path(__file__).parent

# The inventory: how many promises each origin document and each chapter of proofs has.
PROMISES = {"S0": 38, "S2": 65, "S3": 66, "S4": 64}
PROOFS = (
    "R-01 R-02 R-03 R-04 R-05 R-06 R-08 R-10 R-12 R-13 R-14 R-20 R-21 R-23 R-24 R-26 R-27 R-28"
    " P-01 P-02 P-04 P-05 P-06 P-07 P-08 P-09 P-12 S-01 S-03 S-05 S-06 S-10 S-13 S-15 S-16 S-17"
    " S-18 S-19 S-20 S-22 S-23 S-24 S-25 S-27 S-30 S-31 S-32 S-34 S-35 S-36 S-37 S-38 S-40 S-41"
    " O-01 O-02 O-03 O-04 O-05 O-06 O-09 O-10 O-11 O-12"
).split()
KNOWN = ["S1-00", *PROOFS] + [
    f"{name}-{number:02}" for name, count in PROMISES.items() for number in range(1, count + 1)
]

_ID = re.compile(r"\b(S[0-4]-\d\d|[RPSO]-\d\d)\b")
# "S0-01 to S0-04" cites all four.
_RANGE = re.compile(r"\b(S[0-4]|[RPSO])-(\d\d) to \1-(\d\d)\b")


def cited(text: str) -> set[str]:
    """Return the ids that a text names, ranges included."""
    ids = set(_ID.findall(text))
    for name, first, last in _RANGE.findall(text):
        ids |= {f"{name}-{number:02}" for number in range(int(first), int(last) + 1)}
    return ids & set(KNOWN)


def tests() -> Iterator[tuple[str, set[str]]]:
    """Yield every test with the ids that it, its class or its module's docstring cites."""
    for path in sorted(TESTS.rglob("test_*.py")):
        source = path.read_text()
        tree = ast.parse(source)
        shared = cited(ast.get_docstring(tree) or "")
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                if node.name.startswith("test_"):
                    own = cited(ast.get_source_segment(source, node) or "")
                    own |= cited(re.sub(r"_([RPSO]\d?)_(\d\d)", r" \1-\2 ", node.name.upper()))
                    yield f"{path.relative_to(TESTS)}::{node.name}", own | shared


def main() -> None:
    """Print every id with its tests, then those without one."""
    by_id: dict[str, list[str]] = defaultdict(list)
    for name, ids in tests():
        for cited_id in ids:
            by_id[cited_id].append(name)
    for known in sorted(by_id):
        print(known, *by_id[known], sep="\n    ")
    missing = [known for known in KNOWN if known not in by_id]
    print(f"\n{len(by_id)} of {len(KNOWN)} have a test; without one:", *missing)


if __name__ == "__main__":
    main()
