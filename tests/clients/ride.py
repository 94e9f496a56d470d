"""A loop of SET and GET with redis-py, until standard input ends; prints one line of JSON.

ride.py plain|cluster HOST:PORT...   (a plain client uses the first address only)
"""

import json
import sys
import threading
import time

import redis
from redis.cluster import ClusterNode, RedisCluster


def connect(kind, addresses):
    pairs = [address.rsplit(":", 1) for address in addresses]
    if kind == "plain":
        host, port = pairs[0]
        return redis.Redis(host=host, port=int(port))
    return RedisCluster(startup_nodes=[ClusterNode(host, int(port)) for host, port in pairs])


def main():
    kind, addresses = sys.argv[1], sys.argv[2:]
    stop = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    client = connect(kind, addresses)
    key = f"ride:redis-py-{kind}"
    calls, errors, longest, n = 0, [], 0.0, 0
    print("ready", flush=True)
    while not stop.is_set():
        n += 1
        value = str(n).encode()
        for call in (lambda: client.set(key, value), lambda: client.get(key)):
            began = time.monotonic()
            try:
                got = call()
                if got is not True and got != value:
                    errors.append(f"wrong value {got!r}, not {value!r}")
            except Exception as error:  # every error counts, whatever its class
                errors.append(f"{type(error).__name__}: {error}")
            longest = max(longest, time.monotonic() - began)
            calls += 1
        time.sleep(0.005)
    print(json.dumps({"calls": calls, "errors": errors, "longest_ms": round(longest * 1000)}))


main()
