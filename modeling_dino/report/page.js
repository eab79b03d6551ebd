"use strict";

/* Draws the page of `dino report` from what was computed beforehand, which is in the element `data`.

   Images are numbered in the order of their level of detail: of the first `count` of a level, no two are nearer to each
   other than its `distance`, so no thumbnail covers another at a magnification where this is the width of a thumbnail.
   Thumbnails are cells of atlases, 16 x 16 each, in elements behind this script, which may not have been read yet.

   Text from outside (names, classes, reasons) only ever becomes `textContent`. */

const page = JSON.parse(document.getElementById("data").textContent);
const count = page.names.length;

function numbers(text, ArrayType) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return new ArrayType(bytes.buffer);
}

const places = numbers(page.places, Float32Array);
const neighbours = numbers(page.neighbours, Uint32Array);
const similarities = numbers(page.similarities, Float32Array);
const distances = numbers(page.distances, Float32Array);
const clusterOf = numbers(page.clusters, Int32Array);
const labelOf = page.labels && numbers(page.labels, Int32Array);
const predicted = page.knn && numbers(page.knn.predicted, Int32Array);
const missing = new Map();
for (const [reason, images] of Object.entries(page.thumbnails.missing)) for (const i of images) missing.set(i, reason);

const $ = (id) => document.getElementById(id);
const plural = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

/* Writes a cosine with enough digits to tell it from 1. */
const cosineText = (cosine) => (cosine < 0.9995 ? cosine.toFixed(3) : cosine.toFixed(5));

/* Makes an element with properties and children; strings become text. */
function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role" || name === "scope") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/* ---- thumbnails ---- */

const SIDE = page.thumbnails.side;
const COLUMNS = 16;
const atlases = new Map(); // number -> image, decoded or being decoded
const waiting = new Set(); // functions to call when more thumbnails have been read

/* Returns the atlas that an image is in, or null until it is decoded. */
function atlasOf(image) {
  const number = Math.floor(image / COLUMNS ** 2);
  const known = atlases.get(number);
  if (known) return known.dataset.ready ? known : null;
  const stored = $(`atlas-${number}`);
  if (!stored || !stored.nextSibling) return null; // the parser may still be inside it
  const atlas = new Image();
  atlases.set(number, atlas);
  atlas.src = `data:image/jpeg;base64,${stored.textContent}`;
  stored.remove();
  atlas.decode().then(() => {
    atlas.dataset.ready = "yes";
    retry();
  });
  return null;
}

function retry() {
  for (const paint of [...waiting]) if (paint()) waiting.delete(paint);
  requestDraw();
}

function drawThumbnail(context, image, x, y, side) {
  const cell = image % COLUMNS ** 2;
  const left = (cell % COLUMNS) * SIDE, top = Math.floor(cell / COLUMNS) * SIDE;
  // without the pixels at the border, as JPEG mixes their colours with those of the thumbnail beside it
  context.drawImage(atlasOf(image), left + 1, top + 1, SIDE - 2, SIDE - 2, x, y, side, side);
}

/* Draws a crossed-out square in place of a picture that could not be read. */
function drawMissing(context, x, y, side) {
  context.fillStyle = colours.line;
  context.fillRect(x, y, side, side);
  context.strokeStyle = colours.quiet;
  context.lineWidth = 1;
  context.beginPath();
  context.moveTo(x + side * 0.3, y + side * 0.3);
  context.lineTo(x + side * 0.7, y + side * 0.7);
  context.moveTo(x + side * 0.7, y + side * 0.3);
  context.lineTo(x + side * 0.3, y + side * 0.7);
  context.stroke();
}

/* Makes a canvas with a thumbnail, which is painted as soon as it has been read. */
function picture(image) {
  const canvas = element("canvas", { width: SIDE, height: SIDE, "aria-hidden": "true" });
  const paint = () => {
    if (missing.has(image)) drawMissing(canvas.getContext("2d"), 0, 0, SIDE);
    else if (atlasOf(image)) drawThumbnail(canvas.getContext("2d"), image, 0, 0, SIDE);
    else return false;
    return true;
  };
  if (!paint()) waiting.add(paint);
  return canvas;
}

/* ---- categories and their colours ---- */

const colours = {};
const groupings = {};
if (page.classes) groupings.label = { of: labelOf, names: page.classes };
groupings.cluster = { of: clusterOf, names: Array.from({ length: Math.max(...new Set(clusterOf)) + 1 }, (_, c) => `cluster ${c + 1}`) };
for (const grouping of Object.values(groupings)) {
  grouping.sizes = new Uint32Array(grouping.names.length);
  for (const category of grouping.of) if (category >= 0) grouping.sizes[category]++;
}
let grouping = groupings.label || groupings.cluster;

const isDark = matchMedia("(prefers-color-scheme: dark)");
const isNarrow = matchMedia("(max-width: 760px)"); // a phone

/* Ten hues, of which successive ones differ most; for more categories, hues at the golden angle. */
const HUES = [255, 50, 145, 25, 310, 195, 90, 350, 225, 120];
function colourOf(category) {
  if (category < 0) return colours.quiet;
  const few = grouping.names.length <= HUES.length;
  const hue = few ? HUES[category] : (category * 137.508) % 360;
  const lightness = (isDark.matches ? 0.74 : 0.6) + (few ? 0 : (((category * 7) % 3) - 1) * 0.08);
  return `oklch(${lightness} ${few ? 0.15 : 0.13} ${hue})`;
}

function readColours() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["page", "raised", "text", "quiet", "line", "accent"]) colours[name] = style.getPropertyValue(`--${name}`);
  groupBy(grouping);
}

function groupBy(chosen) {
  grouping = chosen;
  grouping.colours = grouping.names.map((_, category) => colourOf(category));
  grouping.byColour = Uint32Array.from({ length: count }, (_, i) => i);
  grouping.byColour.sort((a, b) => grouping.of[a] - grouping.of[b]);
  showLegend();
  requestDraw();
}

const colourOfImage = (image) => (grouping.of[image] < 0 ? colours.quiet : grouping.colours[grouping.of[image]]);
const labelText = (image) => (labelOf[image] < 0 ? "no label" : page.classes[labelOf[image]]);

const LEGEND_LENGTH = 40;
function showLegend() {
  const order = [...grouping.names.keys()];
  if (order.length > LEGEND_LENGTH) order.sort((a, b) => grouping.sizes[b] - grouping.sizes[a]);
  const items = order.slice(0, LEGEND_LENGTH).map((category) => {
    const swatch = element("span", { className: "swatch" });
    swatch.style.background = grouping.colours[category];
    const button = element("button", { type: "button", "aria-pressed": "false" }, swatch,
      element("span", { className: "name", textContent: grouping.names[category], title: grouping.names[category] }),
      element("span", { className: "count", textContent: grouping.sizes[category].toLocaleString("en") }));
    button.onclick = () => {
      if (button.getAttribute("aria-pressed") === "true") return find(null);
      const [of, name] = [grouping.of, grouping.names[category]];
      find(images((i) => of[i] === category), name);
      button.setAttribute("aria-pressed", "true");
    };
    return element("li", {}, button);
  });
  if (order.length > LEGEND_LENGTH) items.push(element("li", {}, element("span", { textContent: `and ${order.length - LEGEND_LENGTH} more` })));
  $("categories").replaceChildren(...items);
}

function images(condition) {
  const found = [];
  for (let i = 0; i < count; i++) if (condition(i)) found.push(i);
  return found;
}

/* ---- the map ---- */

const canvas = $("canvas");
const context = canvas.getContext("2d");
const view = { x: 0.5, y: 0.5, zoom: 1 }; // the place in the middle, and pixels per width of the map
const stretch = { x: 1, y: 1 }; // of the map, along the longer side of the canvas
const state = { chosen: null, found: null, isFound: null, hovered: null };
let width = 1, height = 1, drawRequested = false, fitted = true;

const screenX = (image) => (places[2 * image] - view.x) * view.zoom * stretch.x + width / 2;
const screenY = (image) => (places[2 * image + 1] - view.y) * view.zoom * stretch.y + height / 2;
/* Returns the pixels that the open legend takes at the left, where there is room beside it. */
const legendWidth = () => (width > 700 && $("legend").open ? $("legend").offsetWidth + 12 : 0);
const MARGIN = 32; // pixels around the whole map, more than half a thumbnail
const MAX_STRETCH = 2;
const fitZoom = () => Math.max(1, Math.min((width - legendWidth() - 2 * MARGIN) / stretch.x, (height - 2 * MARGIN) / stretch.y));

/* Stretches the map, which is square, to the shape of the canvas. */
function fitShape() {
  const shape = Math.max(1, width - legendWidth() - 2 * MARGIN) / Math.max(1, height - 2 * MARGIN);
  [stretch.x, stretch.y] = [Math.min(MAX_STRETCH, Math.max(1, shape)), Math.min(MAX_STRETCH, Math.max(1, 1 / shape))];
}
const MAX_ZOOM = 200 / page.levels[page.levels.length - 1][0];
const MAX_DRAWN = 200; // pixels of a thumbnail on the map

/* Returns how many images are shown as thumbnails at this magnification, and their size. */
function detail() {
  // small from afar, so that the colours of the dots between them can be seen; larger where there are few dots
  const fromAfar = count < 1000 && width >= 500 ? 40 : 26;
  const least = Math.min(width < 500 ? 38 : 46, fromAfar + 8 * Math.max(0, Math.log2(view.zoom / fitZoom())));
  let shown = 0, side = least;
  for (const [distance, number] of page.levels) {
    if (distance * view.zoom < least) break;
    [shown, side] = [number, Math.min(distance * view.zoom * 0.95, MAX_DRAWN)];
  }
  return { shown, side };
}

function requestDraw() {
  if (drawRequested) return;
  drawRequested = true;
  requestAnimationFrame(() => {
    drawRequested = false;
    draw();
  });
}

function draw() {
  const scale = devicePixelRatio;
  context.setTransform(scale, 0, 0, scale, 0, 0);
  context.fillStyle = colours.page;
  context.fillRect(0, 0, width + 1, height + 1); // also a last pixel that is only partly covered
  const { shown, side } = detail();
  drawDots(shown);
  const whole = drawThumbnails(shown, side);
  if (state.chosen !== null) drawChosen(shown, side);
  mark("usable");
  if (whole) mark("pictures");
}

function drawDots(shown) {
  const radius = Math.max(1.3, Math.min(4, 1.6 + Math.log2(view.zoom / fitZoom()) * 0.7)) * (count < 2000 ? 1.6 : 1);
  for (const faint of state.isFound ? [true, false] : [false]) {
    context.globalAlpha = faint ? 0.12 : 0.85;
    let category = null;
    for (const image of grouping.byColour) {
      if (image < shown || Boolean(state.isFound && !state.isFound[image]) !== faint) continue;
      const x = screenX(image), y = screenY(image);
      if (x < -radius || y < -radius || x > width + radius || y > height + radius) continue;
      if (grouping.of[image] !== category) {
        category = grouping.of[image];
        context.fillStyle = colourOfImage(image);
      }
      context.fillRect(x - radius, y - radius, 2 * radius, 2 * radius);
    }
  }
  context.globalAlpha = 1;
}

/* Draws the thumbnails in view, and returns whether all of them had been read. */
function drawThumbnails(shown, side) {
  const border = side > 80 ? 3 : 2;
  let whole = true;
  context.imageSmoothingQuality = "medium";
  for (let image = 0; image < shown; image++) {
    const x = screenX(image) - side / 2, y = screenY(image) - side / 2;
    if (x < -side || y < -side || x > width || y > height) continue;
    context.globalAlpha = state.isFound && !state.isFound[image] ? 0.12 : 1;
    context.fillStyle = colourOfImage(image);
    context.fillRect(x, y, side, side);
    if (missing.has(image)) drawMissing(context, x + border, y + border, side - 2 * border);
    else if (atlasOf(image)) drawThumbnail(context, image, x + border, y + border, side - 2 * border);
    else whole = false;
  }
  context.globalAlpha = 1;
  return whole;
}

/* Draws lines to the neighbours, and the selected image above all others. */
function drawChosen(shown, side) {
  const image = state.chosen, x = screenX(image), y = screenY(image);
  context.strokeStyle = colours.accent;
  context.globalAlpha = 0.45;
  context.lineWidth = 1;
  context.beginPath();
  for (const other of neighboursOf(image)) {
    context.moveTo(x, y);
    context.lineTo(screenX(other), screenY(other));
  }
  context.stroke();
  context.globalAlpha = 1;
  context.fillStyle = colours.accent;
  for (const other of neighboursOf(image)) {
    context.beginPath();
    context.arc(screenX(other), screenY(other), 3.5, 0, 7);
    context.fill();
  }
  const half = Math.max(side, 56) / 2;
  context.fillStyle = colours.raised;
  context.fillRect(x - half - 5, y - half - 5, 2 * half + 10, 2 * half + 10);
  context.fillStyle = colours.accent;
  context.fillRect(x - half - 3, y - half - 3, 2 * half + 6, 2 * half + 6);
  if (missing.has(image)) drawMissing(context, x - half, y - half, 2 * half);
  else if (atlasOf(image)) drawThumbnail(context, image, x - half, y - half, 2 * half);
}

/* Notes the time of the first call, after painting. */
const marked = new Set();
function mark(name) {
  if (marked.has(name)) return;
  marked.add(name);
  setTimeout(() => performance.mark(name));
}

const neighboursOf = (image) => neighbours.subarray(image * page.k, (image + 1) * page.k);

function moveTo(x, y, zoom) {
  [view.x, view.y] = [Math.min(1.2, Math.max(-0.2, x)), Math.min(1.2, Math.max(-0.2, y))];
  view.zoom = Math.min(MAX_ZOOM, Math.max(fitZoom() / 2, zoom));
  fitted = false;
  hover(null);
  requestDraw();
}

/* Moves what is shown by pixels. */
function moveBy(x, y) {
  moveTo(view.x + x / (view.zoom * stretch.x), view.y + y / (view.zoom * stretch.y), view.zoom);
}

function fit() {
  fitShape();
  moveTo(0.5 - legendWidth() / 2 / (fitZoom() * stretch.x), 0.5, fitZoom());
  fitted = true;
}

/* Zooms, and keeps what lies under a point of the canvas in its place. */
function zoomAt(x, y, factor) {
  const zoom = Math.min(MAX_ZOOM, Math.max(fitZoom() / 2, view.zoom * factor));
  const change = 1 / view.zoom - 1 / zoom;
  moveTo(view.x + ((x - width / 2) * change) / stretch.x, view.y + ((y - height / 2) * change) / stretch.y, zoom);
}

/* Returns the image at a point of the canvas: a thumbnail that covers it, else the nearest dot. */
function imageAt(x, y, reach = 14) {
  const { shown, side } = detail();
  let best = null, least = reach;
  for (let image = 0; image < count; image++) {
    const dx = Math.abs(screenX(image) - x), dy = Math.abs(screenY(image) - y);
    if (image < shown && Math.max(dx, dy) <= side / 2) return image;
    if (Math.hypot(dx, dy) < least) [best, least] = [image, Math.hypot(dx, dy)];
  }
  return best;
}

/* Moves the map so that an image and its nearest neighbours fill it. */
function zoomTo(image) {
  const near = [...neighboursOf(image).slice(0, 8)].map((other) =>
    Math.max(Math.abs(places[2 * other] - places[2 * image]) * stretch.x, Math.abs(places[2 * other + 1] - places[2 * image + 1]) * stretch.y));
  near.sort((a, b) => a - b);
  const reach = near[near.length >> 1] || 0; // the median, as one may lie far off
  moveTo(places[2 * image], places[2 * image + 1], Math.max(fitZoom() * 2, Math.min(width, height) / (3 * Math.max(reach, 1e-6))));
}

/* ---- pointers and keys ---- */

const pointers = new Map();
let moved = 0;

function at(event) {
  const box = canvas.getBoundingClientRect();
  return { x: event.clientX - box.left, y: event.clientY - box.top };
}

function middleOf(points) {
  const [a, b] = points.length > 1 ? points : [points[0], points[0]];
  return { x: (a.x + b.x) / 2, y: (a.y + b.y) / 2, spread: Math.hypot(a.x - b.x, a.y - b.y) };
}

canvas.addEventListener("pointerdown", (event) => {
  canvas.setPointerCapture(event.pointerId);
  if (!pointers.size) moved = 0;
  pointers.set(event.pointerId, at(event));
});
canvas.addEventListener("pointermove", (event) => {
  const point = at(event);
  if (!pointers.has(event.pointerId)) return event.pointerType === "mouse" && hover(imageAt(point.x, point.y), point);
  const before = middleOf([...pointers.values()]);
  pointers.set(event.pointerId, point);
  const after = middleOf([...pointers.values()]);
  moved += Math.hypot(after.x - before.x, after.y - before.y) + Math.abs(after.spread - before.spread);
  if (moved < 4) return;
  canvas.classList.add("dragged");
  moveBy(before.x - after.x, before.y - after.y);
  if (before.spread && after.spread) zoomAt(after.x, after.y, after.spread / before.spread);
});
for (const end of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(end, (event) => {
    const point = at(event);
    if (end === "pointerup" && pointers.size === 1 && moved < 4) choose(imageAt(point.x, point.y));
    pointers.delete(event.pointerId);
    if (!pointers.size) canvas.classList.remove("dragged");
  });
}
canvas.addEventListener("pointerleave", () => hover(null));
canvas.addEventListener("dblclick", (event) => zoomAt(at(event).x, at(event).y, 2));
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  const lines = event.deltaMode === 1 ? 16 : 1;
  zoomAt(at(event).x, at(event).y, Math.exp(-event.deltaY * lines * (event.ctrlKey ? 0.01 : 0.0018)));
}, { passive: false });

const STEP = 60; // pixels
const KEYS = {
  ArrowLeft: () => moveBy(-STEP, 0),
  ArrowRight: () => moveBy(STEP, 0),
  ArrowUp: () => moveBy(0, -STEP),
  ArrowDown: () => moveBy(0, STEP),
  "+": () => zoomAt(width / 2, height / 2, 1.5),
  "=": () => zoomAt(width / 2, height / 2, 1.5),
  "-": () => zoomAt(width / 2, height / 2, 1 / 1.5),
  0: fit,
  Enter: () => choose(imageAt(width / 2, height / 2, Infinity)),
  Escape: () => (state.isFound ? find(null) : choose(null)),
};
canvas.addEventListener("keydown", (event) => {
  if (!KEYS[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  KEYS[event.key]();
});
$("zoom-in").onclick = KEYS["+"];
$("zoom-out").onclick = KEYS["-"];
$("fit").onclick = fit;

function hover(image, point) {
  if (image === state.hovered) return;
  state.hovered = image;
  const box = $("hover");
  box.hidden = image === null;
  canvas.style.cursor = image === null ? "" : "pointer";
  if (image === null) return;
  box.replaceChildren(picture(image), element("span", { textContent: page.names[image] }),
    ...(labelOf ? [element("span", { className: "quiet", textContent: labelText(image) })] : []));
  box.style.left = `${Math.max(0, Math.min(point.x + 16, width - box.offsetWidth - 8))}px`;
  box.style.top = `${Math.max(0, Math.min(point.y + 16, height - box.offsetHeight - 8))}px`;
}

/* ---- selected and found images ---- */

function choose(image) {
  state.chosen = image;
  hover(null);
  if (image !== null) {
    const x = screenX(image), y = screenY(image);
    if (x < 0 || y < 0 || x > width || y > height) moveTo(places[2 * image], places[2 * image + 1], view.zoom);
    const first = page.k ? `; nearest neighbour: ${page.names[neighboursOf(image)[0]]}` : "";
    $("said").textContent = page.names[image] + first;
  }
  requestDraw();
  openTab("image");
}

/* Highlights some images on the map, and lists them; null ends that. */
function find(found, title) {
  for (const button of $("categories").querySelectorAll("[aria-pressed=true]")) button.setAttribute("aria-pressed", "false");
  state.found = found && { images: found, title };
  state.isFound = found && new Uint8Array(count);
  if (found) for (const image of found) state.isFound[image] = 1;
  requestDraw();
  if (found) $("said").textContent = `${title}: ${plural(found.length, "image")}`;
  openTab(found ? "found" : state.tab === "found" ? "image" : state.tab);
}

const query = $("query");
query.addEventListener("input", () => {
  const text = query.value.trim().toLowerCase();
  if (!text) return find(null);
  const classes = (page.classes || []).map((name) => name.toLowerCase().includes(text));
  find(images((i) => page.names[i].toLowerCase().includes(text) || (labelOf && classes[labelOf[i]])), `“${query.value.trim()}”`);
});
$("search").addEventListener("submit", (event) => event.preventDefault());

/* ---- the panel ---- */

const TABS = {
  image: { title: "Image", show: showImage },
  found: { title: "Found", show: showFound, isThere: () => state.found },
  duplicates: { title: "Duplicates", show: showDuplicates },
  outliers: { title: "Outliers", show: showOutliers },
  labels: { title: "Labels", show: showLabels, isThere: () => page.knn },
  run: { title: "Run", show: showRun },
};

function openTab(name) {
  const isNew = name !== state.tab || name === "image" || name === "found";
  state.tab = name;
  const buttons = Object.entries(TABS).filter(([, tab]) => !tab.isThere || tab.isThere()).map(([key, tab]) => element("button", {
    type: "button", role: "tab", id: `tab-${key}`, textContent: tab.title, tabIndex: key === name ? 0 : -1,
    "aria-selected": String(key === name), "aria-controls": "content", onclick: () => openTab(key),
  }));
  const hadFocus = $("tabs").contains(document.activeElement);
  $("tabs").replaceChildren(...buttons);
  if (hadFocus) $(`tab-${name}`).focus();
  if (!isNew) return;
  $("content").setAttribute("aria-labelledby", `tab-${name}`);
  $("content").replaceChildren(...TABS[name].show());
  $("content").scrollTop = 0;
}

$("tabs").addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step) return;
  const tabs = [...$("tabs").children];
  tabs[(tabs.indexOf(document.activeElement) + step + tabs.length) % tabs.length].click();
});

/* Makes buttons with pictures; those beyond the first are shown on request. */
function tiles(list, caption, first = 60) {
  const made = element("ul", { className: "tiles" });
  const more = element("button", { type: "button", className: "plain", textContent: "Show more" });
  let shown = 0;
  const extend = () => {
    made.append(...list.slice(shown, shown + first).map((image, i) => tile(image, caption(image, shown + i))));
    shown = Math.min(list.length, shown + first);
    more.hidden = shown === list.length;
  };
  more.onclick = extend;
  extend();
  return list.length > first ? [made, more, " "] : [made];
}

function tile(image, caption) {
  const swatch = element("span", { className: "swatch" });
  swatch.style.background = colourOfImage(image);
  const described = [page.names[image], labelOf ? labelText(image) : null, caption].filter(Boolean).join(", ");
  const button = element("button", { type: "button", title: described, "aria-label": described, onclick: () => choose(image) },
    picture(image), element("span", { className: "caption" }, swatch, element("span", { className: "name", textContent: caption })));
  button.dataset.image = image;
  if (image === state.chosen) button.setAttribute("aria-current", "true");
  return element("li", {}, button);
}

function definitions(pairs) {
  return element("dl", {}, ...pairs.flatMap(([name, value]) => [element("dt", { textContent: name }), element("dd", { textContent: value })]));
}

const paragraph = (text, className = "") => element("p", { className, textContent: text });

function showImage() {
  const image = state.chosen;
  if (image === null) {
    return [
      paragraph("Click an image to see its nearest neighbours."),
      paragraph("Drag to move the map. Scroll or pinch to zoom in, and more images appear. Click a colour of the legend to highlight its images."),
      ...(isNarrow.matches ? [] : [paragraph(`Keyboard, while the map has the focus: ${$("keys").textContent}`, "quiet")]),
    ];
  }
  const further = distances.reduce((sum, distance) => sum + (distance < distances[image]), 0);
  const pairs = [["cluster", groupings.cluster.names[clusterOf[image]]]];
  if (labelOf) pairs.unshift(["label", labelText(image)]);
  if (predicted && predicted[image] >= 0) pairs.splice(1, 0, ["k-NN predicts", page.classes[predicted[image]]]);
  if (page.k) pairs.push(["distance", `${distances[image].toFixed(3)}, above that of ${Math.floor((100 * further) / count)} % of all`]);
  if (missing.has(image)) pairs.push(["no picture", missing.get(image)]);
  const details = definitions(pairs);
  if (predicted && predicted[image] >= 0 && predicted[image] !== labelOf[image]) details.querySelectorAll("dd")[1].className = "wrong";
  const rank = new Map([...neighboursOf(image)].map((other, i) => [other, similarities[image * page.k + i]]));
  return [
    element("h2", { textContent: page.names[image], title: page.root + page.names[image] }),
    element("div", { className: "chosen" }, picture(image), element("div", {}, details,
      element("button", { type: "button", className: "plain", textContent: "Zoom to this image", onclick: () => zoomTo(image) }))),
    element("h3", { textContent: page.k ? "Nearest neighbours by cosine similarity" : "There is no other image" }),
    ...tiles([...rank.keys()], (other) => cosineText(rank.get(other)), page.k || 1),
  ];
}

function showFound() {
  const { images: found, title } = state.found;
  return [
    element("h2", { textContent: title }),
    paragraph(plural(found.length, "image"), "quiet"),
    ...tiles(found, (image) => page.names[image].split("/").pop()),
    element("button", { type: "button", className: "plain", textContent: "Clear the highlight", onclick: () => { query.value = ""; find(null); } }),
  ];
}

const GROUPS_AT_ONCE = 30;
function showDuplicates() {
  const { groups, rule } = page.duplicates;
  const total = groups.reduce((sum, group) => sum + group.length, 0);
  const found = groups.length ? `${plural(total, "image")} in ${plural(groups.length, "group")}, the most similar first.` : "There are no near-duplicates.";
  const intro = paragraph(`${found} ${rule}`, "quiet");
  const list = element("div", {});
  const more = element("button", { type: "button", className: "plain", textContent: "Show more groups" });
  let shown = 0;
  const extend = () => {
    for (const group of groups.slice(shown, shown + GROUPS_AT_ONCE)) {
      const showOnMap = element("button", { type: "button", className: "plain", textContent: "Show on the map", onclick: () => find(group, plural(group.length, "near-duplicate")) });
      list.append(element("div", { className: "group" }, paragraph(plural(group.length, "image")),
        ...tiles(group, (image) => cosineText(similarities[image * page.k]), 12), showOnMap));
    }
    shown += GROUPS_AT_ONCE;
    more.hidden = shown >= groups.length;
  };
  more.onclick = extend;
  extend();
  return [intro, list, more];
}

function showOutliers() {
  const order = [...distances.keys()].sort((a, b) => distances[b] - distances[a]);
  return [
    paragraph(`The images furthest from their neighbours come first. The distance is 1 minus the mean cosine similarity to the ${page.k} nearest neighbours.`, "quiet"),
    ...tiles(order, (image) => distances[image].toFixed(3)),
  ];
}

const MAX_MATRIX = 20;
function showLabels() {
  const classes = page.classes, cells = new Map();
  let right = 0, voted = 0;
  for (let i = 0; i < count; i++) {
    if (predicted[i] < 0) continue;
    voted++;
    if (predicted[i] === labelOf[i]) right++;
    const key = labelOf[i] * classes.length + predicted[i];
    cells.set(key, (cells.get(key) || 0) + 1);
  }
  const unlabelled = images((i) => labelOf[i] < 0).length;
  const highlight = (label, prediction) => find(images((i) => labelOf[i] === label && predicted[i] === prediction),
    label === prediction ? `${classes[label]}, as k-NN predicts` : `${classes[label]}, but k-NN predicts ${classes[prediction]}`);
  const shown = [element("h2", { textContent: page.knn.accuracy === null ? "Too few labelled images" : `k-NN accuracy: ${page.knn.accuracy.toFixed(1)} %` }),
    paragraph(`${right.toLocaleString("en")} of ${plural(voted, "image")} are classified correctly by their ${page.k} nearest neighbours.` +
      (unlabelled ? ` ${plural(unlabelled, "image")} without a label ${unlabelled === 1 ? "is" : "are"} left out.` : ""), "quiet")];
  if (classes.length <= MAX_MATRIX) shown.push(element("h3", { textContent: "Confusion matrix: labels in rows, k-NN predictions in columns" }), matrix(classes, cells, highlight));
  const pairs = [...cells].map(([key, number]) => [Math.floor(key / classes.length), key % classes.length, number])
    .filter(([label, prediction]) => label !== prediction).sort((a, b) => b[2] - a[2]).slice(0, 50);
  if (pairs.length) {
    shown.push(element("h3", { textContent: "Most confused" }), element("ul", { className: "pairs" }, ...pairs.map(([label, prediction, number]) =>
      element("li", {}, element("button", { type: "button", onclick: () => highlight(label, prediction) },
        element("span", { className: "name", textContent: `${classes[label]} → ${classes[prediction]}` }), element("span", { className: "quiet", textContent: String(number) }))))));
  }
  return shown;
}

function matrix(classes, cells, highlight) {
  const columns = classes.map((name) => element("th", { scope: "col", title: name }, element("span", { textContent: name })));
  const rows = classes.map((name, label) => element("tr", {}, element("th", { scope: "row", textContent: name, title: name }),
    ...classes.map((prediction, column) => {
      const number = cells.get(label * classes.length + column) || 0;
      const share = number / groupings.label.sizes[label];
      const cell = element("td", {}, number ? element("button", { type: "button", textContent: String(number), onclick: () => highlight(label, column),
        "aria-label": `${number} of ${name}: k-NN predicts ${prediction}` }) : element("span", { textContent: "·" }));
      if (number) cell.style.background = `rgba(var(--shade), ${(0.08 + 0.37 * share).toFixed(2)})`;
      return cell;
    })));
  return element("div", { className: "scroll" }, element("table", {}, element("thead", {}, element("tr", {}, element("td", {}), ...columns)), element("tbody", {}, ...rows)));
}

function showRun() {
  const skipped = Object.entries(page.skipped);
  const shown = [element("h2", { textContent: page.title }), ...(page.warning ? [paragraph(page.warning, "wrong")] : []), definitions([...page.facts, ["Without a picture", missing.size.toLocaleString("en")]])];
  if (skipped.length) shown.push(element("h3", { textContent: "Skipped at extraction" }), definitions(skipped));
  if (missing.size) {
    const reasons = Object.entries(page.thumbnails.missing).map(([reason, list]) => [plural(list.length, "image"), reason]);
    shown.push(element("h3", { textContent: "Without a picture" }), definitions(reasons));
  }
  return shown;
}

/* ---- start ---- */

function resize() {
  const box = $("map").getBoundingClientRect();
  [width, height] = [Math.max(1, box.width), Math.max(1, box.height)];
  canvas.width = Math.round(width * devicePixelRatio);
  canvas.height = Math.round(height * devicePixelRatio);
  if (fitted) return fit();
  fitShape();
  requestDraw();
}

$("summary").textContent = [plural(count, "image"), page.classes && plural(page.classes.length, "class").replace("classs", "classes"),
  page.knn && page.knn.accuracy !== null && `k-NN ${page.knn.accuracy.toFixed(1)} %`].filter(Boolean).join(" · ");
if (page.warning) $("summary").append(element("span", { className: "wrong", textContent: ` · ${page.warning}` }));
$("colours").replaceChildren(...Object.keys(groupings).map((name) => element("option", { value: name, textContent: name })));
$("legend").addEventListener("toggle", () => fitted && fit());
$("colours").onchange = (event) => {
  find(null);
  groupBy(groupings[event.target.value]);
};
if (isNarrow.matches) $("legend").open = false;
readColours();
isDark.addEventListener("change", readColours);
openTab("image");
resize(); // before the first frame is drawn
new ResizeObserver(resize).observe($("map"));
const stillLoading = setInterval(() => {
  retry();
  if (document.readyState !== "loading") clearInterval(stillLoading);
}, 100);
