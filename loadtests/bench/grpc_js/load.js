// Keeps a number of unary calls under way on one channel and prints one line of JSON at the end.
// The only argument is JSON: address, path, body (file), inFlight, seconds, isVarying, certificate
// (file, or "" for plain text), modules (folder of the installed packages).
"use strict";

const { randomBytes } = require("node:crypto");
const { readFileSync } = require("node:fs");

const options = JSON.parse(process.argv[2]);
const grpc = require(`${options.modules}/@grpc/grpc-js`);

const credentials = options.certificate
  ? grpc.credentials.createSsl(readFileSync(options.certificate))
  : grpc.credentials.createInsecure();
const client = new grpc.Client(options.address, credentials, { "grpc.enable_http_proxy": 0 });
const message = readFileSync(options.body);
const asIs = (value) => value;

const takenUs = [];
let errors = 0;
let firstError = "";
let running = 0;
let startedNs;
let endNs;

function ask() {
  const metadata = new grpc.Metadata();
  const settings = {};
  if (options.isVarying) {
    // What tracing and deadline propagation send: no two calls carry the same bytes.
    metadata.set("traceparent", `00-${randomBytes(16).toString("hex")}-${randomBytes(8).toString("hex")}-01`);
    settings.deadline = Date.now() + 5000 + Math.floor(Math.random() * 5000);
  }
  const askedNs = process.hrtime.bigint();
  running += 1;
  client.makeUnaryRequest(options.path, asIs, asIs, message, metadata, settings, (error) => {
    const nowNs = process.hrtime.bigint();
    running -= 1;
    if (error) {
      errors += 1;
      firstError = firstError || String(error);
    } else {
      takenUs.push(Number(nowNs - askedNs) / 1000);
    }
    if (nowNs < endNs && errors < 100) {
      ask();
    } else if (running === 0) {
      report(nowNs);
    }
  });
}

function report(nowNs) {
  takenUs.sort((a, b) => a - b);
  const at = (share) => takenUs[Math.max(0, Math.ceil(share * takenUs.length) - 1)] || 0;
  console.log(JSON.stringify({
    requests: takenUs.length,
    errors,
    firstError,
    seconds: Number(nowNs - startedNs) / 1e9,
    p50Us: Math.round(at(0.5)),
    p99Us: Math.round(at(0.99)),
  }));
  client.close();
}

client.waitForReady(Date.now() + 10000, (error) => {
  if (error) {
    console.log(JSON.stringify({ requests: 0, errors: 1, firstError: String(error) }));
    process.exit(1);
  }
  startedNs = process.hrtime.bigint();
  endNs = startedNs + BigInt(Math.round(options.seconds * 1e9));
  for (let n = 0; n < options.inFlight; n += 1) {
    ask();
  }
});
