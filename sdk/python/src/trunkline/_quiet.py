"""gRPC's own messages. Its core writes lines to standard error for each handshake that fails, again and again while a broker is away;
what goes wrong is raised and logged by this package, in words about brokers. Its errors are left alone: the last words of a process
that its core aborts are among them. Whoever sets GRPC_VERBOSITY hears what that says.

Imported before anything else, because the core looks once, when it is loaded.
"""

from __future__ import annotations

import os

if "GRPC_VERBOSITY" not in os.environ:
    os.environ["GRPC_VERBOSITY"] = "ERROR"
    import grpc as grpc

    # nothing for processes that this one starts
    del os.environ["GRPC_VERBOSITY"]
