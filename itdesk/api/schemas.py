"""The JSON schemas of all bodies, queries and answers, as the OpenAPI document shares them."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import TypeAdapter

from itdesk.api.route import Query, Route

Json = dict[str, Any]
Mode = Literal["validation", "serialization"]

REF = "#/components/schemas/"


class Schemas:
    """The JSON schemas of all bodies, queries and answers, with shared definitions hoisted."""

    def __init__(self, routes: Sequence[Route]) -> None:
        wanted: dict[tuple[Mode, Any], TypeAdapter[Any]] = {}
        for route in routes:
            for model in (route.body, route.query):
                if model is not None:
                    wanted["validation", model] = TypeAdapter(model)
            for answer in (route.response, *route.also.values()):
                if answer is not None and not isinstance(answer, Mapping):
                    wanted["serialization", answer] = TypeAdapter(answer)
        made, shared = TypeAdapter.json_schemas(
            [(key, key[0], adapter) for key, adapter in wanted.items()],
            ref_template=REF + "{model}",
        )
        self._made = {key: made[key, key[0]] for key in wanted}
        self.components: Json = dict(shared.get("$defs", {}))
        self._queries = {
            model: self._as_parameters(schema)
            for (_, model), schema in self._made.items()
            if isinstance(model, type) and issubclass(model, Query)
        }
        seen: set[str] = set()
        for (mode, _), schema in self._made.items():
            if mode == "validation":
                _say_no_nul(schema, self.components, seen)

    def of(self, kind: Any, mode: Mode = "serialization") -> Json:
        """Return the schema of a type, mostly a reference; a mapping is a schema by itself."""
        return dict(kind) if isinstance(kind, Mapping) else dict(self._made[mode, kind])

    def parameters(self, query: type[Query]) -> list[Json]:
        """Return the parameters that a query takes."""
        return list(self._queries[query])

    def _as_parameters(self, schema: Json) -> list[Json]:
        """Turn the schema of a query into parameters, which OpenAPI keeps apart from bodies."""
        if "$ref" in schema:
            schema = self.components.pop(schema["$ref"].removeprefix(REF))
        required = schema.get("required", ())
        parameters = []
        for name, field in schema.get("properties", {}).items():
            shown = {key: value for key, value in field.items() if key != "title"}
            parameter: Json = {"name": name, "in": "query", "required": name in required}
            if "description" in shown:
                parameter["description"] = shown.pop("description")
            parameter["schema"] = _without_null(shown)
            parameters.append(parameter)
        return parameters


def _say_no_nul(schema: Any, components: Json, seen: set[str]) -> None:
    """Say of every free string of a body what the reader demands of it: no NUL."""
    if isinstance(schema, list):
        for member in schema:
            _say_no_nul(member, components, seen)
    elif isinstance(schema, dict):
        name = str(schema.get("$ref", "")).removeprefix(REF)
        if name in components and name not in seen:
            seen.add(name)
            _say_no_nul(components[name], components, seen)
        if schema.get("type") == "string" and not schema.keys() & {"pattern", "enum", "format"}:
            schema["pattern"] = "^[^\\x00]*$"
        for member in schema.values():
            _say_no_nul(member, components, seen)


def _without_null(schema: Json) -> Json:
    """Drop null from what a query parameter takes: a query string can only leave it out."""
    options = [option for option in schema.get("anyOf", ()) if option != {"type": "null"}]
    rest = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
    if schema.get("default") is not None:
        rest["default"] = schema["default"]
    if len(options) == 1:
        return {**options[0], **rest}
    return {**rest, "anyOf": options} if options else rest
