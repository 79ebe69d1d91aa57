// Recomputes every vector of slots.json and exits with 1 at the first that differs.
//
// Written from the definition in the file's head, with nothing but Node's own modules, so that it
// also serves as the example of how to find a key's slot in JavaScript.
// Run: node tests/golden/verify_slots.mjs [other-vectors.json]

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";

const SLOTS = 1_000_000n;
const AT_LEAST = 1_000; // a file that lost its vectors must not pass

function slotOf(salt, key) {
  const digest = createHash("sha256").update(salt, "utf8").update("\0").update(key).digest();
  return (digest.readBigUInt64BE(0) * SLOTS) >> 64n; // BigInt: the product has up to 84 bits
}

const file = process.argv[2] ?? new URL("slots.json", import.meta.url);
const { vectors } = JSON.parse(readFileSync(file, "utf8"));
if (vectors.length < AT_LEAST) {
  console.error(`only ${vectors.length} vectors, expected at least ${AT_LEAST}`);
  process.exit(1);
}
for (const [index, [salt, hexadecimal, slot]] of vectors.entries()) {
  const found = slotOf(salt, Buffer.from(hexadecimal, "hex"));
  if (found !== BigInt(slot)) {
    const which = `vector ${index}, salt ${JSON.stringify(salt)}, key ${hexadecimal}`;
    console.error(`${which}: slot ${found}, the file says ${slot}`);
    process.exit(1);
  }
}
console.log(`${vectors.length} vectors checked`);
