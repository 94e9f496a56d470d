"""One INCR with redis-py's defaults, with a token or without; prints what the key holds then.

twice.py PORT plain|once
"""

import sys

import redis

port, kind = int(sys.argv[1]), sys.argv[2]
client = redis.Redis(port=port)
if kind == "once":
    token = client.execute_command("ONCE.TOKEN")
    client.execute_command("ONCE", token, 1, "INCR", "counter")
else:
    client.incr("counter")
print(client.get("counter").decode())
