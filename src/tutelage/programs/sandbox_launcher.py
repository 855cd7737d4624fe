"""Starts the sandbox's worker behind a wall of the system, as far as the system permits one.

Run by path, in a process of its own, with an interpreter that loads nothing else: it gives up what a program could misuse,
writes down what it was granted, and becomes the worker. It imports nothing of this package.
"""

import contextlib
import ctypes
import json
import os
import resource
import sys

NOBODY = 65_534
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 4, 38
OPEN_FILES = 64
MIB = 1 << 20


def main() -> None:
    """``launcher.py BINARY REPORT FOLDER MEMORY_MIB CPU_SECONDS ARGUMENTS…``."""
    binary, report, folder, memory_mib, seconds = sys.argv[1:6]
    executable = os.open(binary, os.O_RDONLY | os.O_CLOEXEC)
    page = os.open(report, os.O_WRONLY | os.O_CLOEXEC)
    granted = {"own_session": False, "network_namespace": False, "no_new_privileges": False, "no_root": os.getuid() != 0}
    with contextlib.suppress(OSError):  # Ctrl-C at the terminal is for the parent to handle
        os.setsid()
        granted["own_session"] = True
    os.chdir(folder)
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "unshare"):
        granted["network_namespace"] = libc.unshare(CLONE_NEWNET) == 0 or libc.unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0
    if not granted["no_root"]:
        with contextlib.suppress(OSError):
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            granted["no_root"] = True
    if hasattr(libc, "prctl"):
        granted["no_new_privileges"] = libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
        libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    limits = {"CORE": 0, "FSIZE": 0, "NOFILE": OPEN_FILES, "AS": int(memory_mib) * MIB, "CPU": int(seconds)}
    for name, amount in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}")
        _, hard = resource.getrlimit(kind)
        amount = amount if hard == resource.RLIM_INFINITY else min(amount, hard)
        if name == "FSIZE":  # after the report below
            continue
        resource.setrlimit(kind, (amount, amount))
    nothing = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(nothing, 2)  # what the worker says when it dies is told by its absence
    os.write(page, json.dumps({"pid": os.getpid(), "granted": granted}).encode())
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    os.execve(executable, [binary, *sys.argv[6:]], {})


if __name__ == "__main__":
    main()
