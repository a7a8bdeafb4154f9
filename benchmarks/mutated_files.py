"""Does the tool survive damaged model files? Hundreds of mutants through the real command line.

    python benchmarks/mutated_files.py FOLDER... [--ftype F32 ...] [--count 500] [--bench 40] [--out FILE.json]

Each model FOLDER is exported once per ftype; the mutants (tests/mutated_gguf.py: cuts, counts, values, types, keys,
offsets, weights, bit flips, other formats) are drawn evenly from the kinds of damage by a fixed seed. `edgeft inspect
--load` runs on every one, `edgeft bench FILE --data` on --bench of them, in turn one that runs, one that llama.cpp
refused, one with bad logits, one whose header was refused, and so on: of models with a chat template where there are
any, for bench asks nothing of others. A run is good when it ends in time with exit code 0, 1 or 2, no traceback, and,
where it fails, a line that begins with `error:` and names the file. `how` tells who stopped it: the header check,
llama.cpp's own, the child that died or hung, bad logits, or nobody: damage that leaves a model that runs.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from edgeft.bench.host import describe_host
from edgeft.console import silent_log
from edgeft.export.gguf.export import export_gguf
from edgeft.runtime.gguf_format import read_header

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.mutated_gguf import chosen  # noqa: E402

SEED = 2024
LOAD_LIMIT_S, HANGS_S = 60.0, 240.0
INSPECT = ("inspect", "--load", "--timeout", str(LOAD_LIMIT_S))
BENCH = ("bench", "--limit", "1", "--max-new-tokens", "4", "--n-ctx", "128", "--prompts", "1", "--n-gen", "2")
EXAMPLE = {"messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]}
REASONS = (
    ("was killed", "died"),
    ("hangs", "hung"),
    ("not finite;", "bad logits"),
    ("every logit is", "bad logits"),
    ("no chat template", "no template"),
    ("llama.cpp", "llama.cpp refused"),
    ("Vocabulary", "llama.cpp refused"),
)
"""What a message holds, and who stopped the file; anything else is the header check."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", metavar="FOLDER", type=Path, nargs="+")
    parser.add_argument("--ftype", dest="ftypes", action="append", help="Exported types; repeatable. [F32]")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--bench", type=int, default=40, help="Files that `edgeft bench` is tried on.")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "mutated_files.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        files = _export(args.folders, args.ftypes or ["F32"], Path(temporary))
        rows = _rows(files, args.count, args.bench, Path(temporary))
    result = {"host": describe_host(), "seed": SEED, "files": [path.name for path in files], "summary": _summary(rows)}
    args.out.write_text(json.dumps(result | {"runs": rows}, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result["summary"], indent=1))
    bad = [row for row in rows if row["problem"]]
    for row in bad:
        print(f"BAD {row['command']} {row['file']} {row['damage']}: {row['problem']}")
    sys.exit(bool(bad))


def _export(folders: list[Path], ftypes: list[str], out: Path) -> list[Path]:
    files = []
    for folder in folders:
        name = folder.resolve().name
        for record in export_gguf(folder, out, name=name, ftypes=ftypes, provenance={}, log=silent_log()):
            files.append(out / record["file"])
    return files


def _rows(files: list[Path], count: int, n_bench: int, out: Path) -> list[dict[str, Any]]:
    mutants = []
    for at, path in enumerate(files):
        share = count // len(files) + (at < count % len(files))
        mutants += [(path.name, damage, content) for damage, content in chosen(path, share, seed=SEED + at)]
    data, mutant = out / "data.jsonl", out / "mutant.gguf"
    data.write_text(json.dumps(EXAMPLE) + "\n", encoding="utf-8")
    rows: list[dict[str, Any]] = []
    by_end: dict[str, list[tuple[str, str, bytes]]] = {}
    for number, (file, damage, content) in enumerate(mutants, 1):
        mutant.write_bytes(content)
        row = {"file": file, "damage": damage} | _run((*INSPECT, str(mutant)), mutant)
        rows.append(row)
        by_end.setdefault(row["how"], []).append((file, damage, content))
        if number % 50 == 0:
            print(f"{number} of {len(mutants)}", file=sys.stderr, flush=True)
    talking = {path.name for path in files if read_header(path).get("tokenizer.chat_template")}
    for group in by_end.values():
        group.sort(key=lambda one: one[0] not in talking)
    turns = itertools.chain.from_iterable(itertools.zip_longest(*by_end.values()))
    for file, damage, content in itertools.islice(filter(None, turns), n_bench):
        mutant.write_bytes(content)
        command = (*BENCH, "--repetitions", "1", "--data", str(data), str(mutant))
        rows.append({"file": file, "damage": damage} | _run(command, mutant))
    return rows


def _run(words: tuple[str, ...], file: Path) -> dict[str, Any]:
    started = time.perf_counter()
    command = (sys.executable, "-m", "edgeft", *words)
    try:
        done = subprocess.run(command, capture_output=True, timeout=HANGS_S, cwd=file.parent)
    except subprocess.TimeoutExpired:
        return {"command": words[0], "exit_code": None, "how": "hung", "problem": "the tool hangs", "seconds": HANGS_S}
    talk = done.stderr.decode(errors="replace")
    said = next((line for line in talk.splitlines() if line.startswith("error:")), "")
    return {
        "command": words[0],
        "exit_code": done.returncode,
        "how": _how(done.returncode, talk),
        "problem": _problem(done.returncode, talk, said, done.stdout, file),
        "said": said.replace(f"{file}", "FILE").removeprefix("error: "),
        "seconds": round(time.perf_counter() - started, 2),
    }


def _how(code: int, talk: str) -> str:
    if code == 0:
        return "runs"
    return next((how for text, how in REASONS if text in talk), "header refused")


def _problem(code: int, talk: str, said: str, output: bytes, file: Path) -> str | None:
    if code not in (0, 1, 2):
        return f"exit code {code}: {talk[-300:]}"
    if "Traceback" in talk:
        return f"a traceback: {talk[-300:]}"
    if code == 0:
        return None if output.strip() else "no output"
    return None if str(file) in said else f"no clear message: {talk[-300:]}"


def _summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        command: {
            "files": len(some),
            "problems": sum(row["problem"] is not None for row in some),
            "exit_codes": dict(sorted(Counter(str(row["exit_code"]) for row in some).items())),
            "how": dict(Counter(row["how"] for row in some).most_common()),
            "slowest_s": max((row["seconds"] for row in some), default=0.0),
        }
        for command in ("inspect", "bench")
        if (some := [row for row in rows if row["command"] == command])
    }


if __name__ == "__main__":
    main()
