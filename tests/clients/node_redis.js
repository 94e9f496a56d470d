// node-redis with its defaults.
const assert = require("node:assert");
const { createClient } = require("redis");

async function main() {
  const client = createClient({ socket: { port: Number(process.argv[2]) } });
  client.on("error", (error) => {
    console.error(error);
    process.exit(1);
  });
  await client.connect();
  await client.flushAll();
  assert.equal(await client.set("nr", "1"), "OK");
  assert.equal(await client.get("nr"), "1");
  assert.equal(await client.incr("nr"), 2);
  assert.equal(await client.expire("nr", 100), 1);
  const writes = [];
  for (let n = 0; n < 100; n++) writes.push(client.set(`nr:${n}`, String(n)));
  assert.ok((await Promise.all(writes)).every((reply) => reply === "OK"));
  const keys = new Set();
  for await (const page of client.scanIterator({ MATCH: "nr:*", COUNT: 10 })) {
    for (const key of [].concat(page)) keys.add(key);
  }
  assert.equal(keys.size, 100);
  const replies = await client.multi().set("nr", "2").incr("nr").exec();
  assert.deepEqual(replies, ["OK", 3]);
  await client.close();
  console.log("node-redis passed");
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
