// Squarified treemaps: Bruls, Huizing, van Wijk, 2000. Rectangles as near to squares as a greedy choice makes them.

// Places items with a `size` into a box, largest first. Returns [{ item, x, y, width, height }].
function squarify(items, box) {
  const sorted = items.filter((item) => item.size > 0).sort((left, right) => right.size - left.size);
  const total = sorted.reduce((sum, item) => sum + item.size, 0);
  if (!total || box.width <= 0 || box.height <= 0) return [];
  const scale = (box.width * box.height) / total;
  const placed = [];
  let { x, y, width, height } = box;
  for (let start = 0; start < sorted.length;) {
    const side = Math.min(width, height);
    const end = rowEnd(sorted, start, side, scale);
    const area = scale * sorted.slice(start, end).reduce((sum, item) => sum + item.size, 0);
    const depth = side > 0 ? area / side : 0;
    let along = 0;
    for (const item of sorted.slice(start, end)) {
      const length = depth > 0 ? (item.size * scale) / depth : 0;
      placed.push(width >= height
        ? { item, x, y: y + along, width: depth, height: length }
        : { item, x: x + along, y, width: length, height: depth });
      along += length;
    }
    if (width >= height) { x += depth; width -= depth; } else { y += depth; height -= depth; }
    start = end;
  }
  return placed;
}

// How far a row goes before its worst rectangle gets worse.
function rowEnd(sorted, start, side, scale) {
  const largest = sorted[start].size * scale;
  let sum = largest, worst = ratio(largest, largest, sum, side), end = start + 1;
  while (end < sorted.length) {
    const area = sorted[end].size * scale;
    const next = ratio(largest, area, sum + area, side);
    if (next > worst) break;
    worst = next;
    sum += area;
    end++;
  }
  return end;
}

function ratio(largest, smallest, sum, side) {
  return Math.max((side * side * largest) / (sum * sum), (sum * sum) / (side * side * smallest));
}
