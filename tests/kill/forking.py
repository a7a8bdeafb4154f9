"""Runs `edgeft` command lines in forks of one process that has the heavy libraries loaded.

A run of a tiny recipe spends nine tenths of its time importing; forked, a kill at a random moment hits work.
Reads a JSON list of words a line from stdin; answers with the pid of the fork, then with how it ended.
"""

import importlib
import json
import os
import signal
import sys
import warnings

HEAVY = ("torch", "transformers", "peft", "sklearn.linear_model", "gguf", "llama_cpp")


def main() -> None:
    warnings.simplefilter("ignore")
    from edgeft.quiet import quiet_libraries

    quiet_libraries()
    for name in HEAVY:
        importlib.import_module(name)
    print("ready", flush=True)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            run(json.loads(line))
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def run(words: list[str]) -> None:
    """The fork: silent on stdout, which belongs to the conversation with the test."""
    from edgeft.cli import main as edgeft

    if hasattr(signal, "SIGHUP"):  # ignored where the tests run under nohup, and heeding that is right
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    code = 1
    try:
        edgeft(words)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
