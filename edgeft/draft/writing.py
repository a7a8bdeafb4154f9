"""The text of a drafted recipe: every value with the reason it has."""

from dataclasses import dataclass

from edgeft.draft.lengths import Lengths
from edgeft.draft.looking import Seen, Task

# task -> (what is scored, the first is what budgets are about)
METRICS: dict[Task, tuple[str, ...]] = {
    "labels": ("label_accuracy", "macro_f1"),
    "json": ("json_match", "json_valid", "json_field_f1"),
    "tools": ("tool_call_match", "exact_match"),
    "text": ("rouge_l", "exact_match"),
}
SMALL_PARAMETERS = 40e6  # below it every weight trains: few enough, and adapters learn less a minute
BYTES_A_PARAMETER, ENCODER_BYTES_A_PARAMETER = 0.72, 1.15  # of a Q4_K_M file and of an int8 encoder, all told
SHIPS = "Q4_K_M"
FILES = ("recipe.yaml", "train.jsonl", "validation.jsonl", "test.jsonl")


@dataclass(frozen=True)
class Draft:
    """What a recipe is written from. `source` names the user's file; `base`, `parameters`, `max_context` and `encoder`
    (it has no next token: it classifies) are of the base model."""

    name: str
    source: str
    seen: Seen
    lengths: Lengths
    base: str
    parameters: float
    max_context: int
    encoder: bool = False


def recipe_text(draft: Draft) -> str:
    """The recipe as YAML with comments."""
    head = [
        f"# Drafted by edgeft init from {draft.source}: {draft.seen.sentence()}.",
        "# Run it with:  edgeft run recipe.yaml        Costs first:  edgeft run recipe.yaml --dry-run",
        "# Every key, with its default:  edgeft recipe show recipe.yaml",
        f"name: {draft.name}",
        "seed: 42",
        "",
        "model:",
        f"  base: {_quoted(draft.base)}",
        "",
        "data:                          # split by edgeft init: near duplicates and equal questions stay together",
        "  train: train.jsonl",
        "  validation: validation.jsonl # watched during training",
        "  test: test.jsonl             # held out: the verdict is about these",
        f"  max_length: {min(draft.lengths.max_length, draft.max_context)}"
        + _said("the longest example has", draft.lengths.longest),
    ]
    return "\n".join([*head, *(_encoder(draft) if draft.encoder else _decoder(draft)), ""])


def _decoder(draft: Draft) -> list[str]:
    """A model that writes its answer."""
    task, lengths = draft.seen.task, draft.lengths
    lines = []
    if task == "json":
        lines.append("  swap_copied_values: 1        # each example once more with other copied values, if it has any")
    lines += ["", "train:"]
    if draft.parameters < SMALL_PARAMETERS:
        lines.append("  method: full                 # every weight: the base is small")
    else:
        lines += ["  method: lora", "  lora: {r: 16, lora_alpha: 32}"]
    return [
        *lines,
        "  hyperparameters: auto        # epochs, batch and learning rate from examples, tokens and base",
        "",
        "export:",
        "  gguf:                        # the last one is the file that ships",
        "    - ftype: Q8_0",
        f"    - ftype: {SHIPS}",
        "",
        "bench:",
        f"  metrics: [{', '.join(METRICS[task])}]",
        f"  max_new_tokens: {lengths.max_new_tokens}" + _said("the longest answer has", lengths.longest_answer),
        f"  n_ctx: {min(lengths.n_ctx(), draft.max_context)}",
        "",
        *_gate(draft, BYTES_A_PARAMETER),
    ]


def _encoder(draft: Draft) -> list[str]:
    """A model that picks a label and can answer nothing else."""
    return [
        "",
        "train:",
        "  objective: classification",
        "  method: full",
        "  hyperparameters: auto        # epochs, batch and learning rate from examples, tokens and base",
        "",
        "export:",
        "  encoder:                     # folders for onnxruntime; the last one ships",
        "    - dtype: fp32",
        "    - dtype: int8",
        "",
        "bench:",
        "  metrics: [label_accuracy, macro_f1, ece]",
        "",
        *_gate(draft, ENCODER_BYTES_A_PARAMETER),
    ]


def _gate(draft: Draft, bytes_a_parameter: float) -> list[str]:
    score = METRICS[draft.seen.task][0]
    rows = [
        (f'{score}_gain: ">= 0"', "over TF-IDF, which needs no language model"),
        (f'{score}_drop: "<= 0.02"', "what quantization may cost"),
        *([('json_valid: ">= 0.98"', "")] if draft.seen.task == "json" else []),
        (f'size_bytes: "<= {_megabytes(draft.parameters, bytes_a_parameter)}MB"', ""),
        (f'ttft_ms_p95: "<= {_ttft_ms(draft)}ms"', "generous: a shared or old laptop passes"),
        (f'# {score}: ">= 0.90"', "set it when you know what your application needs"),
    ]
    return [
        "gate:                          # budgets: exit code 3 when one is not met",
        *(f"  {budget:<32} # {why}" if why else f"  {budget}" for budget, why in rows),
    ]


def _said(what: str, tokens: int) -> str:
    return f"  # {what} {tokens:,} tokens"


def _megabytes(parameters: float, bytes_a_parameter: float) -> int:
    return max(1, round(1.25 * bytes_a_parameter * parameters / 1e6 + 0.5))


def _ttft_ms(draft: Draft) -> int:
    """Time to the first token of the longest prompt, by two operations a weight and token at 10 GFLOP/s, and 100 ms."""
    prompt = max(1, draft.lengths.longest - draft.lengths.longest_answer)
    return 50 * round((100 + 2 * draft.parameters * prompt / 10e9 * 1e3) / 50 + 0.5)


def _quoted(text: str) -> str:
    plain = all(c.isalnum() or c in "/._-" for c in text)
    return text if plain and text else '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
