"""Runs a program that a model has written, after the kernel has taken from this process what it does not need.

    python -I -S program_guard.py SECONDS MEMORY_BYTES <SOURCE >REPORT

What is left to it: processor time, memory, the standard library and its own output, which nobody reads.
`program_sandbox.py` starts it. It imports nothing of ours, so that it starts in a moment.

- Limits of processor time, memory, open files and the size of files (setrlimit).
- Landlock: of all files, only those of Python and of the system's libraries can be read. A kernel without it: root
  becomes `nobody`; who is not root could read what the user may.
- seccomp: of all system calls, those below. So there is no other process or thread, no socket, no signal to others, and
  no file that is opened for writing.
"""

import ctypes
import json
import os
import platform
import resource
import struct
import sys
import sysconfig
import types

UNAVAILABLE = 70  # exit status: the kernel cannot do this, and nothing was run
_LARGEST_FILE = 1 << 16  # bytes, which only the report may be
_SHOWN = 300  # characters of an error
_NOBODY = 65534
# Name -> number on x86-64 and on arm64, as the kernel's tables have them; None: it is not in the table. The older ways
# to look at a file are those of the C library before 2.33 (RHEL 8, Ubuntu 20.04).
_ALLOWED = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "stat": (4, None),
    "fstat": (5, 80),
    "lstat": (6, None),
    "lseek": (8, 62),
    "mmap": (9, 222),
    "mprotect": (10, 226),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigreturn": (15, 139),
    "pread64": (17, 67),
    "access": (21, None),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "getpid": (39, 172),
    "exit": (60, 93),
    "uname": (63, 160),
    "getcwd": (79, 17),
    "readlink": (89, None),
    "gettimeofday": (96, 169),
    "getrusage": (98, 165),
    "sysinfo": (99, 179),
    "times": (100, 153),
    "getuid": (102, 174),
    "getgid": (104, 176),
    "geteuid": (107, 175),
    "getegid": (108, 177),
    "gettid": (186, 178),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "getdents64": (217, 61),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "newfstatat": (262, 79),
    "readlinkat": (267, 78),
    "faccessat": (269, 48),
    "getrandom": (318, 278),
    "statx": (332, 291),
    "faccessat2": (439, 439),
}
_OPENAT = (257, 56)
_WRITES = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, and the kernel's name for it
_LOAD, _EQUAL, _AND, _RETURN = 0x20, 0x15, 0x54, 0x06  # of classic BPF
_ALLOW, _KILL, _REFUSE = 0x7FFF0000, 0x80000000, 0x00050001  # refused: EPERM
_NUMBER, _ARCHITECTURE, _FLAGS = 0, 4, 32  # offsets in seccomp_data; the flags are openat's third argument
_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 38, 22, 2  # of prctl
_CREATE_RULES, _ADD_RULE, _RESTRICT = 444, 445, 446  # Landlock's system calls
_ALL_ACCESS, _READ = 0x1FFF, 0xD  # of files, in Landlock's first version; execute, read a file, list a directory

_libc = ctypes.CDLL(None, use_errno=True)


class _Unavailable(Exception):
    """What the kernel cannot do."""


def limit(seconds: int, memory: int) -> None:
    """Sets the limits of this process."""
    for kind, what, most, hard in (
        (resource.RLIMIT_AS, "bytes of address space", memory, memory),
        (resource.RLIMIT_NOFILE, "open files", 64, 64),
        (resource.RLIMIT_FSIZE, "bytes of a file", _LARGEST_FILE, _LARGEST_FILE),
        (resource.RLIMIT_CORE, "bytes of a core", 0, 0),
        # SIGXCPU, which tells it from other ends.
        (resource.RLIMIT_CPU, "seconds of processor time", seconds, seconds + 1),
    ):
        try:
            resource.setrlimit(kind, (most, hard))
        except (ValueError, OverflowError):  # the process is itself held by a lower limit
            allowed = resource.getrlimit(kind)[1]
            raise _Unavailable(f"{most:,} {what} are asked for, and ulimit allows {allowed:,}") from None


def restrict_files() -> str:
    """Takes away files; returns what can still be read."""
    _checked(_libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0), "no_new_privs")
    access = struct.pack("Q", _ALL_ACCESS)
    rules = _libc.syscall(_CREATE_RULES, access, len(access), 0)
    if rules < 0:
        if os.geteuid():
            return "what the user may"
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
        return "what nobody may"
    base = sysconfig.get_paths()["stdlib"]
    for path in (base, os.path.join(sys.base_prefix, "lib"), "/usr/lib", "/usr/lib64", "/lib", "/lib64", os.getcwd()):
        if os.path.isdir(path):
            directory = os.open(path, os.O_PATH | os.O_DIRECTORY)
            rule = struct.pack("=Qi", _READ, directory)
            _checked(_libc.syscall(_ADD_RULE, rules, 1, rule, 0), "Landlock")
            os.close(directory)
    _checked(_libc.syscall(_RESTRICT, rules, 0), "Landlock")
    os.close(rules)
    return "Python"


def restrict_calls() -> None:
    """Takes away system calls."""
    if platform.machine() not in _MACHINES:
        raise _Unavailable(f"{platform.machine()}: the system calls of this machine are not listed")
    column, architecture = _MACHINES[platform.machine()]
    lines = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    for numbers in _ALLOWED.values():
        if (number := numbers[column]) is not None:
            lines += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    lines += [(_EQUAL, 0, 4, _OPENAT[column]), (_LOAD, 0, 0, _FLAGS), (_AND, 0, 0, _WRITES), (_EQUAL, 0, 1, 0)]
    lines += [(_RETURN, 0, 0, _ALLOW), (_RETURN, 0, 0, _REFUSE)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
    program = struct.pack("HxxxxxxQ", len(lines), ctypes.addressof(code))
    _checked(_libc.prctl(_SET_SECCOMP, _FILTER, program, 0, 0), "seccomp")


def _checked(result: int, what: str) -> None:
    if result < 0:
        raise _Unavailable(f"{what}: {os.strerror(ctypes.get_errno())}")


def main(seconds: int, memory: int) -> int:
    """Runs the program on standard input, behind a line that its report must repeat; returns the exit status."""
    token, _, source = sys.stdin.buffer.read().decode().partition("\n")
    report, nothing = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(nothing, standard)

    def tell(**found: str) -> None:
        os.write(report, json.dumps({"token": token, **found}).encode())

    module = types.ModuleType("program")
    sys.modules["program"] = module
    try:
        limit(seconds, memory)
        files = restrict_files()
        restrict_calls()
    except (_Unavailable, OSError) as error:
        tell(unavailable=str(error))
        return UNAVAILABLE
    try:
        exec(compile(source, "program", "exec"), module.__dict__)
    except BaseException as error:
        try:
            said = f"{type(error).__name__}: {error}"
        except BaseException:
            said = "an error that cannot be shown"
        tell(files=files, error=said[:_SHOWN])
        return 0
    tell(files=files, error="")
    return 0


if __name__ == "__main__":
    os._exit(main(int(sys.argv[1]), int(sys.argv[2])))  # nothing that the program has left behind runs any more
