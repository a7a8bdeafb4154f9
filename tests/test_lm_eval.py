"""The adapter against the harness's own backend for transformers, on one tiny model."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'edgeft[lm-eval]'")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from edgeft import runtime
from edgeft.console import silent_log
from edgeft.export.gguf.write import write_gguf
from edgeft.lm_eval import RuntimeLM
from tests.tiny import make_tiny_llama

PAIRS = [
    ("turn on the kitchen", " light"),
    ("turn on the kitchen ", "light"),
    ("", "set a timer"),
    ("the quick brown fox " * 30, "jumps"),  # longer than the context
]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RuntimeLM, HFLM]]:
    folder = tmp_path_factory.mktemp("harness")
    make_tiny_llama(folder / "model")
    write_gguf(folder / "model", folder / "tiny.gguf", ftype="F32", name="tiny", provenance={}, log=silent_log())
    theirs = HFLM(pretrained=str(folder / "model"), device="cpu", dtype="float32", batch_size=1, max_length=64)
    with runtime.load(folder / "tiny.gguf", n_ctx=64, n_threads=1) as model:
        ours = RuntimeLM(model)
        # Our runtime may end an answer by either token; the harness begins texts with the one transformers names.
        theirs.custom_prefix_token_id = ours.prefix_token_id
        yield ours, theirs


def requests(kind: str, arguments: list[Any]) -> list[Instance]:
    return [Instance(kind, {}, args, index) for index, args in enumerate(arguments)]


def test_loglikelihood(both: tuple[RuntimeLM, HFLM]) -> None:
    found, expected = (lm.loglikelihood(requests("loglikelihood", PAIRS)) for lm in both)
    for (value, greedy), (wanted, wanted_greedy) in zip(found, expected, strict=True):
        assert value == pytest.approx(wanted, abs=5e-3)
        assert greedy is wanted_greedy


def test_what_greedy_decoding_gives_is_greedy(both: tuple[RuntimeLM, HFLM]) -> None:
    ours, _ = both
    ids = ours.model.generate(ours.tok_encode("turn on"), max_new_tokens=3)
    assert ours._loglikelihood_tokens([(None, ours.tok_encode("turn on"), ids)])[0][1] is True
    assert ours._loglikelihood_tokens([(None, ours.tok_encode("turn on"), [*ids[:2], ids[2] + 1])])[0][1] is False


def test_rolling(both: tuple[RuntimeLM, HFLM]) -> None:
    texts = [("turn on the light",), ("set a timer for ten minutes. " * 12,)]
    found, expected = (lm.loglikelihood_rolling(requests("loglikelihood_rolling", texts)) for lm in both)
    assert found == pytest.approx(expected, rel=1e-3)


def test_generate_until(both: tuple[RuntimeLM, HFLM]) -> None:
    (plain,) = both[0].generate_until(requests("generate_until", [("turn on the", {"max_gen_toks": 12})]))
    stop = plain[2:4]
    asked = [("turn on the", {"until": [stop, "never"], "max_gen_toks": 12, "do_sample": False})]
    asked += [("turn on the", {"until": ["never"], "max_gen_toks": 12, "do_sample": False})]
    found, expected = (lm.generate_until(requests("generate_until", asked)) for lm in both)
    assert found == expected
    assert stop not in found[0]


def test_a_task_of_the_harness(both: tuple[RuntimeLM, HFLM], tmp_path: Path) -> None:
    lines = [f'{{"question": "light {i}", "choices": ["on", "off"], "label": {i % 2}}}' for i in range(6)]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    task = {
        "task": "lights",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "data.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": "label",
        "doc_to_choice": "{{choices}}",
        "metric_list": [{"metric": "acc"}],
    }
    found, expected = (simple_evaluate(lm, tasks=[dict(task)], bootstrap_iters=0)["results"]["lights"] for lm in both)
    assert found["acc,none"] == expected["acc,none"]
