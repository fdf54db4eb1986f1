// What follows what: a strip of all blocks in the order of execution, then a lane for each device, to scale within it.

const MOST_SEGMENTS = 160; // of a lane; more could not be told apart

class Lanes {
  // `onShow(node)` for what is pointed at or focused, `onOpen(node)` for what is gone into.
  constructor(rows, data, element, { onShow, onOpen }) {
    this.rows = rows;
    this.element = element;
    this.nodes = [];
    const all = new Set(data.blocks);
    const lines = [this.#lane("all", data.blocks, null, [])];
    rows.devices.forEach((device, index) => {
      const own = data.blocks.filter((row) => rows.homes[row] === index);
      const budget = Number(data.budgets[index] ?? 0);
      if (own.length || budget) lines.push(this.#lane(device.place, own, budget || null, data.kept[index], device));
    });
    element.replaceChildren(...lines);
    if (all.size) element.querySelector(".segment").tabIndex = 0;
    const nodeOf = (event) => this.nodes[event.target.closest(".segment")?.dataset.index];
    const show = (event) => { const node = nodeOf(event); if (node && node !== this.shown) onShow(this.shown = node); };
    element.addEventListener("pointermove", show);
    element.addEventListener("focusin", (event) => { this.#rove(event.target); show(event); });
    element.addEventListener("click", (event) => { const node = nodeOf(event); if (node && node.canOpen) onOpen(node); });
    element.addEventListener("keydown", (event) => this.#key(event));
  }

  // `kept`: what a device has room for beside weights, each as [words, bytes, class].
  #lane(title, blocks, budget, kept, device) {
    const { rows } = this;
    const line = document.createElement("div");
    line.className = device ? `lane ${device.style}` : "lane whole";
    const track = document.createElement("div");
    track.className = "track";
    const used = blocks.reduce((sum, row) => sum + rows.sizes[row], 0);
    const beside = budget === null ? [] : kept.map(([words, bytes, style]) => [words, Number(bytes), style]);
    const whole = Math.max(budget ?? 0, used + beside.reduce((sum, [, bytes]) => sum + bytes, 0)) || 1;
    let start = 0;
    for (const node of inSegments(rows, blocks)) {
      const share = node.size / whole;
      track.append(this.#segment(node, start, share));
      start += share;
    }
    for (const [words, bytes, style] of beside) {
      const part = span(`beside ${style}`, "");
      Object.assign(part.style, { left: `${100 * start}%`, width: `${(100 * bytes) / whole}%` });
      part.title = `${formatBytes(bytes)} ${words}`;
      track.append(part);
      start += bytes / whole;
    }
    line.append(span("name", device ? title : "in the order of execution"), track);
    return line;
  }

  #segment(node, start, share) {
    const { rows } = this;
    const button = document.createElement("button");
    button.type = "button";
    button.tabIndex = -1; // the arrow keys reach all
    button.dataset.index = this.nodes.push(node) - 1;
    button.className = `segment ${rows.style(node.home)}`;
    button.setAttribute("aria-label", `${node.title}, ${formatBytes(node.size)}, ${placeAndRunner(rows, node)}`);
    Object.assign(button.style, { left: `${100 * start}%`, width: `${100 * share}%` });
    if (share > 0.05) button.append(span("label", node.label));
    return button;
  }

  #rove(target) {
    for (const each of this.element.querySelectorAll('.segment[tabindex="0"]')) each.tabIndex = -1;
    if (target.classList.contains("segment")) target.tabIndex = 0;
  }

  #key(event) {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const segments = [...this.element.querySelectorAll(".segment")];
    const index = segments.indexOf(event.target);
    if (index < 0) return;
    if (step) {
      event.preventDefault();
      segments[index + step]?.focus();
      return;
    }
    const line = event.target.closest(".lane");
    const other = { ArrowDown: line.nextElementSibling, ArrowUp: line.previousElementSibling }[event.key];
    if (!other) return;
    event.preventDefault();
    other.querySelector(".segment")?.focus();
  }
}

// Blocks one by one where there is room, else runs of neighbours: first of those with one home, then of any.
function inSegments(rows, blocks) {
  if (blocks.length <= MOST_SEGMENTS) return blocks.map((row) => new Node(rows, [row], rows.parents[row]));
  const runs = [];
  for (const row of blocks) {
    const last = runs.at(-1);
    const before = last?.at(-1);
    if (last && rows.homes[before] === rows.homes[row] && rows.runs[before] === rows.runs[row]) last.push(row);
    else runs.push([row]);
  }
  const length = Math.ceil(runs.length / MOST_SEGMENTS);
  const joined = [];
  for (let start = 0; start < runs.length; start += length) joined.push(runs.slice(start, start + length).flat());
  return joined.map((members) => new Node(rows, members, rows.parents[members[0]]));
}

function placeAndRunner(rows, node) {
  const place = `on ${rows.place(node.home)}`;
  return node.run === node.home ? place : `${place}, runs on ${rows.place(node.run)}`;
}
