"""Runs a command and tells which internet sockets it asked the kernel for, whoever in it or below it did.

A seccomp filter (seccomp_unotify(2), Linux 5.5 and newer) hands each socket(AF_INET or AF_INET6, …) of the command,
its threads and its children to this process, which notes it and refuses it: nothing leaves the machine, no library
goes around it, and neither root nor another program is needed.
"""

import ctypes
import errno
import fcntl
import os
import platform
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

# <asm/unistd.h>, <linux/audit.h>: machine -> (architecture, number of socket(2), number of seccomp(2)).
MACHINES = {"x86_64": (0xC000003E, 41, 317), "aarch64": (0xC00000B7, 198, 277)}
# <linux/seccomp.h>
SET_MODE_FILTER, NEW_LISTENER = 1, 8
ALLOW, NOTIFY = 0x7FFF0000, 0x7FC00000
RECEIVE, SEND = 0xC0502100, 0xC0182101
NOTIFICATION = struct.Struct("QIIiIQ6Q")  # id, pid, flags, number, architecture, pointer, arguments
RESPONSE = struct.Struct("QqiI")  # id, value, error, flags
PR_SET_NO_NEW_PRIVS = 38
# <linux/bpf_common.h>
LOAD_WORD, JUMP_EQUAL, RETURN = 0x20, 0x15, 0x06


@dataclass
class Watched:
    """A command that ended: its exit code, what it printed, and the sockets it wanted as `family: command line`."""

    returncode: int
    output: str
    sockets: list[str] = field(default_factory=list)


def can_watch() -> bool:
    """Whether this system lets a process watch its children so (a container may forbid it)."""
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        return False
    try:
        return watch([sys.executable, "-c", "pass"]).returncode == 0
    except OSError:
        return False


def watch(command: Sequence[str], *, cwd: Path | None = None, environment: Mapping[str, str] | None = None) -> Watched:
    """Run `command` to its end. Raises OSError where the filter cannot be set."""
    ours, theirs = socket.socketpair()
    launcher = [sys.executable, str(Path(__file__).resolve()), str(theirs.fileno()), *command]
    with ours, theirs:
        process = subprocess.Popen(
            launcher, cwd=cwd, env=environment, pass_fds=[theirs.fileno()], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        theirs.close()
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    if not descriptors:
        raise OSError(process.communicate()[0])
    sockets: list[str] = []
    listener = threading.Thread(target=_listen, args=(descriptors[0], sockets), daemon=True)
    listener.start()
    output = process.communicate()[0]
    listener.join()  # until the last process below the command has ended
    os.close(descriptors[0])
    return Watched(process.returncode, output, sockets)


def _listen(descriptor: int, sockets: list[str]) -> None:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    while True:
        [(_, event)] = poll.poll()
        if not event & select.POLLIN:
            return
        notification = bytearray(NOTIFICATION.size)
        try:
            fcntl.ioctl(descriptor, RECEIVE, notification)
            number, pid, *_, family, _, _, _, _, _ = NOTIFICATION.unpack(notification)
            sockets.append(f"{socket.AddressFamily(family).name}: {_command_line(pid)}")
            fcntl.ioctl(descriptor, SEND, RESPONSE.pack(number, 0, -errno.EACCES, 0))
        except OSError as error:
            if error.errno != errno.ENOENT:  # the one who asked has died meanwhile
                raise


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200].strip()
    except OSError:
        return f"process {pid}"


def _filter() -> int:
    """Set the filter for this process and all it becomes; returns the descriptor that is told."""
    architecture, number_of_socket, number_of_seccomp = MACHINES[platform.machine()]
    steps = [
        (LOAD_WORD, 0, 0, 4), (JUMP_EQUAL, 0, 5, architecture),
        (LOAD_WORD, 0, 0, 0), (JUMP_EQUAL, 0, 3, number_of_socket),
        (LOAD_WORD, 0, 0, 16), (JUMP_EQUAL, 2, 0, socket.AF_INET), (JUMP_EQUAL, 1, 0, socket.AF_INET6),
        (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, NOTIFY),
    ]  # fmt: skip
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code)))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    descriptor = libc.syscall(number_of_seccomp, SET_MODE_FILTER, NEW_LISTENER, program)
    if descriptor < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(descriptor)


def main() -> None:
    """The launcher: DESCRIPTOR COMMAND..., hands the listener over and becomes the command."""
    parent = socket.socket(fileno=int(sys.argv[1]))
    listener = _filter()
    socket.send_fds(parent, [b"x"], [listener])
    parent.close()
    os.close(listener)
    os.execvp(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
