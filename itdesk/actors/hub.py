"""The hub: every event of the journal to every websocket that may see it, in order, once.

The journal's dense numbers are all that counts. A client goes live when it was sent everything up
to where the hub has read; from then on the hub sends it what is beyond its own position, so that
neither the change-over nor a broken broadcast ever loses or repeats an event.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from itertools import batched as _batched  # type: ignore[attr-defined]
