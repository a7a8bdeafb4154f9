"""Which files of a Hugging Face model folder are the model, in transformers' order."""

import json
from pathlib import Path

from edgeft.errors import ModelError

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers reads of the model in `folder`, in name order; none where none are.

    `model.safetensors` goes before an index with its shards (what a later save leaves beside an older, larger one), and
    no other file counts. Raises ModelError for an index that cannot be read or names a file that is not there, and for
    an adapter beside the weights, which transformers would put on them.
    """
    found = _found(folder)
    if found and (folder / ADAPTER).is_file():
        raise ModelError(
            f"{folder}: {ADAPTER} lies beside {found[0].name}: transformers would load the adapter too, edgeft only "
            "the weights; move the adapter into a folder of its own (and give that as --adapter), or delete it if the "
            "weights hold it already"
        )
    return found


def _found(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if not index.is_file():
        return []
    try:
        names = {str(name) for name in json.loads(index.read_text("utf-8"))["weight_map"].values()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ModelError(f"{index}: is no index of weights ({error}); copy it again") from None
    shards = sorted(folder / name for name in names)
    if missing := [path.name for path in shards if not path.is_file()]:
        raise ModelError(f"{folder}: the shard {missing[0]} is missing, which {INDEX} names; copy the folder again")
    return shards
