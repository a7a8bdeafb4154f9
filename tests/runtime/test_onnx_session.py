"""Where a graph runs, and with how many threads."""

import pytest

from edgeft.errors import RuntimeFault, UsageError
from edgeft.runtime.onnx_session import CPU, check_running, choose_providers, choose_threads


def test_providers() -> None:
    """The package for the processor has only its provider."""
    assert choose_providers([]) == [CPU]
    assert choose_providers(["CUDAExecutionProvider", CPU]) == [CPU]
    with pytest.raises(RuntimeFault, match="has none of the execution providers CUDAExecutionProvider; available"):
        choose_providers(["CUDAExecutionProvider"])
    with pytest.raises(UsageError, match=r"no execution provider is called 'cuda'; available here: .*CPUExecution"):
        choose_providers(["cuda", CPU])


def test_a_provider_that_could_not_start() -> None:
    """CPU is in the list of every session: it is only right where it was asked for."""
    for wanted in ([], [CPU], ["CUDAExecutionProvider", CPU]):
        check_running(wanted, [CPU])
    check_running(["CUDAExecutionProvider"], ["CUDAExecutionProvider", CPU])
    with pytest.raises(RuntimeFault, match=f"could start none of .*CUDAExecutionProvider and would run on {CPU}"):
        check_running(["CUDAExecutionProvider"], [CPU])


def test_threads() -> None:
    assert choose_threads(3, 10) == 3
    assert choose_threads(None, 10) == 1
    assert choose_threads(None, 1 << 50) >= 1
