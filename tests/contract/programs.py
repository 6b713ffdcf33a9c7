"""What the other processes of `test_across_processes` do: ``python -m tests.contract.programs NAME URL …``."""

import asyncio
import sys
import time

from backburner import Cache


def compute(url: str, callers: str) -> None:
    """Many tasks miss at once; each computation leaves a mark in the server. Prints how many got the value."""

    async def main() -> None:
        cache = Cache(url, strict=True, timeout=5)
        marks = Cache(url, prefix="marks:", strict=True, timeout=5)

        async def load() -> dict[str, int]:
            await marks.aincrement("computed")
            await asyncio.sleep(0.05)
            return {"value": 42}

        print("ready", flush=True)
        sys.stdin.readline()
        values = await asyncio.gather(*[cache.aremember("key", 60, load) for _ in range(int(callers))])
        print(sum(value == {"value": 42} for value in values), flush=True)
        await cache.aclose()
        await marks.aclose()

    asyncio.run(main())


def hang(url: str, lease: str) -> None:
    """Begin to compute and never end."""
    cache = Cache(url, strict=True, lease=float(lease))

    def load() -> None:
        print("computing", flush=True)
        time.sleep(60)

    cache.remember("key", 60, load)


def slow(url: str) -> None:
    """Compute until told to go on; print what `remember` gave."""
    cache = Cache(url, strict=True)

    def load() -> str:
        print("computing", flush=True)
        return sys.stdin.readline().strip()

    print(cache.remember("key", 60, load), flush=True)


def hold(url: str, ttl: str) -> None:
    """Take a lock and never give it back; print its number."""
    held = Cache(url, timeout=5).lock("import", ttl=float(ttl))
    held.acquire()
    print(held.fence, flush=True)
    time.sleep(60)


def count(url: str, times: str) -> None:
    """Count in a way that only a lock makes right."""
    cache = Cache(url, strict=True, timeout=5)
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(int(times)):
        with cache.lock("counter", wait=30):
            cache.put("counter", cache.get("counter") + 1)
    print("done", flush=True)


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
