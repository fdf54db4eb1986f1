// The treemap as buttons: only what is large enough to be seen, so a large model is no more of them than a small one.

const MOST_CELLS = 1200;
const HEADER = 19;   // pixels for the name of a module that is open
const EDGE = 2;      // pixels around what is inside
// From which size a cell is opened: early where devices part, late where its parts would only repeat its colour.
const SMALLEST = { parted: { width: 54, height: 46 }, whole: { width: 170, height: 120 } };

class Treemap {
  // `onShow(node)` for what is pointed at or focused, `onOpen(node)` for what is gone into, `onBack()`.
  constructor(element, { onShow, onOpen, onBack }) {
    this.element = element;
    this.cells = [];
    this.handlers = { onShow, onOpen, onBack };
    // Not pointerover, which also comes when the picture changes under a pointer that rests.
    element.addEventListener("pointermove", (event) => this.#show(event));
    element.addEventListener("focusin", (event) => this.#show(event));
    element.addEventListener("click", (event) => this.#open(event));
    element.addEventListener("keydown", (event) => this.#key(event));
  }

  draw(node) {
    this.node = node;
    const box = { x: 0, y: 0, width: this.element.clientWidth, height: this.element.clientHeight };
    this.cells = layOut(node, box);
    this.element.replaceChildren(...this.cells.map((cell, index) => this.#button(cell, index)));
  }

  // Marks the innermost cells that hold any of the rows, which are sorted; null marks nothing.
  mark(found) {
    this.cells.forEach(({ node, isOpen }, index) => {
      const { classList } = this.element.children[index];
      const isHolding = found !== null && holdsAny(found, node.row, node.end);
      const isHit = isHolding && (!isOpen || holdsAny(found, node.row, node.row + 1));
      classList.toggle("hit", isHit);
      classList.toggle("miss", found !== null && !isHolding);
    });
  }

  // Focuses the smallest cell that holds a row.
  focusRow(row) {
    let best = -1;
    this.cells.forEach(({ node }, index) => {
      if (node.row <= row && row < node.end) best = index;
    });
    if (best >= 0) this.#focus(best);
  }

  focusFirst() {
    this.#focus(0);
  }

  #button(cell, index) {
    const { node, x, y, width, height } = cell;
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.index = index;
    button.tabIndex = index ? -1 : 0; // the arrow keys reach the others
    button.className = `cell ${node.rows.style(node.home)}${cell.isOpen ? " open" : ""}`;
    button.setAttribute("aria-label", `${node.title}, ${formatBytes(node.size)}, on ${node.rows.place(node.home)}`);
    button.setAttribute("aria-describedby", "details-reasons");
    Object.assign(button.style, { left: `${x}px`, top: `${y}px`, width: `${width}px`, height: `${height}px` });
    if (width > 26 && height > 15) {
      button.append(span("name", node.label));
      if (cell.isOpen || height > 34) button.append(span("size", placeAndSize(node, width)));
    }
    return button;
  }

  #cellOf(event) {
    const button = event.target.closest(".cell");
    return button ? this.cells[button.dataset.index] : null;
  }

  #show(event) {
    const cell = this.#cellOf(event);
    if (!cell) return;
    if (event.type === "focusin") this.#rove(Number(event.target.dataset.index));
    else if (cell === this.pointed) return;
    this.pointed = cell;
    this.handlers.onShow(cell.node);
  }

  #open(event) {
    const cell = this.#cellOf(event);
    if (cell && cell.node.canOpen) this.handlers.onOpen(cell.node);
  }

  #key(event) {
    const cell = this.#cellOf(event);
    if (!cell) return;
    const index = Number(event.target.dataset.index);
    const moves = {
      ArrowRight: index + 1,
      ArrowLeft: index - 1,
      ArrowUp: cell.parent,
      ArrowDown: cell.isOpen ? index + 1 : index,
      Home: 0,
      End: this.cells.length - 1,
    };
    if (event.key in moves) {
      event.preventDefault();
      this.#focus(moves[event.key]);
    } else if (event.key === "Escape" || event.key === "Backspace") {
      event.preventDefault();
      this.handlers.onBack();
    }
  }

  #focus(index) {
    const button = this.element.children[index];
    if (button) button.focus();
  }

  #rove(index) {
    for (const button of this.element.querySelectorAll('[tabindex="0"]')) button.tabIndex = -1;
    this.element.children[index].tabIndex = 0;
  }
}

// The place first: it must not be what an ellipsis hides.
function placeAndSize(node, width) {
  const arrow = width > 44 ? "→ " : "→";
  const words = [node.home >= 0 ? `${arrow}${node.rows.place(node.home)}` : "", width > 84 ? formatBytes(node.size) : ""];
  return words.filter(Boolean).join(" · ");
}

// Cells in reading order, each with the index of the cell around it. Opened level by level, so that the limit cuts depth.
function layOut(node, box) {
  const top = { node, ...box, isOpen: false, inside: [] };
  let level = fill(top, box), count = level.length;
  while (level.length && count < MOST_CELLS) {
    const next = level.filter(isRoomy).flatMap((cell) => fill(cell, innerBox(cell)));
    count += next.length;
    level = next;
  }
  return inOrder(top);
}

function fill(cell, box) {
  const parts = inStrips(cell.node.inside(), box).filter(({ width, height }) => width > 2.5 && height > 2.5);
  cell.inside = parts.map(({ item, ...place }) => ({ node: item, ...place, isOpen: false, inside: [] }));
  cell.isOpen = cell.inside.length > 0;
  return cell.inside;
}

function isRoomy({ node, width, height }) {
  const least = node.home === SEVERAL ? SMALLEST.parted : SMALLEST.whole;
  return width >= least.width && height >= least.height && node.isWorthOpening;
}

function innerBox({ x, y, width, height }) {
  return { x: x + EDGE, y: y + HEADER, width: width - 2 * EDGE, height: height - HEADER - EDGE };
}

function inOrder(top) {
  const ordered = [];
  const visit = (cell, parent) => {
    for (const inner of cell.inside) {
      inner.parent = parent;
      ordered.push(inner);
      visit(inner, ordered.length - 1);
    }
  };
  visit(top, 0);
  return ordered;
}

// Whether any of the sorted rows is from the first row on and before the end.
function holdsAny(sorted, first, end) {
  let low = 0, high = sorted.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (sorted[middle] < first) low = middle + 1;
    else high = middle;
  }
  return low < sorted.length && sorted[low] < end;
}

function span(className, text) {
  const element = document.createElement("span");
  element.className = className;
  element.textContent = text;
  return element;
}
