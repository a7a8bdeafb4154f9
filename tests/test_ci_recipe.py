"""The workflow in recipes/ci: its form by GitHub's rules, and every edgeft command in it understood."""

import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner

from edgeft.bench.budgets import parse_budget
from edgeft.cli import edgeft, main
from edgeft.cli.compare import command as compare_command

# Workflow syntax: https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-syntax
TOP = {"name", "on", "permissions", "env", "jobs", "defaults", "concurrency", "run-name"}
JOB = {"name", "runs-on", "needs", "if", "steps", "timeout-minutes", "env", "strategy", "permissions"}
STEP = {"name", "id", "if", "uses", "with", "run", "env", "shell", "working-directory", "continue-on-error"}
USES = re.compile(r"[\w.-]+/[\w./-]+@[\w.-]+")


@pytest.fixture(scope="module")
def workflow(repo_root: Path) -> dict[Any, Any]:
    content: dict[Any, Any] = yaml.safe_load((repo_root / "recipes" / "ci" / "model-gate.yml").read_text())
    content["on"] = content.pop(True)  # YAML 1.1 reads the key `on` as a truth value; GitHub does not
    return content


def test_workflow_has_the_form_github_wants(workflow: dict[Any, Any]) -> None:
    assert set(workflow) <= TOP
    assert {"on", "jobs"} <= set(workflow)
    assert set(workflow["on"]) <= {"pull_request", "push", "workflow_dispatch"}
    for job in workflow["jobs"].values():
        assert set(job) <= JOB
        assert {"runs-on", "steps"} <= set(job)
        assert {job.get("needs", "gate")} <= set(workflow["jobs"])
        for step in job["steps"]:
            assert set(step) <= STEP
            assert ("uses" in step) is not ("run" in step)
            assert "with" not in step or "uses" in step
            assert USES.fullmatch(step.get("uses", "a/b@v1"))


def commands(workflow: dict[Any, Any]) -> list[list[str]]:
    scripts = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    lines = [line for script in scripts for line in script.splitlines()]
    values = workflow["env"] | {"GITHUB_BASE_REF": "main"}
    return [
        shlex.split(re.sub(r"\$(\w+)", lambda name: values[name[1]], line))[1:]
        for line in lines
        if line.startswith("edgeft ")
    ]


def test_every_command_of_the_workflow_is_understood(workflow: dict[Any, Any]) -> None:
    found = commands(workflow)
    assert [words[0] for words in found] == ["bench", "gate", "compare"]
    context = click.Context(edgeft)
    for name, *words in found:
        one = compare_command(name, "") if name == "compare" else edgeft.get_command(context, name)  # type: ignore[attr-defined]
        one.make_context(name, words)  # raises UsageError for what the command does not know


def test_the_budgets_beside_it_can_be_read(repo_root: Path) -> None:
    budgets = yaml.safe_load((repo_root / "recipes" / "ci" / "budgets.yml").read_text())
    assert {parse_budget(metric, text).metric for metric, text in budgets.items()} == set(budgets)


def test_the_gate_step_writes_what_a_ci_run_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bench.json").write_text('{"file": "m.gguf", "metrics": {"size_bytes": 9e6, "exact_match": 0.95}}')
    Path("budgets.yaml").write_text('exact_match: ">= 0.90"\n')
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))

    def run(*words: str) -> Any:
        wrapped = click.Command("edgeft", callback=lambda: main(["gate", "bench.json", *words]))
        return CliRunner().invoke(wrapped, [])

    passed = run("--budgets", "budgets.yaml", "--junit", "gate.xml", "--github", "--save-baseline", "main")
    assert (passed.exit_code, Path("gate.xml").read_text()[:11]) == (0, "<testsuites")
    assert Path("baselines/main.json").is_file()
    failed = run("--budgets", "budgets.yaml", "--budget", "size_bytes <= 8MB", "--github", "--markdown", "gate.md")
    assert failed.exit_code == 3
    assert "::error title=m.gguf%3A size_bytes::" in failed.output
    assert Path("summary.md").read_text().count("###") == 2
    assert "FAIL" in Path("gate.md").read_text()
    again = run("--budget", "size_bytes <= 1x baseline", "--baseline", "main", "--json")
    assert again.exit_code == 0
    Path("budgets.yaml").write_text("exact_match: >= 0.90\n")
    broken = run("--budgets", "budgets.yaml")
    assert broken.exit_code == 2
    assert "so quote it" in broken.output
    Path("budgets.yaml").write_text("exact_match: 0.90\n")
    assert "must be a mapping of metric to budget" in run("--budgets", "budgets.yaml").output
