"""Names a file inside a bundle may have: a short list of what is allowed, the same on every system.

Letters without accents, digits, `.`, `_`, `+` and `-`, in at most MAX_DEPTH parts joined by `/`. So no name leaves the
folder, hides, is spelled in two ways, or means a device on Windows.
"""

import re

MAX_DEPTH, MAX_NAME_BYTES = 4, 200
PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+-]*")
DEVICES = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
"""https://learn.microsoft.com/windows/win32/fileio/naming-a-file; an ending does not help."""


def name_problem(name: str) -> str | None:
    """Why `name` may not stand in a bundle, or None."""
    if not 0 < len(name.encode("utf-8", "replace")) <= MAX_NAME_BYTES:
        return f"is empty or longer than {MAX_NAME_BYTES} bytes"
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "is an absolute path"
    parts = name.split("/")
    if ".." in parts:
        return "leads out of the bundle"
    if len(parts) > MAX_DEPTH:
        return f"is more than {MAX_DEPTH} folders deep"
    for part in parts:
        if not PART.fullmatch(part) or part.endswith("."):
            return "has characters that a bundle does not allow (letters, digits and ._+- inside a part)"
        if DEVICES.fullmatch(part):
            return f"has the name of a device ({part})"
    return None


def names_problem(names: list[str]) -> str | None:
    """What is wrong with these names together, or None.

    Two that differ in case only are one file on some systems; a file cannot be a folder of another.
    """
    seen: dict[str, str] = {}
    for name in names:
        problem = name_problem(name)
        if problem:
            return f"the name {name!r} {problem}"
        folded = name.lower()
        if folded in seen:
            twice = "is there twice" if seen[folded] == name else f"and {seen[folded]!r} differ in case only"
            return f"the name {name!r} {twice}"
        seen[folded] = name
    for folded, name in seen.items():
        parents = folded.split("/")[:-1]
        if any("/".join(parents[: depth + 1]) in seen for depth in range(len(parents))):
            return f"the name {name!r} lies under a name that is a file"
    folders: dict[str, str] = {}
    for name in names:
        parts = name.split("/")[:-1]
        for depth in range(len(parts)):
            folder = "/".join(parts[: depth + 1])
            if folders.setdefault(folder.lower(), folder) != folder:
                return f"the folders {folder!r} and {folders[folder.lower()]!r} differ in case only"
    return None
