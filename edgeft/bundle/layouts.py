"""Folders that other programs load: Ollama, transformers, peft and llama.cpp, onnxruntime-genai, transformers.js."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

from edgeft.artifact import sha256_file
from edgeft.bundle.card import Form, model_card
from edgeft.bundle.contents import (
    NANO_FOLDER,
    Extras,
    copy_file,
    generation_defaults,
    model_items,
    shipped_entry,
)
from edgeft.bundle.ollama import modelfile
from edgeft.bundle.run import NANO, Run
from edgeft.checkpoint_files import weight_files
from edgeft.console import silent_log
from edgeft.errors import UsageError
from edgeft.extras import extra_needed
from edgeft.runs import entry_folder
from edgeft.runtime.bundle_folder import write_folder
from edgeft.runtime.header import check_gguf

ONNX_MARKS = {"genai": "genai_config.json", "transformers.js": "onnx"}
"""What an exported ONNX folder has when it is in that layout."""


def write_layout(run: Run, layout: str, out: Path, extras: Extras, *, failed: bool = False) -> None:
    """Write the new folder `out` in one of LAYOUTS, a model card in each.

    Raises GateFailed for a run that missed its budgets unless `failed` allows it, UsageError when the run has nothing
    for that layout, BundleError when `out` exists, ArtifactError when the disk refuses.
    """
    fill, form = LAYOUTS[layout]
    if not failed:
        run.check_passed()

    def write(folder: Path) -> None:
        fill(run, folder, extras)
        if not (folder / "README.md").exists():
            (folder / "README.md").write_text(model_card(run, extras, form), encoding="utf-8")
        for text in extras.license_files:
            copy_file(text, folder / text.name)

    write_folder(out, write)


def _ollama(run: Run, folder: Path, extras: Extras) -> None:
    """Modelfile and GGUF: `ollama create NAME -f Modelfile`."""
    entry = shipped_entry(run, extras.file)
    if entry["format"] != "gguf":
        raise UsageError(f"Ollama loads GGUF files, not {entry['format']}; choose one with --file")
    path = run.stages["export"].file(entry["file"])
    texts = {file.name: _text(file) for file in extras.license_files}
    content = modelfile(path.name, check_gguf(path), generation_defaults(run), texts)
    (folder / "Modelfile").write_text(content, encoding="utf-8")
    copy_file(path, folder / path.name)


def _huggingface(run: Run, folder: Path, extras: Extras) -> None:
    """The final model, merged and not quantized, as transformers loads it."""
    for name in run.model.files:
        copy_file(run.model.path / name, folder / name)


def _peft(run: Run, folder: Path, extras: Extras) -> None:
    """The adapter alone, as peft loads it onto the base; where the base is at hand, as a GGUF LoRA too.

    Both say by sha256 which base they are for; a base that is not the one trained on is refused.
    """
    train = run.stages.get("train")
    names = [name for name in train.files if name.startswith("adapter/")] if train else []
    if not train or not names:
        raise UsageError("the run trained no adapter (train.method: full); take the whole model: --layout huggingface")
    for name in names:
        copy_file(train.path / name, folder / name.removeprefix("adapter/"))
    provenance = run.model.file("provenance.json")
    copy_file(provenance, folder / "provenance.json")
    base = extras.base or (NANO_FOLDER if run.values.get("model.base") == NANO else None)
    if base is None:
        return
    if _weights_sha256(base) != json.loads(provenance.read_bytes())["base_sha256"]:
        raise UsageError(f"{base}: not the base the adapter was trained on (its weights have another sha256)")
    with extra_needed("gguf,train"):
        from edgeft.export.gguf.export import export_lora
    export_lora(base, train.path / "adapter", folder, name=run.name, provenance={}, log=silent_log())


def _weights_sha256(folder: Path) -> str:
    """As provenance.json has it (`training.models.base_sha256`): of the sha256 of each file of weights."""
    digests = [bytes.fromhex(sha256_file(path)) for path in weight_files(folder)]
    return hashlib.sha256(b"".join(digests)).hexdigest()


def _onnx(layout: str) -> Callable[[Run, Path, Extras], None]:
    def fill(run: Run, folder: Path, extras: Extras) -> None:
        """The exported folder that is in this layout already."""
        prefix, mark = "model/", ONNX_MARKS[layout]
        items = list(model_items(run, _entry_in(run, mark) if extras.file is None else extras.file))
        names = {item.name.removeprefix(prefix) for item in items}
        if not any(name == mark or name.startswith(f"{mark}/") for name in names):
            raise UsageError(f"the exported file has no {mark}; export one with `layout: {layout}` in `export.onnx`")
        for item in items:
            copy_file(Path(str(item.content)), folder / item.name.removeprefix(prefix))

    return fill


def _entry_in(run: Run, mark: str) -> str | None:
    """The last exported folder that holds `mark`."""
    folders = [entry_folder(entry) for entry in run.json("export", "files.json")]
    names = [f"{name}/" for name in run.stages["export"].files]
    found = [folder for folder in folders if any(name.startswith(f"{folder}/{mark}/") for name in names)]
    return found[-1] if found else None


LAYOUTS: dict[str, tuple[Callable[[Run, Path, Extras], None], Form]] = {
    "ollama": (_ollama, Form("```bash\nollama create NAME -f Modelfile\nollama run NAME\n```")),
    "huggingface": (
        _huggingface,
        Form(
            '```python\nfrom transformers import pipeline\n\npipeline(model="FOLDER")\n```',
            "transformers",
            "the whole model, not quantized",
        ),
    ),
    "peft": (
        _peft,
        Form(
            '```python\nfrom peft import PeftModel\n\nPeftModel.from_pretrained(base_model, "FOLDER")\n```',
            "peft",
            "the adapter alone, for the base model named above",
        ),
    ),
    "genai": (_onnx("genai"), Form('```python\nimport onnxruntime_genai\n\nonnxruntime_genai.Model("FOLDER")\n```')),
    "transformers.js": (
        _onnx("transformers.js"),
        Form('```js\nimport { pipeline } from "@huggingface/transformers";\n\nawait pipeline("TASK", "FOLDER");\n```'),
    ),
}
"""Layout → what fills the folder, and how its card says it is used."""


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not UTF-8 text; save it as UTF-8") from None
