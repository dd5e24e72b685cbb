"""The loop that people write first: the OpenAI SDK as it comes, a semaphore, and nothing is stored."""

from __future__ import annotations

import asyncio
import sys

PROMPT = "Write.\n" + "Tides: " + "The sea comes and goes. " * 20 + "\nLocks: " + "A lock lifts a boat. " * 20


async def main(url: str, count: int, in_flight: int) -> None:
    from openai import AsyncOpenAI  # here: others import this module for the prompt only

    client = AsyncOpenAI(base_url=url, api_key="none", max_retries=0)
    semaphore = asyncio.Semaphore(in_flight)

    async def call(number: int) -> int:
        async with semaphore:
            answer = await client.chat.completions.create(
                model="bench/m1", messages=[{"role": "user", "content": PROMPT}], seed=number
            )
            return len(answer.choices[0].message.content or "")

    lengths = await asyncio.gather(*(call(number) for number in range(count)))
    assert all(lengths)
    await client.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
