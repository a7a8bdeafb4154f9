"""How the tensors of a checkpoint are rounded when an ONNX decoder is made of it; see `export.gguf.grids`."""

from pathlib import Path

from edgeft.errors import UsageError
from edgeft.export.folder import read_folder
from edgeft.export.gguf.grids import SourceGrid, whole_source
from edgeft.export.onnx.decoder import build_decoder
from edgeft.export.onnx.export import lay_out_decoder
from edgeft.export.onnx.graph import Graph
from edgeft.export.onnx.matrices import onnx_rules
from edgeft.export.onnx.settings import OnnxSettings


def onnx_source_grids(model_dir: Path, settings: OnnxSettings) -> dict[str, SourceGrid]:
    """By the checkpoint's names, every tensor of the folder `model_dir` that `export_onnx` packs.

    Raises what `export_onnx` does; ModelError as `whole_source`; UsageError for a graph in float16, whose scales
    are rounded once more.
    """
    if settings.half:
        raise UsageError(
            f"{settings.name}: the grid of a float16 graph cannot be trained for; take activations: float32"
        )
    layout, decoder = lay_out_decoder(read_folder(model_dir))
    grids = {}
    for target in build_decoder(Graph("weights"), decoder, onnx_rules(layout.rules), settings):
        if target.grid is not None:
            for source, transposed in map(whole_source, target.rules):
                grids[source] = SourceGrid(target.grid, transposed)
    return grids
