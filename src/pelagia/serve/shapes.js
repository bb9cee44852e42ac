// Draws an answer of POST /predict over its image, by the rules of `pelagia predict`'s pictures (core/draw.py, core/draw_maps.py).

const MASK_OPACITY = 0.35, CLASS_OPACITY = 0.45, THING_OPACITY = 0.55;
const POINT_DRAWN = 0.2, POINT_SEEN = 0.5;
const MOST_LABELS_SHARE = 0.1; // labels that would cover more of the picture are those of the best of each class only
const NO_FINDING = new Set(["background", "void", "unlabelled", "unlabeled"]);

export const isBackground = (name) => NO_FINDING.has(name.toLowerCase());

const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

// Black or white, whichever stands out more (WCAG 2.1).
function inkOn(hex) {
  const linear = rgb(hex).map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.18 ? "#000000" : "#ffffff";
}

// COCO's compressed text -> lengths of runs, column by column, of pixels outside and inside in turn.
export function runLengths(text) {
  const counts = [];
  let at = 0;
  while (at < text.length) {
    let value = 0, digit = 0, more = true;
    while (more) {
      const code = text.charCodeAt(at++) - 48;
      value |= (code & 31) << (5 * digit++);
      more = (code & 32) !== 0;
      if (!more && code & 16) value |= -1 << (5 * digit);
    }
    counts.push(counts.length > 2 ? value + counts[counts.length - 2] : value);
  }
  return counts;
}

// A mask as a crop: its bitmap [h, w], and the column and row of its first pixel.
function cropOf(mask) {
  const [height] = mask.size, runs = [];
  let place = 0, left = Infinity, top = Infinity, right = -1, bottom = -1;
  runLengths(mask.counts).forEach((length, index) => {
    if (index % 2 && length) {
      const first = Math.floor(place / height), last = Math.floor((place + length - 1) / height);
      left = Math.min(left, first);
      right = Math.max(right, last);
      top = Math.min(top, first === last ? place % height : 0);
      bottom = Math.max(bottom, first === last ? (place + length - 1) % height : height - 1);
      runs.push([place, length]);
    }
    place += length;
  });
  if (right < 0) return null;
  const width = right - left + 1, rows = bottom - top + 1, bits = new Uint8Array(width * rows);
  for (const [start, length] of runs) {
    for (let at = start; at < start + length; at++) bits[(at % height - top) * width + Math.floor(at / height) - left] = 1;
  }
  return { left, top, width, height: rows, bits };
}

// The crop in a picture `scale` times as large, by the nearest pixel.
function scaledCrop(crop, scale) {
  if (scale === 1) return crop;
  const left = Math.floor(crop.left * scale), top = Math.floor(crop.top * scale);
  const width = Math.max(1, Math.ceil((crop.left + crop.width) * scale) - left);
  const height = Math.max(1, Math.ceil((crop.top + crop.height) * scale) - top);
  const bits = new Uint8Array(width * height);
  for (let y = 0; y < height; y++) {
    const row = Math.floor((top + y + 0.5) / scale) - crop.top;
    if (row < 0 || row >= crop.height) continue;
    for (let x = 0; x < width; x++) {
      const column = Math.floor((left + x + 0.5) / scale) - crop.left;
      if (column >= 0 && column < crop.width) bits[y * width + x] = crop.bits[row * crop.width + column];
    }
  }
  return { left, top, width, height, bits };
}

// Translucent inside, with the outermost `line` pixels in full.
function drawMask(context, mask, colour, scale, line) {
  const whole = cropOf(mask);
  if (!whole) return;
  const crop = scaledCrop(whole, scale), { width, height, bits } = crop;
  const inside = (x, y) => x >= 0 && y >= 0 && x < width && y < height && bits[y * width + x] === 1;
  const [red, green, blue] = rgb(colour), layer = new ImageData(width, height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      if (!bits[y * width + x]) continue;
      const deep = inside(x - line, y) && inside(x + line, y) && inside(x, y - line) && inside(x, y + line);
      layer.data.set([red, green, blue, deep ? 255 * MASK_OPACITY : 255], 4 * (y * width + x));
    }
  }
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").putImageData(layer, 0, 0);
  context.drawImage(canvas, crop.left, crop.top);
}

// Each object's colour: of its class; masks and poses get shades, since they touch and overlap.
function coloursOf(objects, classes) {
  const alone = new Set(objects.map((item) => item.class_id)).size === 1, seen = new Map();
  return objects.map((item) => {
    const own = classes.get(item.class_id), step = seen.get(item.class_id) ?? 0;
    seen.set(item.class_id, step + 1);
    const shades = alone ? own.shades_alone : own.shades;
    return item.mask || item.keypoints ? shades[step % shades.length] : own.colour;
  });
}

function cornersOf([cx, cy, w, h, angle]) {
  const cos = Math.cos(angle), sin = Math.sin(angle);
  return [[-1, -1], [1, -1], [1, 1], [-1, 1]].map(([a, b]) => {
    const x = (a * w) / 2, y = (b * h) / 2;
    return [cx + x * cos - y * sin, cy + x * sin + y * cos];
  });
}

function drawPose(context, points, skeleton, colour, radius) {
  const shown = (index) => index < points.length && points[index][2] >= POINT_DRAWN;
  const limbs = skeleton.map(([a, b]) => [a - 1, b - 1]).filter(([a, b]) => shown(a) && shown(b));
  const limb = Math.max(2, Math.round(radius * 0.7));
  for (const [width, ink] of [[limb + 2 * Math.floor(limb / 3), "#000000"], [limb, colour]]) {
    context.lineWidth = width;
    context.strokeStyle = ink;
    for (const [a, b] of limbs) {
      context.beginPath();
      context.moveTo(points[a][0], points[a][1]);
      context.lineTo(points[b][0], points[b][1]);
      context.stroke();
    }
  }
  for (const [x, y, score] of points.filter((point) => point[2] >= POINT_DRAWN)) {
    const disc = (size, ink) => {
      context.fillStyle = ink;
      context.beginPath();
      context.arc(x, y, size, 0, 2 * Math.PI);
      context.fill();
    };
    disc(radius + 1, "#ffffff");
    disc(radius, colour);
    if (score < POINT_SEEN) disc(Math.max(1, radius - 1), "#ffffff"); // hidden ones are hollow
  }
}

// Names and scores on tabs above the boxes, the strongest first, none over another.
function drawLabels(context, objects, colours, scale) {
  const { width, height } = context.canvas, size = Math.max(11, Math.round(Math.sqrt(width * height) / 50));
  context.font = `600 ${size}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  const tabs = objects.map((item, index) => {
    const text = `${item.class} ${item.score.toFixed(2)}`, wide = context.measureText(text).width + size * 0.6, high = size * 1.4;
    const left = Math.min(Math.max(0, item.box[0] * scale), Math.max(0, width - wide));
    const above = item.box[1] * scale - high, top = above >= 0 ? above : Math.min(item.box[1] * scale, height - high);
    return { text, left, top, wide, high, colour: colours[index], kind: item.class_id };
  });
  const crowded = tabs.reduce((sum, tab) => sum + tab.wide * tab.high, 0) > MOST_LABELS_SHARE * width * height;
  const placed = [], named = new Set();
  for (const tab of tabs) {
    if (crowded && named.has(tab.kind)) continue;
    const apart = (other) => tab.left >= other.left + other.wide || other.left >= tab.left + tab.wide
      || tab.top >= other.top + other.high || other.top >= tab.top + tab.high;
    if (!placed.every(apart)) continue;
    named.add(tab.kind);
    placed.push(tab);
    context.fillStyle = tab.colour;
    context.fillRect(tab.left, tab.top, tab.wide, tab.high);
    context.fillStyle = inkOn(tab.colour);
    context.fillText(tab.text, tab.left + size * 0.3, tab.top + tab.high / 2);
  }
}

// Objects over the image; `scale` from its pixels to those of the canvas.
export function drawObjects(context, objects, classes, scale) {
  const line = Math.max(1, Math.round(Math.sqrt(context.canvas.width * context.canvas.height) / 450));
  const colours = coloursOf(objects, classes);
  const area = ({ box: [x1, y1, x2, y2] }) => (x2 - x1) * (y2 - y1);
  const order = objects.map((_, index) => index).sort((a, b) => area(objects[b]) - area(objects[a])); // small ones on top
  context.lineJoin = "miter";
  for (const index of order) {
    const item = objects[index], [x1, y1, x2, y2] = item.box.map((value) => value * scale);
    context.strokeStyle = colours[index];
    context.lineWidth = line;
    if (item.mask) drawMask(context, item.mask, colours[index], scale, line);
    if (item.oriented) {
      context.beginPath();
      for (const [x, y] of cornersOf(item.oriented)) context.lineTo(x * scale, y * scale);
      context.closePath();
      context.stroke();
    } else if (!item.mask) {
      const [left, top] = [Math.max(x1, 0), Math.max(y1, 0)]; // the line lies on the inner side of the edge
      const wide = Math.min(x2, context.canvas.width) - left, high = Math.min(y2, context.canvas.height) - top;
      if (wide > 0 && high > 0) context.strokeRect(left + line / 2, top + line / 2, Math.max(wide - line, 1), Math.max(high - line, 1));
    }
    if (item.keypoints) {
      const points = item.keypoints.map(([x, y, score]) => [x * scale, y * scale, score]);
      drawPose(context, points, classes.get(item.class_id).skeleton ?? [], colours[index], Math.max(2, Math.round(1.5 * line)));
    }
  }
  drawLabels(context, objects, colours, scale);
}

// The pixels of a map in a data URL, at the size of the canvas by the nearest pixel: R + 256 G + 65536 B of each.
async function mapPixels(url, width, height, three) {
  const bytes = Uint8Array.from(atob(url.slice(url.indexOf(",") + 1)), (letter) => letter.charCodeAt(0));
  const bitmap = await createImageBitmap(new Blob([bytes], { type: "image/png" }), {
    colorSpaceConversion: "none", premultiplyAlpha: "none",
  });
  const canvas = new OffscreenCanvas(width, height), context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(bitmap, 0, 0, width, height);
  const { data } = context.getImageData(0, 0, width, height), values = new Int32Array(width * height);
  for (let at = 0; at < values.length; at++) {
    values[at] = three ? data[4 * at] + 256 * data[4 * at + 1] + 65536 * data[4 * at + 2] : data[4 * at];
  }
  return values;
}

// Colours and opacities of the values of a map: of class positions, or of the numbers of segments.
function inksOf(item, classes) {
  const inks = new Map();
  if (item.classes) {
    [...classes.values()].forEach((own, label) => {
      if (!isBackground(own.name)) inks.set(label, { colour: rgb(own.colour), opacity: CLASS_OPACITY });
    });
    return inks;
  }
  const alone = new Set(item.segments.map((segment) => segment.class_id)).size === 1, seen = new Map();
  for (const segment of [...item.segments].sort((a, b) => b.area_px - a.area_px)) {
    const own = classes.get(segment.class_id);
    if (isBackground(own.name)) continue;
    const step = seen.get(segment.class_id) ?? 0;
    seen.set(segment.class_id, step + 1);
    const shades = alone ? own.shades_alone : own.shades;
    const colour = segment.thing ? shades[step % shades.length] : own.colour;
    inks.set(segment.id, { colour: rgb(colour), opacity: segment.thing ? THING_OPACITY : CLASS_OPACITY });
  }
  return inks;
}

// A class map or a panoptic map over the image: translucent, with lines in full between its parts.
export async function drawMap(context, item, classes) {
  const { width, height } = context.canvas;
  const values = await mapPixels(item.map, width, height, item.segments !== undefined), inks = inksOf(item, classes);
  const reach = Math.max(1, Math.round(Math.sqrt(width * height) / 900)), layer = new ImageData(width, height);
  const differs = (value, x, y) => x >= 0 && y >= 0 && x < width && y < height && values[y * width + x] !== value;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const value = values[y * width + x], ink = inks.get(value);
      if (!ink) continue;
      const edge = differs(value, x - reach, y) || differs(value, x + reach, y)
        || differs(value, x, y - reach) || differs(value, x, y + reach);
      const at = 4 * (y * width + x);
      layer.data[at] = ink.colour[0];
      layer.data[at + 1] = ink.colour[1];
      layer.data[at + 2] = ink.colour[2];
      layer.data[at + 3] = edge ? 255 : 255 * ink.opacity;
    }
  }
  const canvas = new OffscreenCanvas(width, height);
  canvas.getContext("2d").putImageData(layer, 0, 0);
  context.drawImage(canvas, 0, 0);
}
