"""OpenVINO: the stateful model that optimum-intel exports, driven directly.

`int8-f32` and `int4-f32` run with float32 activations outside the matrix products and dynamically quantized ones
inside (groups of 128); `-auto` leaves both to OpenVINO, which computes in bfloat16 where the CPU can.

`listen` serves OpenVINO GenAI's pipeline, with continuous batching and prefix caching, by a minimal HTTP server.
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

FORMATS = ("int8-f32", "int4-f32", "int8-auto", "int4-auto")
SERVED = ("int8", "int4")


def convert(model: Path, out: Path, fmt: str) -> None:
    config = json.loads((model / "config.json").read_text())
    # groups may not straddle the end of a row, so the real model's 576 channels take 64
    group = "128" if config["hidden_size"] % 128 == 0 else "64"
    int4 = ["--ratio", "1.0", "--sym", "--group-size", group] if fmt.startswith("int4") else []
    subprocess.run(
        [
            *(Path(sys.executable).with_name("optimum-cli"), "export", "openvino", "--model", model),
            *("--task", "text-generation-with-past", "--weight-format", fmt[:4], *int4, out),
        ],
        check=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )


def load(path: str, fmt: str, threads: int):
    import openvino as ov

    core = ov.Core()
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    if fmt.endswith("-f32"):
        options |= {"INFERENCE_PRECISION_HINT": "f32", "DYNAMIC_QUANTIZATION_GROUP_SIZE": "128"}
    compiled = core.compile_model(f"{path}/openvino_model.xml", "CPU", options)
    request = compiled.create_infer_request()

    def step(tokens, past: int):
        batch, length = tokens.shape
        request.infer(
            {
                "input_ids": tokens,
                "attention_mask": np.ones((batch, past + length), np.int64),
                "position_ids": np.broadcast_to(np.arange(past, past + length), tokens.shape),
                "beam_idx": np.arange(batch, dtype=np.int32),
            },
            share_inputs=True,
            share_outputs=True,
        )
        return request.get_output_tensor(0).data[:, -1].argmax(-1)[:, None]

    def run(tokens, new_tokens: int) -> tuple[float, float]:
        request.reset_state()
        start = time.perf_counter()
        token = step(tokens, 0)
        middle = time.perf_counter()
        for i in range(new_tokens):
            token = step(token, tokens.shape[1] + i)
        return middle - start, time.perf_counter() - middle

    return run


def read_bytes(path: Path) -> int:
    config = json.loads((path / "config.json").read_text())
    table = 0 if config["tie_word_embeddings"] else config["vocab_size"] * config["hidden_size"]
    # the exporter keeps the embedding in int8 in every format
    return (path / "openvino_model.bin").stat().st_size - table


# -- serving --------------------------------------------------------------------------------------


class Engine(threading.Thread):
    """Thread that steps the pipeline while there are requests. It calls each request's listener with new token ids, and
    with None at the end.
    """

    def __init__(self, path: str, threads: int) -> None:
        super().__init__(daemon=True)
        import openvino_genai as genai

        self.genai, scheduler = genai, genai.SchedulerConfig()
        scheduler.cache_size = 2  # GB
        scheduler.enable_prefix_caching = True
        options = {"INFERENCE_NUM_THREADS": threads}
        self.pipeline = genai.ContinuousBatchingPipeline(path, scheduler, "CPU", options)
        self.new: queue.Queue = queue.Queue()

    def run(self) -> None:
        import openvino as ov

        handles, number = {}, 0
        while True:
            while not self.new.empty() or not handles:
                prompt, new_tokens, listener, gone = self.new.get()
                config = self.genai.GenerationConfig(
                    max_new_tokens=new_tokens, ignore_eos=True, do_sample=False
                )
                handle = self.pipeline.add_request(number, ov.Tensor(np.array([prompt], np.int64)), config)
                handles[number] = handle, listener, gone
                number += 1
            self.pipeline.step()
            for key, (handle, listener, gone) in list(handles.items()):
                if gone.is_set():
                    handle.cancel()
                while handle.can_read():
                    listener([token for output in handle.read().values() for token in output.generated_ids])
                if handle.get_status() != self.genai.GenerationStatus.RUNNING:
                    listener(None)
                    del handles[key]


async def answer(engine: Engine, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
    if head.startswith("get"):
        writer.write(json.dumps({"data": [{"id": "model"}]}).encode())
        writer.close()
        return
    length = int(head.split("content-length: ")[1].split("\r\n")[0])
    request = json.loads(await reader.readexactly(length))
    loop, tokens, gone = asyncio.get_running_loop(), asyncio.Queue(), threading.Event()

    def listener(ids: list[int] | None) -> None:
        loop.call_soon_threadsafe(tokens.put_nowait, ids)

    engine.new.put((request["prompt"], request["max_tokens"], listener, gone))
    count = 0
    with suppress(ConnectionError):
        while (ids := await tokens.get()) is not None:
            count += len(ids)
            event = {"choices": [{"text": " ".join(map(str, ids))}]}
            writer.write(b"data: " + json.dumps(event).encode() + b"\n\n")
            await writer.drain()
        usage = {"choices": [], "usage": {"completion_tokens": count}}
        writer.write(b"data: " + json.dumps(usage).encode() + b"\n\ndata: [DONE]\n\n")
    gone.set()
    writer.close()


def listen(path: str, fmt: str, threads: int, port: int) -> None:
    engine = Engine(path, threads)
    engine.start()

    async def serve() -> None:
        server = await asyncio.start_server(lambda r, w: answer(engine, r, w), "127.0.0.1", port)
        await server.serve_forever()

    asyncio.run(serve())
