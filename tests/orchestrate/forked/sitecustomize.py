"""Runs first in every Python process that has this folder on its path: one that Ray starts as a worker is forked instead.

The process hands its arguments, environment and standard streams to the server in `workers.py` and waits until the worker has ended.
"""

import os
import sys

_script = "".join(sys.orig_argv[1:2])  # `sys.argv` is not there yet
_goes_on_in_a_shell = _script.endswith("/setup_worker.py") and '"command_prefix": []' not in "".join(sys.orig_argv)
if "RAY_SASSL_FORKS" in os.environ and _script.endswith(("/setup_worker.py", "/default_worker.py")) and not _goes_on_in_a_shell:
    import json
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(os.environ["RAY_SASSL_FORKS"])
        request = json.dumps([sys.orig_argv[1:], dict(os.environ), os.getcwd()])
        socket.send_fds(connection, [request.encode()], [0, 1, 2])
        connection.recv(1)
    os._exit(0)
