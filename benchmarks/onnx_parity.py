"""Does onnxruntime, old and new, compute of our ONNX folders what transformers computes of the models they came from?

Tiny random models of every decoder (`tests/tiny_models.py`), written as fp32, int8 and int4. In the onnxruntime
installed here: greedy tokens of fp32 equal to torch's of 128, for one sequence and for a batch of three padded in
front; of each folder mean KL in nats and equal most likely tokens over the tokens of the batch's prompts. In each
other onnxruntime (`--onnxruntime`, folders of `pip install --target`): whether it loads the folder, and how many
of 32 greedy tokens are those of the version here. Folders that need a newer one are marked with what they need.

    PYTHONPATH=. python benchmarks/onnx_parity.py [--onnxruntime FOLDER ...] [--docs PAGE]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from edgeft.bench.host import describe_host
from edgeft.console import silent_log
from edgeft.export.onnx.export import export_onnx
from edgeft.export.onnx.settings import OnnxSettings
from edgeft.parity.numbers import kl_divergence, top1_agrees
from edgeft.runtime.ort import onnxruntime
from tests.export.onnx.sessions import greedy, open_graph, prompts, torch_greedy, torch_logits
from tests.tiny_models import DECODERS, make_model

RESULTS = Path(__file__).resolve().parent / "results" / "onnx_parity.json"
DTYPES = ("fp32", "int8", "int4")
N_GENERATED, N_ELSEWHERE = 128, 32
START, END = "<!-- made by benchmarks/onnx_parity.py -->", "<!-- end of onnx_parity -->"
ELSEWHERE = """
import json, sys
from pathlib import Path
import numpy as np
from tests.export.onnx.sessions import greedy, open_graph
prompt = np.array([json.loads(sys.argv[1])])
print(json.dumps([greedy(open_graph(Path(path)), prompt, np.ones_like(prompt), int(sys.argv[2]))[0][0].tolist()
                  for path in sys.argv[3:]]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--onnxruntime", type=Path, action="append", default=[], help="a folder with another version")
    parser.add_argument("--docs", type=Path, help="the page whose table is written anew")
    parser.add_argument("--kind", action="append", help="only these models")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    others = {version_in(site): site for site in arguments.onnxruntime}
    models = {}
    for kind in arguments.kind or DECODERS:
        with tempfile.TemporaryDirectory() as scratch:
            models[kind] = measure(kind, Path(scratch), others)
        print(kind, json.dumps(models[kind]), flush=True)
    if not arguments.kind:
        record = {"host": describe_host(), "onnxruntime": onnxruntime.__version__, "n_generated": N_GENERATED}
        RESULTS.write_text(json.dumps(record | {"models": models}, indent=1) + "\n", encoding="utf-8")
    if arguments.docs:
        write_table(arguments.docs, models, list(others))


def version_in(site: Path) -> str:
    code = "import onnxruntime; print(onnxruntime.__version__)"
    environment = os.environ | {"PYTHONPATH": str(site)}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True).stdout.strip()


def measure(kind: str, scratch: Path, others: dict[str, Path]) -> dict[str, Any]:
    folder = make_model(scratch / "model", kind)
    entries = {dtype: OnnxSettings(dtype) for dtype in DTYPES}  # type: ignore[arg-type]
    records = export_onnx(folder, scratch, entries=entries, provenance={}, log=silent_log())
    graphs = {record["ftype"]: scratch / record["file"] for record in records}
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids, mask = prompts(model.config.get_text_config().vocab_size)
    seen, expected = mask.astype(bool), torch_logits(model, ids, mask)
    result: dict[str, Any] = {"min_ort": {record["ftype"]: record["min_ort"] for record in records}}
    for dtype, graph in graphs.items():
        session = open_graph(graph)
        n_tokens = N_GENERATED if dtype == "fp32" else 1
        tokens, logits = greedy(session, ids, mask, n_tokens)
        result[f"KL {dtype}"] = float(kl_divergence(expected[seen], logits[seen]).mean())
        result[f"top-1 {dtype}"] = float(top1_agrees(expected[seen], logits[seen]).mean())
        if dtype == "fp32":
            result["equal, batch of 3"] = (tokens == torch_greedy(model, ids, mask, n_tokens)).sum(axis=1).tolist()
            alone = greedy(session, ids[:1], mask[:1], n_tokens)[0] == torch_greedy(model, ids[:1], mask[:1], n_tokens)
            result["equal, batch of 1"] = int(alone.sum())
    for version, site in others.items():
        result[version] = elsewhere(graphs, result["min_ort"], version, site, ids[0])
    return result


def elsewhere(
    graphs: dict[str, Path], needed: dict[str, str], version: str, site: Path, prompt: np.ndarray
) -> dict[str, Any]:
    """By dtype, of N_ELSEWHERE greedy tokens those equal to the version here; or the version that is needed."""
    usable = {dtype: path for dtype, path in graphs.items() if _numbers(needed[dtype]) <= _numbers(version)}
    found: dict[str, Any] = {dtype: f"needs {needed[dtype]}" for dtype in graphs}
    root = Path(__file__).resolve().parent.parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(site), str(root)])}
    command = [sys.executable, "-c", ELSEWHERE, json.dumps(prompt.tolist()), str(N_ELSEWHERE)]
    done = subprocess.run([*command, *map(str, usable.values())], env=environment, capture_output=True, text=True)
    if done.returncode:
        return found | dict.fromkeys(usable, f"failed: {done.stderr.strip().splitlines()[-1]}")
    for (dtype, path), tokens in zip(usable.items(), json.loads(done.stdout), strict=True):
        here, _ = greedy(open_graph(path), prompt[None], np.ones_like(prompt[None]), N_ELSEWHERE)
        found[dtype] = int((here[0] == np.array(tokens)).sum())
    return found


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


def write_table(page: Path, models: dict[str, Any], versions: list[str]) -> None:
    """Replace what stands between the two marks of `page`."""
    head = ["decoder", "tokens equal, one", "padded three", "KL fp32", "KL int8", "top-1", "KL int4", "top-1"]
    rows = [
        [*head, *(f"in {version}: fp32, int8, int4" for version in versions)],
        ["---"] * (len(head) + len(versions)),
    ]
    for kind, row in models.items():
        cells = [kind, f"{row['equal, batch of 1']} of {N_GENERATED}", ", ".join(map(str, row["equal, batch of 3"]))]
        cells.append(f"{row['KL fp32']:.1e}")
        for dtype in ("int8", "int4"):
            cells += [f"{row[f'KL {dtype}']:.1e}", f"{row[f'top-1 {dtype}']:.3f}"]
        cells += [", ".join(str(row[version][dtype]) for dtype in DTYPES) for version in versions]
        rows.append(cells)
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in rows)
    before, _, rest = page.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{START}\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
