// ioredis with its defaults.
const assert = require("node:assert");
const Redis = require("ioredis");

async function main() {
  const client = new Redis({ port: Number(process.argv[2]) });
  await client.flushall();
  assert.equal(await client.set("io", "1"), "OK");
  assert.equal(await client.get("io"), "1");
  assert.equal(await client.incr("io"), 2);
  assert.equal(await client.expire("io", 100), 1);
  const pipeline = client.pipeline();
  for (let n = 0; n < 100; n++) pipeline.set(`io:${n}`, n);
  assert.ok((await pipeline.exec()).every(([error, reply]) => error === null && reply === "OK"));
  const keys = new Set();
  for await (const page of client.scanStream({ match: "io:*", count: 10 })) {
    page.forEach((key) => keys.add(key));
  }
  assert.equal(keys.size, 100);
  const replies = await client.multi().set("io", "2").incr("io").exec();
  assert.deepEqual(replies, [[null, "OK"], [null, 3]]);
  await client.quit();
  console.log("ioredis passed");
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
