"use strict";

// What a user of the official Node SDK does, step by step.
//
//     NODE_PATH=WHERE/node_modules node scenario.js SCENARIO CONFIG.json
//
// WHERE is the folder that the SDK is installed in. The file says where the server is and what it may import.
// Exit 0 if every step went as expected.

const assert = require("node:assert/strict");
const { readFileSync } = require("node:fs");
const { Session, errors, waitForOperation } = require("@yandex-cloud/nodejs-sdk");
const { image: images, imageService: requests } = require("@yandex-cloud/nodejs-sdk/compute-v1");
const { operationService } = require("@yandex-cloud/nodejs-sdk/operation");

const MIB = 2 ** 20;
const POLL_INTERVAL_MS = 100;
const WAIT_MS = 60_000;

/** One session of the SDK, in one folder. */
class User {
  constructor(config, options = {}) {
    this.config = config;
    this.session = new Session({
      iamToken: "anything",
      ssl: { rootCerts: readFileSync(config.root_certificates) },
      pollInterval: POLL_INTERVAL_MS,
      ...options,
    });
    this.images = this.session.client(requests.ImageServiceClient, config.endpoint);
    this.operations = this.session.client(operationService.OperationServiceClient, config.endpoint);
  }

  start(fields, options) {
    const request = { folderId: this.config.folder_id, ...fields };
    return this.images.create(requests.CreateImageRequest.fromPartial(request), options);
  }

  wait(operation) {
    return waitForOperation(operation, this.session, WAIT_MS, this.config.endpoint);
  }

  /** The image that a new operation ends with. */
  async create(fields) {
    const finished = await this.wait(await this.start(fields));
    const image = unpacked(finished.response, images.Image, "Image");
    const metadata = unpacked(finished.metadata, requests.CreateImageMetadata, "CreateImageMetadata");
    assert.equal(metadata.imageId, image.id);
    return image;
  }

  async update(imageId, paths, fields) {
    const request = { imageId, updateMask: { paths }, ...fields };
    const started = await this.images.update(requests.UpdateImageRequest.fromPartial(request));
    const finished = await this.wait(started);
    const metadata = unpacked(finished.metadata, requests.UpdateImageMetadata, "UpdateImageMetadata");
    assert.equal(metadata.imageId, imageId);
    const image = unpacked(finished.response, images.Image, "Image");
    assert.deepEqual(image, await this.get(imageId));
    return image;
  }

  async delete(imageId) {
    const started = await this.images.delete(requests.DeleteImageRequest.fromPartial({ imageId }));
    const finished = await this.wait(started);
    const metadata = unpacked(finished.metadata, requests.DeleteImageMetadata, "DeleteImageMetadata");
    assert.equal(metadata.imageId, imageId);
    assert.equal(finished.response.typeUrl, "type.googleapis.com/google.protobuf.Empty");
  }

  get(imageId, options) {
    return this.images.get(requests.GetImageRequest.fromPartial({ imageId }), options);
  }

  latest(family) {
    const request = { folderId: this.config.folder_id, family };
    return this.images.getLatestByFamily(requests.GetImageLatestByFamilyRequest.fromPartial(request));
  }

  /** The names on each page, as every client loops: until there is no next token. */
  async pages(fields) {
    const pages = [];
    let pageToken = "";
    do {
      const request = { folderId: this.config.folder_id, pageToken, ...fields };
      const answer = await this.images.list(requests.ListImagesRequest.fromPartial(request));
      pages.push(answer.images.map((image) => image.name));
      pageToken = answer.nextPageToken;
    } while (pageToken);
    return pages;
  }
}

/** What an Any holds, which has to be of this type. */
function unpacked(any, type, name) {
  assert.equal(any.typeUrl, `type.googleapis.com/yandex.cloud.compute.v1.${name}`);
  return type.decode(any.value);
}

/** The error that a call has to end with. The SDK keeps the status in its message only: `PATH CODE: text`. */
async function refused(code, call) {
  const error = await call.then(
    (answer) => assert.fail(`${code} was expected, and the answer was ${JSON.stringify(answer)}`),
    (reason) => reason,
  );
  assert.match(error.message, new RegExp(` ${code}: `));
  return error;
}

/** Create from a URI, wait, read, follow the family, read the operations, delete. */
async function lifecycle(config) {
  const user = new User(config);
  const started = await user.start({
    name: "web-1",
    description: "the first",
    labels: { env: "test" },
    family: "web",
    uri: config.uri,
    os: { type: images.Os_Type.LINUX },
  });
  assert.equal(started.done, false);
  assert.equal(started.description, "Create image");
  assert.equal(started.error ?? started.response, undefined);

  const finished = await user.wait(started);
  assert.equal(finished.id, started.id);
  assert.ok(finished.done);
  assert.ok(finished.modifiedAt >= finished.createdAt);
  const { imageId } = unpacked(finished.metadata, requests.CreateImageMetadata, "CreateImageMetadata");
  const image = unpacked(finished.response, images.Image, "Image");
  assert.equal(image.id, imageId);
  assert.equal(image.folderId, config.folder_id);
  assert.deepEqual([image.name, image.description, image.family], ["web-1", "the first", "web"]);
  assert.deepEqual(image.labels, { env: "test" });
  assert.equal(image.status, images.Image_Status.READY);
  assert.equal(image.storageSize, config.stored_bytes);
  assert.equal(image.minDiskSize, config.virtual_bytes);
  assert.equal(image.os.type, images.Os_Type.LINUX);
  assert.equal(image.createdAt.getMilliseconds(), 0);
  assert.deepEqual(await user.get(imageId), image);
  assert.deepEqual(await user.latest("web"), image);

  const second = await user.create({ name: "web-2", family: "web", imageId });
  assert.deepEqual(await user.latest("web"), second);
  await user.delete(second.id);
  assert.deepEqual(await user.latest("web"), image);

  await user.update(imageId, ["description"], { description: "changed" });
  const request = requests.ListImageOperationsRequest.fromPartial({ imageId });
  const { operations, nextPageToken } = await user.images.listOperations(request);
  assert.deepEqual(operations.map((each) => each.description), ["Update image", "Create image"]);
  assert.equal(nextPageToken, "");
  const asked = operationService.GetOperationRequest.fromPartial({ operationId: operations[0].id });
  assert.deepEqual(await user.operations.get(asked), operations[0]);

  const taken = await refused("ALREADY_EXISTS", user.start({ name: "web-1", imageId }));
  assert.match(taken.message, /Image with name "web-1" already exists/);
  await user.delete(imageId);
  const gone = await refused("NOT_FOUND", user.get(imageId));
  assert.ok(gone.message.endsWith(`Image "${imageId}" not found`), gone.message);
  await refused("NOT_FOUND", user.latest("web"));
  assert.deepEqual(await user.pages({}), [[]]);
}

/** List with pages, filter and order. */
async function pages(config) {
  const user = new User(config);
  const first = await user.create({ name: "image-1", family: "odd", uri: config.uri });
  for (const number of [2, 3, 4, 5]) {
    const family = number % 2 ? "odd" : "even";
    await user.create({ name: `image-${number}`, family, imageId: first.id });
  }
  const names = [1, 2, 3, 4, 5].map((number) => `image-${number}`);

  assert.deepEqual((await user.pages({ pageSize: 2 })).map((page) => page.length), [2, 2, 1]);
  assert.deepEqual((await user.pages({ pageSize: 2 })).flat().sort(), names);
  assert.deepEqual((await user.pages({})).flat().sort(), names);
  assert.deepEqual(await user.pages({ filter: 'name = "image-3"' }), [["image-3"]]);
  assert.deepEqual(await user.pages({ filter: 'name = "nobody"' }), [[]]);
  const odd = { filter: 'family = "odd"', orderBy: "name desc", pageSize: 2 };
  assert.deepEqual(await user.pages(odd), [["image-5", "image-3"], ["image-1"]]);
  await refused("INVALID_ARGUMENT", user.pages({ filter: 'colour = "red"' }));
}

/** Each field by its mask leaves the others alone. */
async function update(config) {
  const user = new User(config);
  const start = await user.create({ name: "before", description: "before", labels: { a: "1" }, uri: config.uri });
  const changes = { name: "after", description: "after", labels: { b: "2" }, minDiskSize: 64 * MIB };
  const paths = { name: "name", description: "description", labels: "labels", minDiskSize: "min_disk_size" };
  let expected = start;
  for (const [field, path] of Object.entries(paths)) {
    expected = { ...expected, [field]: changes[field] };
    assert.deepEqual(await user.update(start.id, [path], changes), expected);
  }
  assert.deepEqual((await user.update(start.id, ["labels"], {})).labels, {});
  await refused("INVALID_ARGUMENT", user.update(start.id, ["minDiskSize"], changes));
  await refused("INVALID_ARGUMENT", user.update(start.id, ["min_disk_size"], { minDiskSize: 4 * MIB }));
}

/** An operation that fails is what waitForOperation rejects with; its image is gone. */
async function failure(config) {
  const user = new User(config);
  const started = await user.start({ name: "broken", uri: config.uri_of_no_image });
  assert.equal(started.done, false);

  const failed = await user.wait(started).then(
    () => assert.fail("an operation that failed was reported as done well"),
    (operation) => operation,
  );

  assert.equal(failed.id, started.id);
  assert.ok(failed.done);
  assert.equal(failed.response, undefined);
  assert.equal(failed.error.code, 9);
  assert.notEqual(failed.error.message, "");
  const { imageId } = unpacked(failed.metadata, requests.CreateImageMetadata, "CreateImageMetadata");
  await refused("NOT_FOUND", user.get(imageId));
  assert.deepEqual(await user.pages({}), [[]]);
  await refused("FAILED_PRECONDITION", user.start({ uri: config.uri_not_allowed }));
}

/** The SDK reads x-request-id from the initial metadata, of answers and of refusals. */
async function request_ids(config) {
  const headers = { "x-client-request-id": "ours-1", "x-client-trace-id": "ours-2" };
  const user = new User(config, { headers });
  const seen = [];
  const options = { onHeader: (header) => seen.push(header.get("x-request-id")) };
  const started = await user.start({ name: "web", uri: config.uri }, options);
  const finished = await user.wait(started);
  const image = unpacked(finished.response, images.Image, "Image");
  await user.get(image.id, options);
  assert.deepEqual(seen, ["ours-1", "ours-1"]);

  for (const [code, call] of [
    ["NOT_FOUND", user.get("fd800000000000000000")],
    ["INVALID_ARGUMENT", user.start({ name: "Not-A-Name", imageId: image.id })],
    ["ALREADY_EXISTS", user.start({ name: "web", imageId: image.id })],
  ]) {
    const error = await refused(code, call);
    assert.ok(error instanceof errors.ApiError, `${error}`);
    assert.equal(error.requestId, "ours-1");
    assert.equal(error.serverTraceId, "ours-2");
  }
}

/** A call that may be retried is not retried for a mistake of the caller's, and its status has a number. */
async function status_codes(config) {
  const user = new User(config);
  const attempts = [];
  const options = { retry: true, onRetryableError: (error) => attempts.push(error) };
  const missing = await refused("NOT_FOUND", user.get("fd800000000000000000", options));
  assert.equal(missing.code, 5);
  const malformed = await refused("INVALID_ARGUMENT", user.get("", options));
  assert.equal(malformed.code, 3);
  assert.deepEqual(attempts, []);
}

const SCENARIOS = { lifecycle, pages, update, failure, request_ids, status_codes };

const [name, file] = process.argv.slice(2);
SCENARIOS[name](JSON.parse(readFileSync(file, "utf-8"))).catch((error) => {
  // The SDK rejects with an operation, too, which is no Error.
  console.error(error instanceof Error ? error.stack : JSON.stringify(error, null, 2));
  process.exitCode = 1;
});
