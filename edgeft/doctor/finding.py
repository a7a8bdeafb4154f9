"""What one check found."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

State = Literal["ok", "note", "broken"]


@dataclass(frozen=True)
class Finding:
    """`topic` and one sentence, `text`. A `note` is worth knowing; what is `broken` cannot work and has `advice`, which
    a note may have as well. `facts` are the same for programs, sizes in bytes."""

    topic: str
    state: State
    text: str
    advice: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def healthy(findings: Sequence[Finding]) -> bool:
    """Whether nothing is broken."""
    return all(finding.state != "broken" for finding in findings)


def size(n_bytes: float) -> str:
    """`950 MB`, `12.3 GB`; powers of 1000."""
    return f"{n_bytes / 1e9:.1f} GB" if n_bytes >= 1e9 else f"{n_bytes / 1e6:.0f} MB"
