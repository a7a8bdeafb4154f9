"""An ONNX graph run with every value in sight: what goes into its nodes and what comes out.

Shapes: B sequences, S tokens of a run, T tokens with those before it.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from edgeft.runtime.onnx_cache import NUMPY_TYPES, PAST, PRESENT
from edgeft.runtime.onnx_file import check_onnx, find_file
from edgeft.runtime.onnx_session import choose_providers, exact_sums, run_fault
from edgeft.runtime.ort import onnxruntime

EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
"""onnxruntime_session_options_config_keys.h."""


class WatchedOnnx:
    """The graph of an ONNX file or folder. `names` of `run` may be any values of it."""

    def __init__(self, path: Path, *, n_threads: int | None = None, providers: Collection[str] = ()) -> None:
        """Raises what `check_onnx` and `choose_providers` raise."""
        self.path, _ = find_file(path)
        self._checked = check_onnx(self.path)
        self._providers = choose_providers(list(providers))
        self._n_threads = n_threads or 0
        self._model = onnx.load(self.path, load_external_data=False)
        self.nodes: list[onnx.NodeProto] = list(self._model.graph.node)
        self.initializers = {tensor.name: tensor for tensor in self._model.graph.initializer}
        self.outputs = {value.name for value in self._model.graph.output}
        self._session: Any = None
        self._watched: frozenset[str] = frozenset()

    def initializer(self, name: str) -> np.ndarray:
        """A tensor of the file."""
        return numpy_helper.to_array(self.initializers[name], str(self.path.parent))

    def is_half(self) -> bool:
        """Whether it computes in float16."""
        return any(
            value.name == "logits" and value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
            for value in self._model.graph.output
        )

    def providers(self) -> list[str]:
        """The execution providers that run the graph, in order of preference."""
        found: list[str] = self._open(self._watched).get_providers()
        return found

    def empty_past(self, n_sequences: int) -> dict[str, np.ndarray]:
        """Keys and values of no token."""
        puts = (put for put in self._open(self._watched).get_inputs() if put.name.startswith(PAST))
        return {put.name: np.zeros((n_sequences, put.shape[1], 0, put.shape[3]), NUMPY_TYPES[put.type]) for put in puts}

    def run(
        self, inputs: Mapping[str, np.ndarray], past: Mapping[str, np.ndarray], names: Collection[str]
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The values called `names` and the keys and values for the next run; `inputs` the graph has not are left
        out. Raises RuntimeFault when onnxruntime fails."""
        session = self._open(frozenset(names))
        known = {put.name for put in session.get_inputs()}
        presents = [PRESENT + name.removeprefix(PAST) for name in past]
        wanted = [*(set(names) - self.initializers.keys() - inputs.keys()), *presents]
        given = {name: value for name, value in inputs.items() if name in known}
        try:
            values = dict(zip(wanted, session.run(wanted, {**given, **past}), strict=True))
        except Exception as error:  # onnxruntime's exceptions share no class of their own
            raise run_fault(self.path, error) from None
        found = {name: self._value(name, inputs, values) for name in names}
        return found, {name: values[present] for name, present in zip(past, presents, strict=True)}

    def _value(self, name: str, inputs: Mapping[str, np.ndarray], values: Mapping[str, np.ndarray]) -> np.ndarray:
        if name in self.initializers:
            return self.initializer(name)
        return inputs[name] if name in inputs else values[name]

    def _open(self, names: frozenset[str]) -> Any:
        """A session of the graph with `names` among its outputs, the last one opened if it has them."""
        if self._session is None or not names <= self._watched:
            self._watched |= names
            watched = onnx.ModelProto()
            watched.CopyFrom(self._model)
            made = {output for node in self.nodes for output in node.output}
            watched.graph.output.extend(
                onnx.ValueInfoProto(name=name) for name in sorted(self._watched & made - self.outputs)
            )
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = self._n_threads
            options.log_severity_level = 4
            options.add_session_config_entry(EXTERNAL_FOLDER, str(self.path.parent))
            exact_sums(self._checked, options)
            try:
                self._session = onnxruntime.InferenceSession(
                    watched.SerializeToString(), options, providers=self._providers
                )
            except Exception as error:
                raise run_fault(self.path, error) from None
        return self._session
