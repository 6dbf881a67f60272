"""Runs programs in the sandbox for another process, which has given this one another user: a JSON request a line."""

import json
import os
import sys
from dataclasses import asdict

from gift.sandbox.run import Limits, SandboxError, run

if __name__ == "__main__":
    assert os.geteuid() != 0
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = asdict(run(request["program"], stdin=request["stdin"], limits=Limits(**request["limits"])))
        except SandboxError as error:
            answer = {"error": str(error)}
        print(json.dumps(answer), flush=True)
