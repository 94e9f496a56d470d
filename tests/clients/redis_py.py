"""redis-py with its defaults."""

import sys

import redis

client = redis.Redis(port=int(sys.argv[1]), decode_responses=True)
client.flushall()
assert client.set("py", "1") is True
assert client.get("py") == "1"
assert client.incr("py") == 2
assert client.expire("py", 100) is True
assert 0 < client.ttl("py") <= 100
with client.pipeline(transaction=False) as pipe:
    for n in range(100):
        pipe.set(f"py:{n}", n)
    assert all(pipe.execute())
assert len(set(client.scan_iter(match="py:*", count=10))) == 100
with client.pipeline() as pipe:
    pipe.watch("py")
    before = int(pipe.get("py"))
    pipe.multi()
    pipe.set("py", before + 1)
    pipe.get("py")
    assert pipe.execute() == [True, "3"]
with client.pipeline() as pipe:
    pipe.watch("py")
    client.set("py", "changed")
    pipe.multi()
    pipe.set("py", "lost")
    try:
        pipe.execute()
        raise AssertionError("a transaction over a changed key was carried out")
    except redis.WatchError:
        pass
assert client.info()["redis_version"].startswith("7.")
cluster = redis.RedisCluster(host="localhost", port=int(sys.argv[1]), decode_responses=True)
assert cluster.set("py:cluster", "yes") is True
assert cluster.get("py:cluster") == "yes"
print("redis-py", redis.__version__, "passed")
