"""The loop that people write first: an SDK as it comes, a semaphore, and nothing is stored."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

PROMPT = "Write.\n" + "Tides: " + "The sea comes and goes. " * 20 + "\nLocks: " + "A lock lifts a boat. " * 20


async def ask_openai(url: str) -> tuple[Any, Callable[[int], Awaitable[str | None]]]:
    from openai import AsyncOpenAI  # here: others import this module for the prompt only

    client = AsyncOpenAI(base_url=url, api_key="none", max_retries=0)

    async def ask(number: int) -> str | None:
        answer = await client.chat.completions.create(
            model="bench/m1", messages=[{"role": "user", "content": PROMPT}], seed=number
        )
        return answer.choices[0].message.content

    return client, ask


async def ask_anthropic(url: str) -> tuple[Any, Callable[[int], Awaitable[str | None]]]:
    from anthropic import AsyncAnthropic

    client = AsyncAnthropic(base_url=url, api_key="none", max_retries=0)

    async def ask(_number: int) -> str | None:
        answer = await client.messages.create(
            model="bench/m1", max_tokens=2000, messages=[{"role": "user", "content": PROMPT}]
        )
        return "".join(block.text for block in answer.content if block.type == "text")

    return client, ask


async def main(url: str, count: int, in_flight: int, kind: str) -> None:
    client, ask = await (ask_openai if kind == "openai" else ask_anthropic)(url)
    semaphore = asyncio.Semaphore(in_flight)

    async def call(number: int) -> int:
        async with semaphore:
            return len(await ask(number) or "")

    lengths = await asyncio.gather(*(call(number) for number in range(count)))
    assert all(lengths)
    await client.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
