"""The vocabulary of language models: what the desk gives one to read, and what a model can do.

A model writes answers that the desk does not trust: they are parsed, checked and shown as
suggestions. When to ask, for how long, how many at a time, and what to do without an answer is the
desk's business; a plugin only carries one question to its model and one answer back.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from itdesk.frozen import frozen


@frozen
class Prompt:
    """What a model reads: the desk's own instruction, and the material, which is others' words."""

    instruction: str
    material: str


@runtime_checkable
class LanguageModel(Protocol):
    """A language model somewhere; asked from several places at a time, each bounded by the desk.

    Every method raises `itdesk.errors.Unavailable` when the model cannot be reached, breaks off or
    answers with more than a sane amount. The desk cancels what takes too long: let go at once.
    """

    name: str
    """What answers name as their source; the plugin's name."""
    embedding: str | None
    """Which model turns texts into numbers: those of another are not comparable; None: none."""

    async def generate(self, prompt: Prompt, *, schema: Mapping[str, Any]) -> str:
        """Return the JSON text of an answer in this JSON schema, as far as the model obeys."""

    def stream(self, prompt: Prompt, *, schema: Mapping[str, Any]) -> AsyncIterator[str]:
        """Yield the same text piece by piece; it is whole when the iterator ends by itself."""

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Return one vector a text."""

    async def check(self) -> str:
        """Try for real and return what was found; a DeskError says what to mend."""
