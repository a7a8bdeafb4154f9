"""Stage `export` of a classifier: the encoder as ONNX folders, each with its confidence."""

import json
from pathlib import Path

from edgeft.artifact import Artifact
from edgeft.bench.encoder import text_of
from edgeft.bench.examples import read_examples, take
from edgeft.console import Log
from edgeft.export.onnx.encoder_confidence import write_confidence
from edgeft.export.onnx.encoders import EncoderSettings, export_encoder
from edgeft.recipe import Recipe
from edgeft.stages._json import write_json
from edgeft.stages._model import final_model

CALIBRATION_TEXTS = 256
"""Training texts that static int8 is calibrated on."""


def run(recipe: Recipe, inputs: dict[str, Artifact], out: Path, log: Log) -> dict[str, float]:
    """Write a folder for every entry of `export.encoder`, with its confidence, and files.json; metrics are bytes.

    Reads the model and provenance.json of `merge`, train.jsonl and validation.jsonl of `data`. Raises ModelError
    when the model cannot be exported.
    """
    model, data = final_model(inputs), inputs["data"]
    provenance = json.loads(model.file("provenance.json").read_text("utf-8"))
    known = {"version" if key == "edgeft_version" else key: str(value) for key, value in provenance.items()}
    train = take(read_examples(data.file("train.jsonl")), CALIBRATION_TEXTS, recipe.seed)
    validation = data.file("validation.jsonl")
    held_out = read_examples(validation) if validation.stat().st_size else []
    files = []
    for entry in recipe.export.encoder:
        folder = out / entry.name
        record = export_encoder(
            model.path,
            folder,
            settings=EncoderSettings(entry.dtype, entry.calibrate_method, entry.layout, entry.reduce_range),
            texts=[text_of(example) for example in train],
            provenance=known,
            log=log,
        )
        confidence = write_confidence(
            folder,
            [text_of(example) for example in held_out],
            [example.answer.strip() for example in held_out],
            threshold=recipe.bench.abstain_below,
            n_threads=recipe.bench.n_threads,
        )
        log.say(f"{entry.name}: {record['bytes'] / 1e6:.1f} MB, temperature {confidence.temperature:.2f}")
        files.append({**record, "file": f"{entry.name}/{record['file']}", "ftype": entry.name})
    write_json(out / "files.json", files)
    return {f"{entry['ftype']}_bytes": float(entry["bytes"]) for entry in files}
