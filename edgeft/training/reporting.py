"""The numbers of a run for TensorBoard and MLflow, where a recipe asks for it (`train.report_to`).

Neither is a dependency of edgeft. A service that fails while training goes on is said once and left out: it
must not cost the run.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from edgeft.console import Log
from edgeft.errors import MissingExtra, TrainingError

Reporter = Callable[[int, Mapping[str, float]], None]
Load = Callable[[str], Any]
MODULES = {"tensorboard": "torch.utils.tensorboard", "mlflow": "mlflow"}


@contextmanager
def open_reporters(
    names: Sequence[str],
    *,
    folder: Path,
    run_name: str,
    log: Log,
    parameters: Mapping[str, Any] | None = None,
    load: Load = importlib.import_module,
) -> Iterator[list[Reporter]]:
    """A reporter for each of `names` (`tensorboard`, `mlflow`), closed when the block ends.

    TensorBoard's events are written to `folder/tensorboard`; MLflow goes where MLFLOW_TRACKING_URI says, and a
    resumed run (`folder/checkpoint/mlflow-run`) goes on in the run it began. `parameters` are shown by MLflow.
    `load` finds a module by name. Raises MissingExtra when a package is not installed, TrainingError when MLflow
    refuses the run.
    """
    with ExitStack() as stack:
        reporters: list[Reporter] = []
        for name in names:
            module = _load(name, load)
            if name == "tensorboard":
                board = _TensorBoard(module.SummaryWriter, folder / "tensorboard")
                stack.callback(board.close)
                reporters.append(_careful(name, board, log))
            else:
                _begin_mlflow(module, folder / "checkpoint" / "mlflow-run", run_name, dict(parameters or {}))
                stack.push(_MlflowEnd(module))
                reporters.append(_careful(name, _mlflow_reporter(module), log))
        yield reporters


def _load(name: str, load: Load) -> Any:
    try:
        return load(MODULES[name])
    except ModuleNotFoundError as error:
        raise MissingExtra(
            f"train.report_to: the Python package {name} is not installed; pip install {name}, or take it out of "
            "report_to (log.jsonl is always written)"
        ) from error


class _TensorBoard:
    """Opened at the first number, to hide what a killed run wrote from that step on (`purge_step`)."""

    def __init__(self, writer: Callable[..., Any], folder: Path) -> None:
        self.open, self.folder = writer, folder
        self.writer: Any = None

    def __call__(self, step: int, numbers: Mapping[str, float]) -> None:
        if self.writer is None:
            self.writer = self.open(str(self.folder), purge_step=step)
        for name, value in numbers.items():
            self.writer.add_scalar(f"train/{name}", value, step)

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def _begin_mlflow(mlflow: Any, run_file: Path, run_name: str, parameters: dict[str, Any]) -> None:
    known = run_file.read_text("utf-8") if run_file.exists() else None
    try:
        run = mlflow.start_run(run_id=known) if known else mlflow.start_run(run_name=run_name)
        if not known:
            mlflow.log_params(parameters)
    except Exception as error:  # MLflow lets every error of its HTTP and database libraries through
        raise TrainingError(
            f"train.report_to: MLflow refuses the run ({error}); look at MLFLOW_TRACKING_URI, or take mlflow out of "
            "report_to"
        ) from error
    run_file.parent.mkdir(parents=True, exist_ok=True)
    run_file.write_text(run.info.run_id, encoding="utf-8")


def _mlflow_reporter(mlflow: Any) -> Reporter:
    def report(step: int, numbers: Mapping[str, float]) -> None:
        mlflow.log_metrics(dict(numbers), step=step)

    return report


class _MlflowEnd:
    """Ends the run as what it was."""

    def __init__(self, mlflow: Any) -> None:
        self.mlflow = mlflow

    def __call__(self, kind: type[BaseException] | None, *_: Any) -> None:
        self.mlflow.end_run("FINISHED" if kind is None else "FAILED")


def _careful(name: str, report: Reporter, log: Log) -> Reporter:
    failed = False

    def careful(step: int, numbers: Mapping[str, float]) -> None:
        nonlocal failed
        if failed:
            return
        try:
            report(step, numbers)
        except Exception as error:  # whatever a service does, training goes on
            failed = True
            log.say(f"{name} fails ({error}); training goes on without it, log.jsonl is complete")

    return careful
