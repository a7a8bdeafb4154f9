"""Numbers as people read them."""


def share(value: float) -> str:
    """0.9533 → `0.953`; what rounds to 1.000 without being 1 keeps another digit."""
    text = f"{value:.3f}"
    return f"{value:.4f}" if text in ("1.000", "-1.000") and abs(value) < 1 else text


def size(value: float) -> str:
    """6912345 → `6.91 MB`, powers of 1000."""
    scaled, unit = value, "B"
    for bigger in ("KB", "MB", "GB", "TB"):
        if abs(scaled) < 1000:
            break
        scaled, unit = scaled / 1000, bigger
    return f"{value:.0f} B" if unit == "B" else f"{three(scaled)} {unit}"


def milliseconds(value: float) -> str:
    """1234.5 → `1.23 s`, 12.34 → `12.3 ms`."""
    return f"{three(value / 1000)} s" if abs(value) >= 1000 else f"{three(value)} ms"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def count(value: float) -> str:
    """1234567 → `1,234,567`."""
    return f"{value:,.0f}"


def plural(number: int, noun: str) -> str:
    """1 → `1 prompt`, 1200 → `1,200 prompts`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def three(value: float) -> str:
    """Three significant digits without an exponent, unless the number is tiny."""
    if value and abs(value) < 1e-3:
        return f"{value:.1e}"
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{digits}f}" if abs(value) >= 1 or not value else f"{value:.3f}"


def in_unit(value: float, unit: str) -> str:
    """A number in the unit of a gate metric (`share`, `number`, `bytes`, `ms`, `tokens/s`)."""
    if unit == "share":
        return share(value)
    if unit == "bytes":
        return size(value)
    if unit == "ms":
        return milliseconds(value)
    return f"{three(value)} tok/s" if unit == "tokens/s" else three(value)


def signed(text: str) -> str:
    """`text` of a number with its plus sign."""
    return text if text.startswith("-") else f"+{text}"
