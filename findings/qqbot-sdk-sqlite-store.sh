#!/usr/bin/env bash
# qqbot-sdk 0.1.0 (imported as `qqbot`) has three stores that it calls interchangeable, and says that SQLiteStore is safe
# under concurrency. Two things differ. `incr` reads and writes in two steps with an `await` between: of 20 concurrent ones
# the memory store counts 20, JSON and SQLite one or two. And `keys()` of a namespace is a LIKE there, in which `_` stands
# for any character and case is no matter: the namespace `my_bot` lists the keys of `my-bot` and `MY_BOT` as its own.
# Seen on Python 3.11.7: "MemoryStore: 20, ['mine']", "JSONStore: 2, ['mine']" and
# "SQLiteStore: 1, ['mine', 'nor this', 'not mine']".
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q qqbot-sdk==0.1.0
cd "$folder"
venv/bin/python - <<'P'
import asyncio

import qqbot


async def look(store):
    await asyncio.gather(*(store.incr("count") for _ in range(20)))
    for name, key in (("my_bot", "mine"), ("my-bot", "not mine"), ("MY_BOT", "nor this")):
        await store.namespace(name).set(key, 1)
    count, keys = await store.get("count"), sorted(await store.namespace("my_bot").keys())
    print(f"{type(store).__name__}: {count}, {keys}")
    return count, keys


async def main():
    memory = await look(qqbot.MemoryStore())
    json = await look(qqbot.JSONStore("store.json"))
    sqlite = await look(qqbot.SQLiteStore("store.db"))
    assert memory == (20, ["mine"]), "the finding no longer holds"
    assert json[0] < 20 and json[1] == ["mine"], "the finding no longer holds"
    assert sqlite[0] < 20, "the finding no longer holds"
    assert sqlite[1] == ["mine", "nor this", "not mine"], "the finding no longer holds"


asyncio.run(main())
P
