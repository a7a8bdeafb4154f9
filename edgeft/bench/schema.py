"""JSON answers against a JSON schema, with jsonschema-rs where it is installed (`pip install "edgeft[data]"`)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edgeft.bench.json_values import INVALID, parse_json
from edgeft.bench.scores import Score, share_score
from edgeft.errors import UsageError
from edgeft.extras import extra_needed


def schema_score(schema: Mapping[str, Any], predictions: Sequence[str]) -> Score | None:
    """Share of predictions that are JSON (by `parse_json`) and valid against `schema`; a reference plays no part.

    The draft is the schema's `$schema`, 2020-12 without one. Raises UsageError when `schema` is no schema,
    MissingExtra when jsonschema-rs is not installed.
    """
    is_valid = checker(schema)
    values = [parse_json(text) for text in predictions]
    return share_score("json_schema_valid", [float(value is not INVALID and is_valid(value)) for value in values])


def checker(schema: Mapping[str, Any]) -> Callable[[Any], bool]:
    """Whether a value is valid against `schema`. Raises as `schema_score`; nothing is fetched from a network."""
    with extra_needed("data"):
        import jsonschema_rs
    try:
        validator = jsonschema_rs.validator_for(dict(schema), retriever=_refuse)
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"bench.json_schema: not a JSON schema ({reason}); correct it") from None
    is_valid: Callable[[Any], bool] = validator.is_valid
    return is_valid


def _refuse(uri: str) -> Any:
    raise ValueError(f"{uri} would have to be fetched; write it into $defs")
