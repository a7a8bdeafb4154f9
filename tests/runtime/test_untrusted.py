"""A file that crashes, hangs or starves the runtime takes only a child process."""

import sys
from pathlib import Path

import pytest

from edgeft.errors import EdgeftError, ModelError, RuntimeFault
from edgeft.runtime.gguf_format import read_header
from edgeft.runtime.untrusted import N_GENERATED, probe
from tests.mutated_gguf import chosen
from tests.onnx_graphs import write_decoder


def child(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", f"import os, signal, sys, time; {code}")


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGABRT)", r"the runtime, which tried this file, was killed by SIGABRT"),
        ("print('GGML_ASSERT failed', file=sys.stderr); os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV.*\n.*ASSERT"),
        ("sys.exit(7)", "exit code 7"),
        ("""print('{"error": "ModelError", "message": "no"}')""", "no"),
    ],
)
def test_how_a_child_ends_is_told(model_file: Path, code: str, said: str) -> None:
    with pytest.raises(EdgeftError, match=said):
        probe(model_file, command=child(code))


def test_a_child_that_hangs_is_ended(model_file: Path) -> None:
    with pytest.raises(RuntimeFault, match=r"did not end within 0\.5 s; it hangs"):
        probe(model_file, command=child("time.sleep(60)"), timeout_s=0.5)


def test_a_sound_file_runs(model_file: Path) -> None:
    result = probe(model_file)
    assert (result.n_generated, result.template_error) == (N_GENERATED, None)
    assert result.n_prompt > 0


@pytest.mark.parametrize(
    ("tensor", "byte", "said"),
    [("blk.0.attn_norm.weight", b"\xff", "logits are not finite"), ("output_norm.weight", b"\0", "every logit is 0")],
)
def test_damaged_weights_are_seen(model_file: Path, tmp_path: Path, tensor: str, byte: bytes, said: str) -> None:
    content = bytearray(model_file.read_bytes())
    norm = read_header(model_file).tensors[tensor]
    content[norm.start : norm.start + norm.n_bytes] = byte * norm.n_bytes
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    with pytest.raises(RuntimeFault, match=said):
        probe(path)


def test_mutants_end_in_an_answer_or_an_error(model_file: Path, tmp_path: Path) -> None:
    """Only what passes the header check starts a child; benchmarks/mutated_files.py does this with hundreds."""
    path, ended = tmp_path / "mutant.gguf", set()
    for name, content in chosen(model_file, 30, seed=11):
        path.write_bytes(content)
        try:
            probe(path, timeout_s=60)
        except (ModelError, RuntimeFault) as error:
            assert "killed" not in str(error), name  # noqa: PT017
            ended.add(type(error))
    assert ended >= {ModelError}


def test_an_onnx_folder(model_folder: Path, tmp_path: Path) -> None:
    folder = write_decoder(model_folder, tmp_path / "onnx", data_file="weights.bin")
    found = probe(folder)
    assert (found.n_vocab, found.n_generated, found.template_error) == (384, N_GENERATED, None)
    (folder / "weights.bin").write_bytes((folder / "weights.bin").read_bytes()[:-1])
    with pytest.raises(ModelError, match="incomplete"):
        probe(folder)
