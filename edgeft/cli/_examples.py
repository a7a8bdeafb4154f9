"""Two examples for the help of every command; tests/test_help.py runs them."""

from types import MappingProxyType

import click

EXAMPLES = MappingProxyType(
    {
        "init": ("edgeft init mytask --template classify", "edgeft init orders --data questions.csv"),
        "run": (
            "edgeft run mytask/recipe.yaml --dry-run",
            "edgeft run mytask/recipe.yaml --set train.num_train_epochs=5",
        ),
        "runs": ("edgeft runs", "edgeft runs mytask --watch"),
        "data import": (
            "edgeft data import questions.csv -o train.jsonl --map prompt=question --map completion=answer",
            "edgeft data import mytask/train.jsonl -o -",
        ),
        "data check": (
            "edgeft data check mytask/train.jsonl",
            "edgeft data check --recipe mytask/recipe.yaml --html check.html",
        ),
        "data preview": (
            "edgeft data preview mytask/train.jsonl --recipe mytask/recipe.yaml",
            "edgeft data preview mytask/test.jsonl --recipe mytask/recipe.yaml -n 1",
        ),
        "data split": (
            "edgeft data split all.jsonl -o parts",
            "edgeft data split all.jsonl -o strata --shares 70/10/20 --stratify answer",
        ),
        "data redact": (
            "edgeft data redact mytask/train.jsonl -o clean.jsonl",
            "edgeft data redact mytask/train.jsonl -o cleaner.jsonl --kinds EMAIL_ADDRESS,PHONE_NUMBER",
        ),
        "data stats": (
            "edgeft data stats mytask/train.jsonl --recipe mytask/recipe.yaml",
            "edgeft data stats mytask/train.jsonl --recipe mytask/recipe.yaml --price 3",
        ),
        "data prepare": (
            "edgeft data prepare mytask/recipe.yaml",
            "edgeft data prepare mytask/recipe.yaml --set data.max_length=128",
        ),
        "train": ("edgeft train mytask/recipe.yaml", "edgeft train mytask/recipe.yaml --set train.learning_rate=1e-3"),
        "merge": ("edgeft merge mytask/recipe.yaml", "edgeft merge mytask/recipe.yaml --force"),
        "export": ("edgeft export mytask/recipe.yaml", "edgeft export model --ftype F16 --ftype Q8_0 -o files"),
        "inspect": ("edgeft inspect runs/mytask", "edgeft inspect files/model-Q8_0.gguf --tensors"),
        "import": (
            "edgeft import files/model-F16.gguf -o model2",
            "edgeft import files/model-F16.gguf -o model3 --dtype bfloat16",
        ),
        "imatrix": (
            "edgeft imatrix model --data mytask/train.jsonl",
            "edgeft imatrix model --text page.txt -o of-page.gguf",
        ),
        "parity": ("edgeft parity runs/mytask", "edgeft parity model files/model-Q8_0.gguf --data mytask/test.jsonl"),
        "bench": (
            "edgeft bench runs/mytask",
            "edgeft bench files/model-Q8_0.gguf --data mytask/test.jsonl -o bench.json",
        ),
        "chat": ("edgeft chat runs/mytask", "echo 'where is my card' | edgeft chat mytask.edgeft --json"),
        "compare": (
            "edgeft compare runs/mytask files/model-Q8_0.gguf --max-slowdown 5%",
            "edgeft compare old.edgeft mytask.edgeft --minutes 10",
        ),
        "gate": (
            "edgeft gate runs/mytask --budget 'label_accuracy >= 0.5'",
            "edgeft gate bench.json --budget 'size_bytes <= 20MB' --junit gate.xml",
        ),
        "report": ("edgeft report runs/mytask", "edgeft report runs/mytask --html report.html"),
        "pack": ("edgeft pack runs/mytask -o mytask.edgeft", "edgeft pack runs/mytask -o ollama --layout ollama"),
        "verify": ("edgeft verify mytask.edgeft", "edgeft verify mytask.edgeft --json"),
        "unpack": ("edgeft unpack mytask.edgeft app", "edgeft unpack signed.edgeft signed --key release.pub"),
        "diff": (
            "edgeft diff old.edgeft mytask.edgeft",
            "edgeft diff files/model-F16.gguf files/model-Q8_0.gguf --all",
        ),
        "reproduce": (
            "edgeft reproduce mytask.edgeft --recipe mytask/recipe.yaml --workdir again",
            "edgeft reproduce signed.edgeft --key release.pub --recipe mytask/recipe.yaml --workdir again",
        ),
        "keygen": ("edgeft keygen release", "edgeft keygen team"),
        "doctor": ("edgeft doctor", "edgeft doctor --json"),
        "recipe show": (
            "edgeft recipe show mytask/recipe.yaml",
            "edgeft recipe show mytask/recipe.yaml --set seed=1 --json",
        ),
        "recipe schema": ("edgeft recipe schema", "edgeft recipe schema > recipe.schema.json"),
    }
)
"""By the words that call the command."""


def with_examples(command: click.Command, name: str) -> click.Command:
    """`command` with its examples at the end of its help."""
    if lines := EXAMPLES.get(name):
        command.epilog = "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)
    return command
