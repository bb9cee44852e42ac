// The page: an image or the camera, one request in flight at most, the answer drawn over the image and counted.

import { drawMap, drawObjects, isBackground } from "./shapes.js";

const [LEAST_SIDE, MOST_SIDE] = [800, 2400]; // of the canvas: smaller images are shown enlarged, larger ones shrunk
const MOST_ROWS = 15; // of more classes, those without a find are left out
const SETTLE = 250; // milliseconds without a change before a still image is asked for again
const CAMERA = { video: { facingMode: "environment", width: { ideal: 1280 }, height: { ideal: 720 } } };

const at = (id) => document.getElementById(id);
const [status, picture, slider, own] = ["status", "picture", "score", "own"].map(at);

let model = null;
let classes = new Map(); // by the id of the source
let source = null; // the still image: { blob, bitmap or null where the browser cannot read it, name }
let video = null; // the camera, while it runs
let busy = false, again = false, settling = 0, drawing = 0;
let last = null; // the last answer and its image, to be drawn again under another score

function say(text, alarm = false) {
  status.textContent = text;
  status.classList.toggle("alarm", alarm);
}

class Refused extends Error {
  constructor(message, wait) {
    super(message);
    this.wait = wait; // seconds, where the service asks to come again
  }
}

async function ask(blob, query) {
  const answer = await fetch(`predict?${new URLSearchParams(query)}`, { method: "POST", body: blob });
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => null);
  throw new Refused(told?.error?.message ?? `the service answered ${answer.status}`, Number(answer.headers.get("retry-after")));
}

function query() {
  const chosen = { tiling: at("tiling").value };
  if (!own.checked) chosen.score = slider.value;
  return chosen;
}

// How long the service worked, in milliseconds, by its own clock.
function workOf(answer) {
  const parts = (answer.headers.get("server-timing") ?? "").matchAll(/(\w+);dur=([\d.]+)/g);
  return [...parts].filter(([, name]) => name !== "wait").reduce((sum, [, , value]) => sum + Number(value), 0);
}

async function predict({ blob, bitmap, name }) {
  const chosen = query(), start = performance.now();
  const dense = model.task === "semantic" || model.task === "panoptic";
  const answer = await ask(blob, { ...chosen, name, ...(dense && bitmap ? { map: true } : {}) });
  const item = await answer.json(), took = performance.now() - start;
  let shown = bitmap;
  if (!shown) shown = await createImageBitmap(await (await ask(blob, { ...chosen, answer: "picture" })).blob());
  last = { item, shown, drawn: bitmap !== null, score: chosen.score ?? null, took, work: workOf(answer) };
  await show();
}

// One request at a time; what changed meanwhile is asked for when its answer is there.
async function pump() {
  if (busy || !model || (!source && !video)) return;
  busy = true;
  again = false;
  let wait = 0;
  try {
    if (video) await predict(await frame());
    else {
      say(`${source.name}: being predicted`);
      await predict(source);
    }
  } catch (error) {
    wait = error instanceof Refused ? error.wait : 0;
    say(error instanceof Refused ? error.message : `the service does not answer (${error.message})`, true);
    if (video && !wait) stopCamera();
  }
  busy = false;
  if (wait) setTimeout(pump, 1000 * wait);
  else if (again) pump();
  else if (video) requestAnimationFrame(pump); // not while the page is hidden
}

function askAgain() {
  again = true;
  pump();
}

// Drawing

function kept() {
  const { item } = last;
  return item.objects?.filter((found) => own.checked || found.score >= Number(slider.value));
}

async function show() {
  const turn = ++drawing, { item, shown } = last, side = Math.max(shown.width, shown.height);
  const scale = Math.min(Math.max(LEAST_SIDE, side), MOST_SIDE) / side;
  const canvas = new OffscreenCanvas(Math.max(1, Math.round(shown.width * scale)), Math.max(1, Math.round(shown.height * scale)));
  const context = canvas.getContext("2d");
  context.drawImage(shown, 0, 0, canvas.width, canvas.height);
  if (last.drawn && item.objects) drawObjects(context, kept(), classes, scale);
  else if (last.drawn) await drawMap(context, item, classes);
  if (turn !== drawing) return; // a newer one has begun
  if (picture.width !== canvas.width) picture.width = canvas.width; // which clears it
  if (picture.height !== canvas.height) picture.height = canvas.height;
  picture.getContext("2d").drawImage(canvas, 0, 0);
  picture.hidden = false;
  count();
  const name = video ? "camera" : item.file;
  say(`${name}, ${item.width} x ${item.height} pixels: ${Math.round(last.took)} ms, ${Math.round(last.work)} ms of them in the service`);
}

function cell(kind, text, colour) {
  const made = document.createElement(kind);
  if (colour) {
    const swatch = document.createElement("canvas"); // the policy of the page allows no style attributes
    swatch.className = "swatch";
    swatch.width = swatch.height = 14;
    swatch.getContext("2d").fillStyle = colour;
    swatch.getContext("2d").fillRect(0, 0, 14, 14);
    made.append(swatch);
  }
  made.append(text);
  return made;
}

const share = (value) => `${(100 * value).toFixed(value < 0.0995 ? 1 : 0)} %`;

function rowsOf(item) {
  const pixels = item.width * item.height, numbers = new Map(), areas = new Map();
  const add = (map, key, value) => map.set(key, (map.get(key) ?? 0) + value);
  if (item.classes) {
    return [["class", "pixels", "share"], item.classes.map((one) => [one.class_id, one.pixels.toLocaleString("en"), share(one.share)])];
  }
  for (const found of item.objects ? kept() : item.segments) {
    add(numbers, found.class_id, 1);
    add(areas, found.class_id, found.area_px ?? 0);
  }
  const listed = model.classes.filter(({ id }) => model.classes.length <= MOST_ROWS || numbers.has(id));
  if (item.objects) return [["class", "count"], listed.map(({ id }) => [id, numbers.get(id) ?? 0])];
  const told = (kind) => [kind.id, kind.isthing ? (numbers.get(kind.id) ?? 0) : "", share((areas.get(kind.id) ?? 0) / pixels)];
  return [["class", "count", "share"], listed.map(told)];
}

function count() {
  const [columns, rows] = rowsOf(last.item), counted = columns.indexOf("count");
  at("columns").replaceChildren(...columns.map((text) => Object.assign(cell("th", text), { scope: "col" })));
  const made = rows.map(([id, ...values]) => {
    const row = document.createElement("tr"), kind = classes.get(id);
    const head = Object.assign(cell("th", kind.name, isBackground(kind.name) ? "#ffffff" : kind.colour), { scope: "row" });
    row.append(head, ...values.map((value) => cell("td", String(value))));
    return row;
  });
  if (counted > 0) {
    const total = document.createElement("tr"), sum = rows.reduce((all, row) => all + (Number(row[counted]) || 0), 0);
    total.className = "total";
    total.append(Object.assign(cell("th", "total"), { scope: "row" }));
    columns.slice(1).forEach((_, index) => total.append(cell("td", index + 1 === counted ? String(sum) : "")));
    made.push(total);
  }
  at("rows").replaceChildren(...made);
  at("counts").hidden = false;
}

// Images

async function take(file) {
  if (!file) return;
  stopCamera();
  const { max_bytes: most } = model.limits;
  if (file.size > most) {
    say(`${file.name} has ${file.size.toLocaleString("en")} bytes; the service takes up to ${most.toLocaleString("en")}`, true);
    return;
  }
  const bitmap = await createImageBitmap(file).catch(() => null); // TIFF, in most browsers: the service draws it
  source = { blob: file, bitmap, name: file.name || "pasted image" };
  askAgain();
}

async function frame() {
  const canvas = document.createElement("canvas");
  canvas.width = video.videoWidth;
  canvas.height = video.videoHeight;
  canvas.getContext("2d").drawImage(video, 0, 0);
  const blob = await new Promise((done) => canvas.toBlob(done, "image/jpeg", 0.92));
  return { blob, bitmap: canvas, name: "camera" };
}

async function startCamera() {
  if (!navigator.mediaDevices) {
    say("browsers give the camera only to pages of this machine (localhost) and of https", true);
    return;
  }
  try {
    const stream = await navigator.mediaDevices.getUserMedia(CAMERA);
    const made = document.createElement("video");
    made.muted = made.playsInline = true;
    made.srcObject = stream;
    await made.play();
    video = made;
    source = null;
    status.setAttribute("aria-live", "off"); // nobody can listen to every frame
    at("camera").setAttribute("aria-pressed", "true");
    at("camera").textContent = "Stop the camera";
    pump();
  } catch (error) {
    say(`no camera: ${error.message}`, true);
  }
}

function stopCamera() {
  video?.srcObject.getTracks().forEach((track) => track.stop());
  video = null;
  status.setAttribute("aria-live", "polite");
  at("camera").setAttribute("aria-pressed", "false");
  at("camera").textContent = "Use the camera";
}

// Controls

function scoreChanged() {
  at("told").value = Number(slider.value).toFixed(2);
  if (last?.item.objects && (last.score === null || Number(slider.value) >= Number(last.score))) show();
  clearTimeout(settling);
  settling = setTimeout(askAgain, SETTLE); // weaker objects, and segments, only the service knows
}

at("file").addEventListener("change", (event) => {
  take(event.target.files[0]);
  event.target.value = ""; // so that the same file can be chosen again
});
at("camera").addEventListener("click", () => (video ? stopCamera() : startCamera()));
at("tiling").addEventListener("change", askAgain);
own.addEventListener("change", scoreChanged);
slider.addEventListener("input", () => {
  own.checked = false;
  scoreChanged();
});
document.addEventListener("paste", (event) => take(event.clipboardData.files[0]));
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    at("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop") take(event.dataTransfer.files[0]);
  });
}

function describe() {
  document.title = `Pelagia: ${model.name}`;
  at("model").textContent = `${model.name}, task ${model.task}, ${model.classes.length} class${model.classes.length === 1 ? "" : "es"}`;
  at("scores").hidden = model.task === "semantic"; // every pixel has a class
  const chosen = Object.keys(model.thresholds).length > 0;
  at("default").textContent = chosen ? "(one for each class)" : `(${model.score})`;
  slider.value = model.score;
  at("told").value = Number(slider.value).toFixed(2);
  const [height, width] = model.input_size, facts = {
    licence: model.licence, source: model.source, input: `${width} x ${height} pixels`, runtime: model.runtime, version: `Pelagia ${model.pelagia}`,
  };
  for (const [name, value] of Object.entries(facts)) if (value) at("facts").append(cell("dt", name), cell("dd", value));
}

try {
  const answer = await fetch("model");
  if (!answer.ok) throw new Error(`status ${answer.status}`);
  model = await answer.json();
  classes = new Map(model.classes.map((kind) => [kind.id, kind]));
  describe();
} catch (error) {
  at("model").textContent = "";
  say(`the service does not answer (${error.message}); load the page again`, true);
}
