"""Runs first in every Python process that has this folder on its path: one that Ray starts as a worker is forked instead.

The process hands its arguments, environment and standard streams to the server in `workers.py` and waits until the worker has ended.
"""

import os
import sys

# `sys.argv` is not set yet.
if "RAY_SASSL_FORKS" in os.environ and "".join(sys.orig_argv[1:2]).endswith(("/setup_worker.py", "/default_worker.py")):
    import json
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(os.environ["RAY_SASSL_FORKS"])
        request = json.dumps([sys.orig_argv[1:], dict(os.environ), os.getcwd()])
        socket.send_fds(connection, [request.encode()], [0, 1, 2])
        connection.recv(1)
    os._exit(0)
