"""What does the service bear, and what does dynamic batching bring?

The shipped starter, an index of its validation drawings, 1, 8 and 32 clients on 127.0.0.1 that ask one question after
the other: texts in 24 languages, re-ranked (`--rerank`). Batched and unbatched services run in the same process
group, one after the other in turns. `serve_throughput_N`: answers per second; `serve_p95_ms_N`; both against the
unbatched service. Then mixed requests (search, embed, match, images; 5 % malformed): every answer is compared with the
offline one, `serve_wrong` counts those that differ, `serve_5xx` the faults, `serve_memory_growth_mb` what the process
has grown.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import numpy as np
import psutil
from _common import report

from mmbert import MMBert, SearchIndex
from mmbert.data.sources import open_data
from mmbert.search.index import build_index
from mmbert.search.service.core import image_bytes, name_of

SOURCE = "starter:validation/noto"
PORTS = {"batched": 8761, "unbatched": 8762}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer requests")
    parser.add_argument("--requests", type=int, default=10_000, help="mixed requests")
    parser.add_argument("--rerank", type=int, default=10)
    args = parser.parse_args()
    per_level, mixed = (96, 300) if args.quick else (640, args.requests)
    model = MMBert.from_pretrained("starter")
    with tempfile.TemporaryDirectory(prefix="mmbert-serve-") as folder:
        build_index(model, SOURCE, folder)
        index = SearchIndex.open(folder, model)
        servers = {
            "batched": start(folder, PORTS["batched"], 64),
            "unbatched": start(folder, PORTS["unbatched"], 1),
        }
        try:
            for clients in (1, 8, 32):
                compare(clients, per_level, args.rerank)
            check(index, mixed, servers["batched"].pid)
        finally:
            for server in servers.values():
                server.terminate()
            for server in servers.values():
                server.wait()


def start(folder: str, port: int, batch: int) -> subprocess.Popen[bytes]:
    """A service of its own process, once it is ready."""
    command = [sys.executable, "-m", "mmbert", "serve", "--index", folder, "--port", str(port), "--batch", str(batch)]
    server = subprocess.Popen([*command, "--queue", "1024", "--timeout", "120"])
    for _ in range(1200):
        try:
            if httpx.get(f"http://127.0.0.1:{port}/readyz").status_code == 200:
                return server
        except httpx.TransportError:
            time.sleep(0.5)
        if server.poll() is not None:
            break
    server.kill()
    raise SystemExit(f"the service on port {port} did not start")


def captions() -> list[str]:
    """Captions of the validation drawings, one language after the other."""
    source = open_data(SOURCE)
    records = [source[i] for i in range(len(source))]
    languages = sorted(records[0].captions)
    return [record.captions[languages[i % len(languages)]][0] for i, record in enumerate(records)]


def compare(clients: int, count: int, rerank: int) -> None:
    """Both services at one number of clients, in turns."""
    words = captions()
    times: dict[str, list[float]] = {name: [] for name in PORTS}
    spent = dict.fromkeys(PORTS, 0.0)
    for turn in range(4):
        for name in list(PORTS)[:: 1 if turn % 2 else -1]:
            begin = time.perf_counter()
            times[name] += asyncio.run(load(PORTS[name], clients, count // 4, words, rerank, turn))
            spent[name] += time.perf_counter() - begin
    ours, theirs = times["batched"], times["unbatched"]
    rate = {name: len(times[name]) / spent[name] for name in PORTS}
    print(json.dumps({"clients": clients, **{name: quantiles(found) for name, found in times.items()}}), flush=True)
    report(
        f"serve_throughput_{clients}",
        rate["batched"],
        "requests/s",
        "unbatched",
        rate["unbatched"],
        more_is_better=True,
    )
    report(
        f"serve_p95_ms_{clients}", 1000 * np.quantile(ours, 0.95), "ms", "unbatched", 1000 * np.quantile(theirs, 0.95)
    )


def quantiles(times: list[float]) -> dict[str, float]:
    return {f"p{q}_ms": round(1000 * float(np.quantile(times, q / 100)), 1) for q in (50, 95, 99)}


async def load(port: int, clients: int, count: int, words: list[str], rerank: int, turn: int) -> list[float]:
    """Seconds of each of ``count`` searches by so many clients."""
    todo = iter(range(turn * count, (turn + 1) * count))
    times: list[float] = []

    async def client(browser: httpx.AsyncClient) -> None:
        for number in todo:
            begin = time.perf_counter()
            body = {"text": words[number % len(words)], "k": 10, "rerank": rerank}
            (await browser.post("/v1/search", json=body)).raise_for_status()
            times.append(time.perf_counter() - begin)

    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120, limits=limits) as browser:
        await asyncio.gather(*(client(browser) for _ in range(clients)))
    return times


def check(index: SearchIndex, count: int, process: int) -> None:
    """Mixed requests against what the index and the model say offline."""
    kinds = requests(index)
    tally = {"wrong": 0, "5xx": 0, "answers": 0}
    grown: list[int] = []

    async def client(browser: httpx.AsyncClient, todo: Any) -> None:
        for number in todo:
            ask, right = kinds[number % len(kinds)]
            answer = await ask(browser)
            tally["answers"] += 1
            tally["5xx"] += answer.status_code >= 500
            tally["wrong"] += not right(answer)
            if number % max(1, count // 20) == 0:
                grown.append(int(psutil.Process(process).memory_info().rss))

    async def everybody() -> None:
        todo = iter(range(count))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{PORTS['batched']}", timeout=120) as browser:
            await asyncio.gather(*(client(browser, todo) for _ in range(16)))

    asyncio.run(everybody())
    print(json.dumps({"resident_mb": [round(size / 1e6) for size in grown]}), flush=True)
    growth = max(0, grown[-1] - grown[len(grown) // 4]) / 1e6
    for figure, value, unit in (
        ("serve_answers", tally["answers"], "answers"),
        ("serve_wrong", tally["wrong"], "answers"),
        ("serve_5xx", tally["5xx"], "answers"),
        ("serve_memory_growth_mb", round(growth, 1), "MB"),
    ):
        print(json.dumps({"figure": figure, "value": value, "unit": unit}), flush=True)


Ask = Callable[[httpx.AsyncClient], Awaitable[httpx.Response]]
Right = Callable[[httpx.Response], bool]


def requests(index: SearchIndex) -> list[tuple[Ask, Right]]:
    """100 requests, 5 of them malformed, each with what tells a right answer."""
    found: list[tuple[Ask, Right]] = []
    words = captions()
    hits = index.search(words[0], k=40)
    for i in range(50):
        text = words[(7 * i) % len(words)]
        offline = index.search(text, k=5, rerank=(i % 3) * 4)
        scores = [hit.score for hit in offline]
        body = {"text": text, "k": 5, "rerank": (i % 3) * 4}
        found.append((posted("/v1/search", body), same(lambda a: [h["score"] for h in a["hits"]], scores)))
    for i in range(20):
        text = words[(11 * i) % len(words)]
        vector = index.model.encode_text([text])
        found.append((posted("/v1/embed", {"texts": [text]}), same(lambda a: a["texts"], vector)))
    for i in range(15):
        hit = hits[i]
        data = base64.b64encode(image_bytes(index, name_of(hit.image.key))).decode()
        match = index.model.match([hit.image], [words[i]])
        found.append(
            (posted("/v1/match", {"images": [data], "texts": [words[i]]}), same(lambda a: a["probabilities"], match))
        )
    for i in range(10):
        name = name_of(hits[i + 15].image.key)
        data = image_bytes(index, name)
        found.append((fetched(f"/v1/images/{name}"), lambda answer, data=data: answer.content == data))
    for bad in (b"{", b'{"text": 3}', b'{"text": "a", "where": "x ="}', b'{"image": "AAAA"}', b"\xff" * 300):
        found.append((posted("/v1/search", bad), lambda answer: 400 <= answer.status_code < 500))
    order = np.random.default_rng(0).permutation(len(found))
    return [found[i] for i in order]


def posted(path: str, body: Any) -> Ask:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"content-type": "application/json"}
    return lambda browser: browser.post(path, content=content, headers=headers)


def fetched(path: str) -> Ask:
    return lambda browser: browser.get(path)


def same(read: Callable[[Any], Any], expected: Any) -> Right:
    """Numbers as they are offline; batches of another make-up round otherwise in the last digits."""
    return lambda answer: answer.status_code == 200 and np.allclose(read(answer.json()), expected, atol=2e-4)


if __name__ == "__main__":
    main()
