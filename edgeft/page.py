"""The look that every page of edgeft has: one style for light, dark and paper, no script, nothing fetched."""

from html import escape
from pathlib import Path

STYLE = Path(__file__).parent / "assets" / "report.css"
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(title: str, kicker: str, header: str, body: str) -> str:
    """A whole page: `title` and `kicker` are text; `header` stands under the title, and `body` below it, as HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}: {escape(kicker)}</title><style>{STYLE.read_text(encoding='utf-8')}</style></head>\n"
        f'<body><main><header><p class="kicker">{escape(kicker)}</p><h1>{escape(title)}</h1>{header}</header>\n'
        f"{body}\n</main></body></html>\n"
    )
