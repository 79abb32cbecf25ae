"""The process that renders chat templates: `python -m zeropoint.serve.template_worker`.

A model's chat template is a program from an unknown author. jinja2's sandbox keeps the template from Python and files,
but not from endless loops or from filling the memory. So templates run in a process with limits of memory and of CPU
time for each conversation, and the server (`templates.py`) starts a new process when a template exceeds them. For each
conversation, the process reads one line of JSON and writes one.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from functools import lru_cache
from typing import Any

from zeropoint.errors import ZeropointError, reason
from zeropoint.tokenizer.templates import compile_template, render

#: The most address space of the process.
MEMORY_BYTES = 512 << 20


def main() -> None:
    """Render one conversation for each line of standard input."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which then closes our input
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, hard))
    for line in sys.stdin.buffer:
        request = json.loads(line)
        # CPU time: on a busy machine, waiting for a core is not the template's fault. SIGPROF ends the process.
        signal.setitimer(signal.ITIMER_PROF, request.pop("seconds"))
        answer = json.dumps(_answer(request))
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.write(answer + "\n")
        sys.stdout.flush()


def _answer(request: dict[str, Any]) -> dict[str, str]:
    """Return `{"text": ...}`, or `{"error": ...}` if the template refuses the conversation or fails."""
    limit = request.pop("limit")
    try:
        text = render(_compile(request.pop("template")), **request)
    except (ZeropointError, MemoryError, RecursionError) as cause:
        return {
            "error": reason(cause, 500) if str(cause) else "the model's chat template takes too much memory"
        }
    if len(text) > limit:
        return {
            "error": f"the conversation has {len(text)} characters, and at most {limit} are read: shorten it"
        }
    return {"text": text}


_compile = lru_cache(maxsize=16)(compile_template)


if __name__ == "__main__":
    main()
