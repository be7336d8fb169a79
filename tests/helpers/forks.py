"""Start Python processes by forking a server that has imported torch, transformers, PEFT, Accelerate and datasets.

A fresh process spends ten seconds on these imports before it runs a line of a test. `run_python` and `start_python`
take the words behind `python`. What they start behaves as a fresh process: own pid, session, environment, folder,
`sys.argv`, streams, exit code and death by a signal. The server has run no tensor operation and has imported only the
top of peft_audio.

The fork is asked for by a small program, the stand-in for the interpreter. It hands its streams to the fork, passes on
signals, and ends as the fork ended. A forked process has the stand-in as its `sys.executable`, so what it starts (the
runs of a comparison, the check of a saved adapter) is forked as well. The stand-in starts the real interpreter where a
fork could differ: for options of the interpreter that it does not know, and for another value of a variable that
libraries read when they are imported.
"""

from __future__ import annotations

import array
import atexit
import functools
import json
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# Imported by the server, in this order: peft_audio's top sets variables that huggingface_hub reads at its import.
IMPORTED = (
    *("peft_audio", "torch", "transformers", "peft", "accelerate", "datasets", "evaluate", "pandas", "pyarrow.parquet"),
    *(
        "scipy.signal",
        "scipy.stats",
        "sklearn.linear_model",
        "sklearn.metrics",
        "sklearn.pipeline",
        "soundfile",
        "soxr",
    ),
    *("jsonargparse", "rich.progress", "audiomentations", "psutil", "filelock", "accelerate.tracking"),
    *("transformers.models.auto.modeling_auto", "transformers.models.wav2vec2.modeling_wav2vec2"),
)
# Variables that libraries read when they are imported: a process that has others is not forked.
READ_AT_IMPORT = ("CUDA_", "HF_", "KMP_", "LD_", "MKL_", "OMP_", "PYTHON", "TORCH_", "TRANSFORMERS_")
THREADS = "OMP_NUM_THREADS"  # torch takes another number later as well
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
PID_HANDLE = "FORKED_PID_HANDLE"
CAN_FORK = sys.platform == "linux" and hasattr(os, "pidfd_open")


class Child(subprocess.Popen[str]):
    """A forked process; `real_pid` is its own, and signals go to it."""

    def __init__(self, words: tuple[str, ...], env: dict[str, str] | None, **more: Any) -> None:
        reading, writing = os.pipe()
        where = {**(os.environ if env is None else env), PID_HANDLE: str(writing)}
        super().__init__([stand_in(), *words], env=where, text=True, pass_fds=[writing], **more)
        os.close(writing)
        with os.fdopen(reading) as told:
            self.real_pid = int(told.readline())

    def send_signal(self, number: int) -> None:
        """Send a signal to the process itself."""
        if self.poll() is None:
            os.kill(self.real_pid, number)


def start_python(*words: str | Path, env: dict[str, str] | None = None, **more: Any) -> subprocess.Popen[str]:
    """Start `python WORDS`; `more` is what subprocess.Popen takes."""
    command = tuple(map(str, words))
    if not CAN_FORK:
        return subprocess.Popen([sys.executable, *command], env=env, text=True, **more)
    return Child(command, env, **more)


def run_python(
    *words: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None, timeout: float = 250.0
) -> subprocess.CompletedProcess[str]:
    """Run `python WORDS` to its end, with both streams captured."""
    pipe = subprocess.PIPE
    with start_python(*words, env=env, cwd=cwd, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe) as child:
        try:
            out, err = child.communicate(timeout=timeout)
        except BaseException:
            child.kill()
            raise
    return subprocess.CompletedProcess(child.args, child.returncode, out, err)


def stand_in() -> str:
    """Path of the program that stands in for the interpreter; starts the server of this test process once."""
    return _server(os.getpid())


@functools.cache
def _server(_owner: int) -> str:
    """The owner is the process that asks: one that pytest forked has a server of its own."""
    folder = Path(tempfile.mkdtemp(prefix="forks-"))
    program, address = folder / "python", folder / "socket"
    words = shlex.join([sys.executable, "-SE", __file__, "ask", str(address), sys.executable])
    program.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
    program.chmod(0o755)
    server = subprocess.Popen(
        [sys.executable, __file__, "serve", str(address), str(program)],
        stdin=subprocess.PIPE,  # its end ends the server
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert server.stdin and server.stdout
    if server.stdout.readline() != b"ready\n":
        raise RuntimeError("the server of forked processes did not start")

    def close() -> None:
        server.stdin.close()
        server.wait()
        server.stdout.close()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(close)
    return str(program)


def at_import(environment: Any) -> dict[str, str]:
    """Select the variables whose values a fork cannot change any more."""
    return {name: value for name, value in environment.items() if name.startswith(READ_AT_IMPORT) and name != THREADS}


def ask(address: str, interpreter: str, words: list[str]) -> None:
    """Be the stand-in: have the server fork, and end as the fork ends."""
    handle = os.environ.pop(PID_HANDLE, None)
    own = words[1:] if words[:1] == ["-P"] else words
    if not own or (own[0].startswith("-") and own[0] not in ("-c", "-m")):
        start_really(interpreter, words, handle)
    request = {
        "words": own,
        "path": own is words,
        "env": dict(os.environ),
        "cwd": str(Path.cwd()),
        "umask": os.umask(0),
    }
    os.umask(request["umask"])
    server = socket.socket(socket.AF_UNIX)
    server.connect(address)
    streams = array.array("i", [0, 1, 2])
    server.sendmsg([json.dumps(request).encode() + b"\n"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
    answers = server.makefile()
    first = answers.readline()
    if not first.startswith("pid "):
        start_really(interpreter, words, handle)
    pid = int(first.split()[1])
    for number in PASSED_ON:
        signal.signal(number, lambda number, _: os.kill(pid, number))
    tell_pid(handle, pid)
    code = int((answers.readline() or "-9").split()[-1])
    if code >= 0:
        os._exit(code)
    signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
    os.kill(os.getpid(), -code)


def tell_pid(handle: str | None, pid: int) -> None:
    """Write the pid for the process that started the stand-in, where it asked for it."""
    if handle:
        os.write(int(handle), f"{pid}\n".encode())
        os.close(int(handle))


def start_really(interpreter: str, words: list[str], handle: str | None) -> None:
    """Become the real interpreter."""
    tell_pid(handle, os.getpid())
    os.execv(interpreter, [interpreter, *words])


def serve(address: str, program: str) -> dict[str, Any]:
    """Import, then fork for each request until stdin ends; returns the request in the forked process."""
    own = at_import(os.environ)
    for name in IMPORTED:
        __import__(name)
    import gc

    gc.collect()
    gc.freeze()
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen(64)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    os.write(1, b"ready\n")
    while True:
        if 0 in select.select([0, listening], [], [])[0]:
            os._exit(0)
        connection, _ = listening.accept()
        if os.fork() == 0:
            listening.close()
            return forked(connection, own, program)
        connection.close()


def forked(connection: socket.socket, own: dict[str, str], program: str) -> dict[str, Any]:
    """Read one request, and fork the process for it; returns in that process only."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    streams = array.array("i")
    text, ancillary, _, _ = connection.recvmsg(1 << 20, socket.CMSG_LEN(3 * streams.itemsize))
    for _, _, data in ancillary:
        streams.frombytes(data)
    while not text.endswith(b"\n"):
        text += connection.recv(1 << 20) or os._exit(1)
    request = json.loads(text)
    if at_import(request["env"]) != own:
        connection.sendall(b"differs\n")
        os._exit(0)
    pid = os.fork()
    if pid:
        watch(connection, pid)
    connection.close()
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    return request | {"program": program}


def watch(connection: socket.socket, pid: int) -> None:
    """Report the end of a process, and kill it when its stand-in is gone."""
    handle = os.pidfd_open(pid)
    connection.sendall(f"pid {pid}\n".encode())
    if handle not in select.select([handle, connection], [], [])[0]:
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        connection.sendall(f"exit {code}\n".encode())
    finally:
        os._exit(0)


def become(request: dict[str, Any]) -> None:
    """Run what the request names, as the interpreter runs it."""
    import random
    import runpy
    from types import ModuleType

    import numpy as np
    import torch

    random.seed()
    np.random.seed()
    torch.seed()
    if (threads := request["env"].get(THREADS)) != os.environ.get(THREADS) and threads:
        torch.set_num_threads(int(threads))
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    os.umask(request["umask"])
    sys.executable, words = request["program"], request["words"]
    sys.orig_argv = [sys.executable, *words]
    encoding = {"encoding": "utf-8"}
    sys.stdin.reconfigure(**encoding)
    sys.stdout.reconfigure(**encoding, line_buffering=os.isatty(1))
    sys.path.pop(0)
    if words[0] == "-m":
        sys.argv = words[1:]
        sys.path[:0] = [str(Path.cwd())] if request["path"] else []
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        return
    main = sys.modules["__main__"] = ModuleType("__main__")
    if words[0] == "-c":
        sys.argv, code, name = ["-c", *words[2:]], words[1], "<string>"
        sys.path[:0] = [""] if request["path"] else []
    else:
        sys.argv, code, name = words, Path(words[0]).read_bytes(), words[0]
        main.__file__ = name
        sys.path[:0] = [str(Path(name).resolve().parent)] if request["path"] else []
    exec(compile(code, name, "exec"), main.__dict__)


if __name__ == "__main__":
    if sys.argv[1] == "ask":
        ask(sys.argv[2], sys.argv[3], sys.argv[4:])
    else:
        become(serve(*sys.argv[2:]))
