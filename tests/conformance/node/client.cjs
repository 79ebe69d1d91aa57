// Checks of @grpc/grpc-js against a gateway: node client.cjs ADDRESS FOLDER CHECK
//
// FOLDER holds gateway/pb/*.proto.
//
// Prints one JSON line of what it saw; a check that fails ends with a stack trace and code 1.
// `reconnect` calls without a pause until its standard input is closed.
"use strict";

const assert = require("node:assert/strict");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const [address, folder, check] = process.argv.slice(2);
const definition = loader.loadSync("gateway/pb/inference.proto", {
  keepCase: true,
  includeDirs: [folder],
});
const { inference } = grpc.loadPackageDefinition(definition);
const unlimited = {
  "grpc.max_receive_message_length": -1,
  "grpc.max_send_message_length": -1,
};

function connect(options = {}) {
  return new inference.GRPCInferenceService(address, grpc.credentials.createInsecure(), {
    ...unlimited,
    ...options,
  });
}

function request(values, { model = "echo_fp32", id = "" } = {}) {
  const raw = Buffer.from(new Float32Array(values).buffer);
  const input = { name: "x", datatype: "FP32", shape: [1, values.length] };
  return { model_name: model, id, inputs: [input], raw_input_contents: [raw] };
}

function floats(buffer) {
  const copy = Uint8Array.from(buffer);
  return Array.from(new Float32Array(copy.buffer));
}

// Resolves to {error, answer, trailers}; never rejects.
function infer(client, message, { metadata = new grpc.Metadata(), ...options } = {}) {
  return new Promise((resolve) => {
    const outcome = { trailers: null };
    const call = client.ModelInfer(message, metadata, options, (error, answer) => {
      Object.assign(outcome, { error, answer });
      if (outcome.trailers || error) setImmediate(() => resolve(outcome));
    });
    call.on("status", (status) => {
      outcome.trailers = status.metadata;
      if ("answer" in outcome) resolve(outcome);
    });
    if (options.cancelAfterMs) setTimeout(() => call.cancel(), options.cancelAfterMs);
  });
}

async function unary() {
  const client = connect();
  for (let n = 0; n < 100; n++) {
    const { error, answer, trailers } = await infer(client, request([n, n + 1], { id: `n${n}` }));
    assert.equal(error, null);
    assert.equal(answer.id, `n${n}`);
    assert.deepEqual(floats(answer.raw_output_contents[0]), [n, n + 1]);
    assert.equal(trailers.get("x-request-id").length, 1);
  }
  return "100 calls";
}

async function stream() {
  const call = connect().ModelStreamInfer();
  const ids = [];
  call.on("data", (message) => ids.push(message.infer_response.id));
  const ended = new Promise((resolve, reject) => {
    call.on("end", resolve);
    call.on("error", reject);
  });
  for (let n = 0; n < 300; n++) call.write(request([n], { id: String(n) }));
  call.end();
  await ended;
  assert.deepEqual(ids, Array.from({ length: 300 }, (_, n) => String(n)));
  return "300 messages";
}

async function deadline() {
  const message = request([1, 2, 3, 4], { model: "slow" });
  const { error } = await infer(connect(), message, { deadline: Date.now() + 100 });
  assert.equal(error.code, grpc.status.DEADLINE_EXCEEDED);
  return error.details;
}

async function cancel() {
  const message = request([1, 2, 3, 4], { model: "slow" });
  const client = connect();
  const { error } = await infer(client, message, { cancelAfterMs: 50 });
  assert.equal(error.code, grpc.status.CANCELLED);
  const after = await infer(client, request([1]));
  assert.equal(after.error, null);
  return error.details;
}

async function gzip() {
  const client = connect({ "grpc.default_compression_algorithm": 2 });
  const values = new Array(10_000).fill(1);
  const { error, answer } = await infer(client, request(values));
  assert.equal(error, null);
  assert.deepEqual(floats(answer.raw_output_contents[0]), values);
  return "10000 elements";
}

async function metadata() {
  const sent = new grpc.Metadata();
  sent.add("x-user-id", "somebody");
  sent.add("x-user-id", "another");
  sent.add("x-data-bin", Buffer.from([0, 1, 2, 255]));
  sent.add("traceparent", `00-${"a".repeat(32)}-${"b".repeat(16)}-01`);
  const message = request([1, 2, 3, 4], { model: "split" });
  const { error, trailers } = await infer(connect(), message, { metadata: sent });
  assert.equal(error, null);
  assert.deepEqual(trailers.get("x-sluice-revision"), ["1"]);
  return trailers.get("x-sluice-variant")[0];
}

async function errors() {
  const { error } = await infer(connect(), request([1], { model: "числа 100%" }));
  assert.equal(error.code, grpc.status.NOT_FOUND);
  assert.equal(error.details, "no route and no model is named 'числа 100%'");
  return error.details;
}

async function large() {
  const values = Float32Array.from({ length: 5 << 20 }, (_, n) => n);
  const { error, answer } = await infer(connect(), request(values));
  assert.equal(error, null);
  const received = answer.raw_output_contents[0];
  assert.equal(Buffer.compare(received, Buffer.from(values.buffer)), 0);
  return `${received.length} bytes`;
}

async function many() {
  const client = connect();
  const numbers = Array.from({ length: 3_000 }, (_, n) => n);
  const outcomes = await Promise.all(
    numbers.map((n) => infer(client, request([n], { id: String(n) }))),
  );
  outcomes.forEach(({ error, answer }, n) => {
    assert.equal(error, null);
    assert.equal(answer.id, String(n));
    assert.deepEqual(floats(answer.raw_output_contents[0]), [n]);
  });
  return "3000 calls at once";
}

async function keepalive() {
  const client = connect({ "grpc.keepalive_time_ms": 500, "grpc.keepalive_timeout_ms": 1_000 });
  const call = client.ModelStreamInfer();
  const failed = [];
  call.on("error", (error) => failed.push(error.details));
  call.on("data", () => {});
  call.write(request([1]));
  await new Promise((resolve) => setTimeout(resolve, 3_200));
  assert.deepEqual(failed, []);
  call.end();
  return "3.2 s";
}

async function reconnect() {
  const client = connect({
    "grpc.initial_reconnect_backoff_ms": 50,
    "grpc.max_reconnect_backoff_ms": 100,
  });
  let isOver = false;
  process.stdin.on("end", () => (isOver = true)).resume();
  const codes = {};
  let last = null;
  for (let n = 0; !isOver; n++) {
    const { error, answer } = await infer(client, request([n], { id: String(n) }));
    last = error ? error.code : 0;
    if (!error) assert.equal(answer.id, String(n));
    codes[last] = (codes[last] || 0) + 1;
    if (error) await new Promise((resolve) => setTimeout(resolve, 20));
    if (n === 0) console.error("ready");
  }
  return { codes, last };
}

const checks = {
  unary, stream, deadline, cancel, gzip, metadata, errors, large, many, keepalive, reconnect,
};
checks[check]().then(
  (seen) => {
    console.log(JSON.stringify(seen));
    process.exit(0);
  },
  (error) => {
    console.error(error);
    process.exit(1);
  },
);
