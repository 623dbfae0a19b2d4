"""Stands for Ray's `setup_worker.py` and `default_worker.py`: has the server fork the worker, and waits until that has ended.

Called like Ray's `setup_worker.py`, with or without the arguments of that. Imports next to nothing, since it runs once for each worker.
"""

import importlib.util
import json
import os
import socket
import sys

_CONTEXT, _LANGUAGE = "--serialized-runtime-env-context=", "--language="
_FORKED = b"1"
"""What the server sends once the worker is forked."""


def main(words: list[str]) -> None:
    """Have the worker forked, or become it; does not return."""
    context = next((word.removeprefix(_CONTEXT) for word in words if word.startswith(_CONTEXT)), "")
    arguments = [word for word in words if word.startswith("--") and not word.startswith((_CONTEXT, _LANGUAGE))]
    path = os.environ.pop("RAY_SASSL_FORKS", "")
    if _can_be_forked(arguments, json.loads(context or "{}")):
        _fork(path, arguments, context)
    _become(arguments, context)


def _can_be_forked(arguments: list[str], context: dict) -> bool:
    """Not workers of another Python or in a container, nor those that move objects to disks, which need next to no imports."""
    if any(word.startswith("--worker-type=") and word != "--worker-type=WORKER" for word in arguments):
        return False
    is_other = context.get("command_prefix") or context.get("override_worker_entrypoint")
    return not is_other and context.get("py_executable", sys.executable) == sys.executable


def _fork(path: str, arguments: list[str], context: str) -> None:
    """Returns where the server cannot be reached, or does not fork."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        try:
            connection.connect(path)
            request = json.dumps([arguments, context, dict(os.environ), os.getcwd()])
            socket.send_fds(connection, [request.encode()], [0, 1, 2])
            if connection.recv(1) != _FORKED:
                return
            connection.recv(1)
        except OSError:
            return
    os._exit(0)


def _become(arguments: list[str], context: str) -> None:
    """Replace this process by what Ray would have started."""
    spec = importlib.util.find_spec("ray")
    assert spec is not None
    assert spec.origin is not None
    folder = os.path.join(os.path.dirname(spec.origin), "_private", "workers")
    setup = [os.path.join(folder, "setup_worker.py"), _CONTEXT + context, _LANGUAGE + "PYTHON"] if context else []
    words = [sys.executable, *setup, os.path.join(folder, "default_worker.py"), *arguments]
    os.execv(words[0], words)


if __name__ == "__main__":
    main(sys.argv[1:])
