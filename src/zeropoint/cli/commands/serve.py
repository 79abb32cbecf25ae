"""Serve models over HTTP: the APIs of OpenAI and Anthropic, and a chat page.

MODEL is an artifact or an original model, served under the name of its folder; NAME=MODEL sets another name. A single
model is loaded at the start, several models each at their first request. docs/serve.md describes the APIs, options,
limits and metrics.
"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from zeropoint.cli.common import add_kv_cache_option, add_revision_option, add_threads_option
from zeropoint.cli.console import readable
from zeropoint.cli.option_values import MEMORY, SECONDS, Kind, at_least_zero, plain_file, whole
from zeropoint.errors import UsageError
from zeropoint.machine.cores import default_threads
from zeropoint.machine.heap import bound

if TYPE_CHECKING:
    from zeropoint.serve.http.state import Settings

HELP = "serve models over HTTP: OpenAI's and Anthropic's APIs, and a chat page"


def _port(text: str) -> int:
    return whole(0, 8000).read(text)


PORT = Kind("a port number from 0 (any free one) to 65535", "8000", _port, lambda port: 0 <= port <= 65535)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `zeropoint serve`."""
    parser.add_argument(
        "models",
        nargs="+",
        metavar="[NAME=]MODEL",
        help="an artifact, or an original model: checkpoint folder, .gguf file or hub name",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="address to listen on (default: 127.0.0.1, this machine alone)",
    )
    parser.add_argument(
        "--port", type=PORT, default=8000, metavar="N", help="port to listen on (default: 8000)"
    )
    parser.add_argument(
        "--served-model-name", type=readable, metavar="NAME", help="name under which a single model is served"
    )
    add_revision_option(parser)
    engine = parser.add_argument_group("engine")
    add_threads_option(engine)
    engine.add_argument(
        "--context",
        type=whole(2, 4096),
        metavar="N",
        help="most tokens of a request, prompt and answer together (default: the model's context length)",
    )
    add_kv_cache_option(engine)
    engine.add_argument(
        "--kv-tokens",
        type=whole(64, 65536),
        metavar="N",
        help="tokens that the key-value cache of a model holds, for all its requests together (default: one context "
        "length, or up to 8 but at most 65536 tokens if they fit in a quarter of the free memory)",
    )
    engine.add_argument(
        "--max-running",
        type=whole(1, 64),
        default=64,
        metavar="N",
        help="most requests that one forward step computes (default: 64)",
    )
    engine.add_argument(
        "--max-queue",
        type=whole(0, 256),
        default=256,
        metavar="N",
        help="requests that may wait beside --max-running others; further ones get HTTP status 429 (default: 256)",
    )
    engine.add_argument(
        "--memory",
        type=MEMORY,
        metavar="SIZE",
        help="memory for loaded models; the model unused for the longest time is unloaded first (default: no limit)",
    )
    access = parser.add_argument_group("access and limits")
    key = access.add_mutually_exclusive_group()
    key.add_argument(
        "--api-key",
        type=readable,
        action="append",
        default=[],
        metavar="KEY",
        help="API key that clients must send; repeatable, so that each of several keys is accepted",
    )
    key.add_argument(
        "--api-key-file",
        type=plain_file,
        metavar="FILE",
        help="file with the accepted API keys, one per line",
    )
    access.add_argument(
        "--cors",
        type=readable,
        action="append",
        default=[],
        metavar="ORIGIN",
        help='web origin whose pages may call the server, like https://example.com, or "*"; repeatable',
    )
    access.add_argument(
        "--max-body",
        type=MEMORY,
        default=16 << 20,
        metavar="SIZE",
        help="largest body of a request (default: 16MiB)",
    )
    access.add_argument(
        "--max-connections",
        type=whole(1, 2048),
        default=2048,
        metavar="N",
        help="most open connections (default: 2048)",
    )
    access.add_argument(
        "--client-seconds",
        type=SECONDS,
        default=10.0,
        metavar="S",
        help="seconds that a client has to send its headers; three times as long to send the body, six times to "
        "receive a part of the answer (default: 10)",
    )
    access.add_argument(
        "--drain-seconds",
        type=at_least_zero("30"),
        default=30.0,
        metavar="S",
        help="seconds that running requests have to end after Ctrl-C or SIGTERM (default: 30)",
    )


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM, and return 0."""
    bound()
    # these import the libraries of the extra `serve`: if they are missing, fail before a model is opened
    from zeropoint.serve.engine import EngineOptions
    from zeropoint.serve.http.app import make_app
    from zeropoint.serve.http.guard import is_local
    from zeropoint.serve.http.server import Server, configure, listen, raise_file_limit
    from zeropoint.serve.http.state import Settings
    from zeropoint.serve.models import open_models

    folders = named_folders(args.models, args.served_model_name, args.revision)
    api_keys = keys_of(args)
    sock = listen(args.host, args.port)
    with sock:
        host, port = sock.getsockname()[:2]
        settings = Settings(
            api_keys=api_keys,
            origins=tuple(args.cors),
            local=is_local(host),
            max_body_bytes=args.max_body,
            max_connections=args.max_connections,
            header_seconds=args.client_seconds,
            body_seconds=3 * args.client_seconds,
            send_seconds=6 * args.client_seconds,
        )
        raise_file_limit(args.max_connections)
        options = EngineOptions(
            threads=default_threads(args.threads),
            cache_tokens=args.kv_tokens,
            cache_type=args.kv_cache,
            context=args.context,
            max_running=args.max_running,
            max_queue=args.max_queue,
        )
        models = open_models(folders, options, memory_bytes=args.memory)
        if len(folders) == 1:
            next(iter(models.by_name.values())).load()
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        config = configure(make_app(models, settings), settings)
        Server(config, args.drain_seconds, lambda: _greet(url, list(folders), settings)).run(sockets=[sock])
    return 0


def named_folders(models: Sequence[str], name: str | None, revision: str | None) -> dict[str, Path]:
    """Return the paths of the models by the names under which they are served.

    Raises `UsageError` for a name given twice, or a model that cannot be found.
    """
    from zeropoint.sources.location import locate

    out: dict[str, Path] = {}
    for entry in models:
        before, sign, after = entry.partition("=")
        explicit = bool(sign and before) and not Path(entry).expanduser().exists()
        where = after if explicit else entry
        path = locate(where, revision=revision)
        local = Path(where).expanduser().exists()
        label = before if explicit else path.resolve().name.removesuffix(".gguf") if local else where
        if name is not None:
            if len(models) > 1:
                raise UsageError(
                    "--served-model-name has no effect with several models: give NAME=MODEL for each"
                )
            label = name
        if label in out:
            raise UsageError(
                f"two models are named {label}: give one of them another name, as in NAME={entry}"
            )
        out[label] = path
    return out


def keys_of(args: argparse.Namespace) -> tuple[str, ...]:
    """Return the API keys of the options. Raises `UsageError` for a file without keys, and for an empty key."""
    keys = tuple(args.api_key)
    if args.api_key_file is not None:
        try:
            lines = Path(args.api_key_file).read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            raise UsageError(f"{args.api_key_file} is not UTF-8 text: write one key per line") from None
        keys = tuple(line.strip() for line in lines if line.strip())
        if not keys:
            raise UsageError(f"{args.api_key_file} holds no key: write one per line")
    if not all(keys):
        raise UsageError("--api-key is empty: give a key")
    return keys


def _greet(url: str, names: list[str], settings: Settings) -> None:
    """Print the server's address, a command to try it, and a warning if anyone may use it."""
    key = " -H 'Authorization: Bearer KEY'" if settings.api_keys else ""
    body = f'{{"model": "{names[0]}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    lines = [
        f"serving {', '.join(names)} at {url} (chat page: {url}/, Ctrl-C stops)",
        f"try: curl {url}/v1/chat/completions -H 'Content-Type: application/json'{key} -d '{body}'",
    ]
    if not settings.local and not settings.api_keys:
        lines.append("warning: anyone who reaches this address may use the models: --api-key asks for a key")
    with contextlib.suppress(UsageError):  # the output goes to a full disk: serve all the same
        print("\n".join(lines), flush=True)
