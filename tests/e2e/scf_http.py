"""The files of three functions as HTTP functions: what a backend on one's own server comes down to.

`python scf_http.py PORT FOLDER` serves `FOLDER/registration.py` and so on at `/registration` and so on.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import traceback
from pathlib import Path

from json_http import serve

SLOTS = ("registration", "transmission", "cleanup")


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main_handler


FUNCTIONS = {f"/{slot}": load(Path(sys.argv[2]) / f"{slot}.py") for slot in SLOTS}


def react(path: str, headers, body: str) -> tuple[int, dict]:
    try:
        return 200, FUNCTIONS[path](json.loads(body), {"request_id": headers["idempotency-key"]})
    except Exception:
        traceback.print_exc()
        return 500, {}


if __name__ == "__main__":
    serve(int(sys.argv[1]), react)
