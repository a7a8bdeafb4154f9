"""The sections of a recipe: their keys, types and defaults, and nothing else.

Names are the upstream ones (peft `LoraConfig`, transformers `TrainingArguments`, llama.cpp `ftype`/`n_ctx`)
wherever one exists. The docstring under a key says what it means and in which unit.
"""

from edgeft.sections.base import Section
from edgeft.sections.bench import Bench, BenchMetric, Latency, Limits, Parity, TaskMetric, Tolerance
from edgeft.sections.distill import Distill, Student, TeacherApi
from edgeft.sections.export import Encoder, Export, Ftype, Gguf, Onnx
from edgeft.sections.inputs import NANO, Data, Model, Prepare, Replay, Source, Weighted
from edgeft.sections.pretrain import Pretrain, PretrainModel, PretrainTokenizer
from edgeft.sections.recover import Recover
from edgeft.sections.train import Lora, Merge, Objective, Phase, Train, TrainStage

__all__ = [
    "NANO",
    "Bench",
    "BenchMetric",
    "Data",
    "Distill",
    "Encoder",
    "Export",
    "Ftype",
    "Gguf",
    "Latency",
    "Limits",
    "Lora",
    "Merge",
    "Model",
    "Objective",
    "Onnx",
    "Parity",
    "Phase",
    "Prepare",
    "Pretrain",
    "PretrainModel",
    "PretrainTokenizer",
    "Recover",
    "Replay",
    "Section",
    "Source",
    "Student",
    "TaskMetric",
    "TeacherApi",
    "Tolerance",
    "Train",
    "TrainStage",
    "Weighted",
]
