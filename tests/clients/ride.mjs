// A loop of SET and GET, until standard input ends; prints one line of JSON.
//
// node ride.mjs ioredis|ioredis-cluster|node-redis|node-redis-cluster HOST:PORT...
// (a plain client uses the first address only)

import { createRequire } from "node:module";

// They are installed elsewhere: NODE_PATH counts for require only.
const require = createRequire(import.meta.url);
const Redis = require("ioredis");
const { createClient, createCluster } = require("redis");

const [kind, ...addresses] = process.argv.slice(2);
const nodes = addresses.map((address) => {
  const at = address.lastIndexOf(":");
  return { host: address.slice(0, at), port: Number(address.slice(at + 1)) };
});
// What a client reports beside the failure of a call is not an error of a call.
const quiet = () => {};

async function connect() {
  let client;
  switch (kind) {
    case "ioredis":
      client = new Redis(nodes[0]);
      client.on("error", quiet);
      return client;
    case "ioredis-cluster":
      client = new Redis.Cluster(nodes);
      client.on("error", quiet);
      return client;
    case "node-redis":
      client = createClient({ socket: nodes[0] });
      break;
    case "node-redis-cluster":
      client = createCluster({ rootNodes: nodes.map((socket) => ({ socket })) });
      break;
    default:
      throw new Error(`unknown kind ${kind}`);
  }
  client.on("error", quiet);
  await client.connect();
  return client;
}

const client = await connect();
let stop = false;
process.stdin.on("end", () => (stop = true)).resume();
const key = `ride:${kind}`;
let [calls, longest, n] = [0, 0, 0];
const errors = [];
console.log("ready");
while (!stop) {
  const value = String(++n);
  for (const call of [() => client.set(key, value), () => client.get(key)]) {
    const began = performance.now();
    try {
      const got = await call();
      if (got !== "OK" && got !== value) errors.push(`wrong value ${got}, not ${value}`);
    } catch (error) {
      errors.push(`${error.constructor.name}: ${error.message}`);
    }
    longest = Math.max(longest, performance.now() - began);
    calls++;
  }
  await new Promise((done) => setTimeout(done, 5));
}
console.log(JSON.stringify({ calls, errors, longest_ms: Math.round(longest) }));
process.exit(0);
