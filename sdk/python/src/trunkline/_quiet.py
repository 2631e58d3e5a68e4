"""gRPC's own messages. Its core writes a line to standard error for each handshake that fails, again and again while a broker is away;
what goes wrong is raised and logged by this package, in words about brokers. Whoever sets GRPC_VERBOSITY hears it all the same.

Imported before anything else, because the core looks once, when it is loaded.
"""

from __future__ import annotations

import os

if "GRPC_VERBOSITY" not in os.environ:
    os.environ["GRPC_VERBOSITY"] = "NONE"
    import grpc as grpc

    # nothing for processes that this one starts
    del os.environ["GRPC_VERBOSITY"]
