// One INCR with ioredis's defaults, with a token or without; prints what the key holds then.
//
// node twice.mjs PORT plain|once

import { createRequire } from "node:module";

// It is installed elsewhere: NODE_PATH counts for require only.
const Redis = createRequire(import.meta.url)("ioredis");

const [port, kind] = process.argv.slice(2);
const client = new Redis(Number(port));
client.on("error", () => {});
if (kind === "once") {
  const token = await client.call("ONCE.TOKEN");
  await client.call("ONCE", token, 1, "INCR", "counter");
} else {
  await client.incr("counter");
}
console.log(await client.get("counter"));
process.exit(0);
