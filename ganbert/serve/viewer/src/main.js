// The page: drop a T1w, watch its job, look at the synthetic PET.
import { COLORMAPS, LAYOUTS, Scene } from "./scene.js";
import { digits, millimetres } from "./numbers.js";
import { showQuality } from "./quality.js";
import * as service from "./service.js";

const $ = (id) => document.getElementById(id);
const scene = new Scene($("canvas"), showValues);
const STEPS = 200;
const MAP_PASSES = 4;
// Whoever links to the page may say in the address what is wanted: a result of another is flagged.
const wantedTracer = new URLSearchParams(location.search).get("tracer");
let isLayoutChosen = false;
let model = null;
let job = null;
let t1w = null;
let work = null; // an AbortController while there is an image at work

function show(id, isShown) {
  $(id).hidden = !isShown;
}

function complain(error) {
  if (error.status === 401) {
    show("login", true);
    $("token").focus();
  }
  $("problem").textContent = error.message;
  show("problem", true);
}

async function readModel() {
  try {
    model = await service.getModel();
  } catch (error) {
    complain(error);
    return;
  }
  show("login", false);
  show("problem", false);
  $("model").textContent = `Synthetic ${model.tracer} (${model.tracer_name}) PET in ${model.unit}`;
  const size = Math.floor(model.max_upload_bytes / 1e6);
  $("rules").textContent = `NIfTI, .nii or .nii.gz, at most ${size} MB`;
  $("kept").textContent = `${digits(model.keep_seconds / 60)} minutes later`;
  for (const place of document.querySelectorAll(".unit")) place.textContent = model.unit;
}

async function run(file) {
  if (!file) return;
  if (work) {
    $("problem").textContent = "One image at a time: wait for this one, or cancel it.";
    show("problem", true);
    return;
  }
  work = new AbortController();
  const { signal } = work;
  show("problem", false);
  show("notes", false);
  show("cancelled", false);
  if (!model) await readModel();
  if (!model) {
    work = null;
    return;
  }
  show("work", true);
  show("intro", false);
  $("drop").inert = true;
  progress("Uploading", 0);
  try {
    job = null;
    if (file.size > model.max_upload_bytes) throw new Error($("rules").textContent);
    t1w = await named(file);
    const query = { uncertainty: $("with-map").checked ? MAP_PASSES : 0 };
    if (wantedTracer) query.tracer = wantedTracer;
    const told = (share) => progress("Uploading", share);
    job = await service.upload(file, query, told, signal, complain);
    job = await service.follow(job.id, showJob, signal);
    if (job.state === "failed") throw new Error(job.failure.reason);
    $("cancel").disabled = true;
    await showResult();
  } catch (error) {
    if (!signal.aborted) complain(error);
  }
  $("cancel").disabled = false;
  $("drop").inert = false;
  show("work", false);
  work = null;
  if (!signal.aborted) return;
  startAgain();
  show("cancelled", true);
}

async function cancel() {
  work.abort();
  if (!job) return;
  try {
    await service.deleteJob(job.id);
  } catch (error) {
    complain(error);
  }
}

// NiiVue goes by the name, the service by the first bytes: so does the page.
async function named(file) {
  const start = new Uint8Array(await file.slice(0, 2).arrayBuffer());
  const isPacked = start[0] === 0x1f && start[1] === 0x8b;
  return new File([file], isPacked ? "T1w.nii.gz" : "T1w.nii");
}

function progress(text, share) {
  $("stagename").textContent = text;
  $("progress").value = share;
  $("percent").textContent = `${Math.round(100 * share)} %`;
}

function showJob(status) {
  const before = status.position ? `, ${status.position} before it` : "";
  const stage = status.stage[0].toUpperCase() + status.stage.slice(1);
  progress(`${stage}${before}`, status.progress);
}

async function showResult() {
  const pet = new File([await service.getFile(job.id, "pet.nii.gz")], "pet.nii.gz");
  show("drop", false);
  show("view", true);
  $("stage").classList.add("showing");
  await scene.load(t1w, pet);
  setUpControls();
  show("controls", true);
  scene.draw($("layout").value);
  $("view").focus();
  for (const note of job.notes) {
    const item = document.createElement("li");
    item.textContent = note;
    $("notes").append(item);
  }
  show("notes", job.notes.length > 0);
  showQuality(job.flags);
  const until = new Date(1000 * job.expires).toLocaleTimeString();
  $("expiry").textContent = `The service deletes it at ${until}. The T1w is deleted already.`;
  offer("save-pet", pet, `${fileStem("synth")}.nii.gz`);
  offer("save-sidecar", await service.getFile(job.id, "pet.json"), `${fileStem("synth")}.json`);
  const hasMap = Boolean(job.links.uncertainty);
  for (const id of ["save-map", "save-map-sidecar"]) show(id, hasMap);
  if (!hasMap) return;
  offer("save-map", await service.getFile(job.id, "std.nii.gz"), `${fileStem("synthstd")}.nii.gz`);
  const sidecar = await service.getFile(job.id, "std.json");
  offer("save-map-sidecar", sidecar, `${fileStem("synthstd")}.json`);
}

const fileStem = (desc) => `trc-${model.tracer_label}_space-T1w_desc-${desc}_pet`;

function offer(id, blob, name) {
  URL.revokeObjectURL($(id).href);
  $(id).href = URL.createObjectURL(blob);
  $(id).download = name;
}

function setUpControls() {
  const { lowest, middle, high, highest } = scene.statistics();
  const span = highest - lowest || 1;
  for (const [id, value] of [["low", Math.max(lowest, middle)], ["high", high]]) {
    $(id).min = lowest;
    $(id).max = highest;
    $(id).step = span / STEPS;
    $(id).value = value;
  }
  $("frame").max = scene.numFrames() - 1;
  $("frame").value = 0;
  applyRange();
  applyFrame();
  applyOpacity();
  applyColormap();
  if (!isLayoutChosen && scene.isSlow()) $("layout").value = "Planes";
}

function applyRange() {
  const step = Number($("low").step);
  const low = Number($("low").value);
  if (Number($("high").value) <= low) $("high").value = low + step;
  const high = Math.max(Number($("high").value), low + step);
  scene.setRange(low, high);
  $("low-name").textContent = `${digits(low)} ${model.unit}`;
  $("high-name").textContent = `${digits(high)} ${model.unit}`;
  $("bar-low").textContent = digits(low);
  $("bar-high").textContent = digits(high);
}

function applyFrame() {
  const frame = Number($("frame").value);
  scene.setFrame(frame);
  const { start, duration } = model.frames[frame];
  const times = `${digits(start / 60)} to ${digits((start + duration) / 60)} min`;
  $("frame-name").textContent = `${frame + 1} of ${scene.numFrames()}, ${times}`;
  $("frame").setAttribute("aria-valuetext", $("frame-name").textContent);
}

function applyOpacity() {
  scene.setOpacity(Number($("opacity").value));
  $("opacity-name").textContent = `${Math.round(100 * $("opacity").value)} %`;
}

function applyColormap() {
  const name = $("colormap").value;
  scene.setColormap(name);
  const lut = scene.colours(name);
  const pixels = new ImageData(256, 1);
  for (let k = 0; k < 256; k++) {
    pixels.data.set([lut[4 * k], lut[4 * k + 1], lut[4 * k + 2], 255], 4 * k);
  }
  $("colours").getContext("2d").putImageData(pixels, 0, 0);
}

function showValues({ mm, t1w: mri, pet, isPointer }) {
  $("pet-value").textContent = digits(pet);
  $("t1w-value").textContent = digits(mri);
  $("where").textContent = isPointer ? "Cursor, mm" : "Crosshair, mm";
  const [x, y, z] = mm.map(millimetres);
  $("position").textContent = `x ${x}, y ${y}, z ${z}`;
}

function startAgain() {
  show("controls", false);
  show("view", false);
  show("notes", false);
  show("problem", false);
  show("quality", false);
  $("notes").replaceChildren();
  $("stage").classList.remove("showing");
  show("drop", true);
  show("intro", true);
  scene.clear();
  $("file").focus();
}

const KEYS = {
  ArrowLeft: [-1, 0, 0], ArrowRight: [1, 0, 0], ArrowUp: [0, 1, 0], ArrowDown: [0, -1, 0],
  PageUp: [0, 0, 1], PageDown: [0, 0, -1],
};

function onKey(event) {
  const step = KEYS[event.key];
  if (step) {
    if (scene.isTurning()) scene.turn(5 * step[0], 5 * step[1]);
    else scene.move(...step);
  } else if (event.key === "[" || event.key === "]") {
    $("frame").value = Number($("frame").value) + (event.key === "]" ? 1 : -1);
    applyFrame();
  } else {
    return;
  }
  event.preventDefault();
  event.stopPropagation();
}

for (const name of COLORMAPS) $("colormap").add(new Option(name));
for (const name of Object.keys(LAYOUTS)) $("layout").add(new Option(name));
$("file").addEventListener("change", () => {
  const [file] = $("file").files;
  // Else the same file, chosen again after a refusal, would be no change.
  $("file").value = "";
  run(file);
});
$("view").addEventListener("keydown", onKey, true);
$("frame").addEventListener("input", applyFrame);
$("low").addEventListener("input", applyRange);
$("high").addEventListener("input", applyRange);
$("opacity").addEventListener("input", applyOpacity);
$("colormap").addEventListener("change", applyColormap);
$("layout").addEventListener("change", () => {
  isLayoutChosen = true;
  scene.setLayout($("layout").value);
});
$("cancel").addEventListener("click", cancel);
$("again").addEventListener("click", startAgain);
$("delete").addEventListener("click", async () => {
  try {
    await service.deleteJob(job.id);
    startAgain();
  } catch (error) {
    complain(error);
  }
});
$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  service.useToken($("token").value);
  readModel();
});
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
    if (kind !== "drop" || !event.dataTransfer.files.length) return;
    if (!work && !$("controls").hidden) startAgain();
    run(event.dataTransfer.files[0]);
  });
}
readModel();
