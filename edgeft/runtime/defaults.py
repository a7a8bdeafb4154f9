"""What a model is used with unless a call says otherwise: a bundle brings it along."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeft.errors import BundleError

if TYPE_CHECKING:
    from edgeft.runtime.bundle import Bundle

OPTIONS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repeat_penalty",
    "repeat_last_n",
    "seed",
    "max_new_tokens",
    "stop",
)
CONSTRAINTS = ("schema", "grammar", "regex", "choices")


class Defaults(NamedTuple):
    """`options` of `chat`; the `system` message of chats without one; `labels` of `classify` with the calibration
    measured for them: a `temperature`, and the `threshold` below which no label is chosen. `n_ctx` in tokens."""

    options: Mapping[str, Any] = MappingProxyType({})
    system: str | None = None
    labels: Sequence[str] = ()
    temperature: float = 1.0
    threshold: float = 0.0
    n_ctx: int | None = None

    def merged(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """`options` over the own ones. A constraint, even None, takes the place of any other."""
        given = any(kind in options for kind in CONSTRAINTS)
        own = {key: value for key, value in self.options.items() if not (given and key in CONSTRAINTS)}
        return own | dict(options)


def bundle_defaults(bundle: "Bundle") -> Defaults:
    """From a bundle's files for `generation`, `schema`, `grammar`, `labels` and `calibration`. Raises BundleError."""
    generation, labels = _object(bundle, "generation"), bundle.json("labels") or ()
    calibration = _object(bundle, "calibration")
    if isinstance(labels, Mapping) or not all(isinstance(label, str) for label in labels):
        raise BundleError(f"{bundle.file('labels')}: not a list of texts; pack it again")
    options = {key: generation[key] for key in OPTIONS if key in generation}
    grammar = bundle.file("grammar")
    if (schema := bundle.json("schema")) is not None:
        options["schema"] = schema
    elif grammar is not None:
        options["grammar"] = grammar.read_text(encoding="utf-8")
    return Defaults(
        options=options,
        system=generation.get("system"),
        labels=labels,
        temperature=_number(bundle, calibration, "temperature", 1.0),
        threshold=_number(bundle, calibration, "threshold", 0.0),
        n_ctx=generation.get("n_ctx"),
    )


def _object(bundle: "Bundle", role: str) -> Mapping[str, Any]:
    found = bundle.json(role)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise BundleError(f"{bundle.file(role)}: no JSON object; pack it again")
    return found


def _number(bundle: "Bundle", calibration: Mapping[str, Any], key: str, default: float) -> float:
    found = calibration.get(key, default)
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise BundleError(f"{bundle.file('calibration')}: {key} {found!r} is no number; pack it again")
    return float(found)
