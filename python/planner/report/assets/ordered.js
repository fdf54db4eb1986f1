// Treemaps that keep the order of what they show: the strips of Bederson, Shneiderman and Wattenberg, 2002.

// Places items with a `size` into a box, in reading order. Returns [{ item, x, y, width, height }].
function inStrips(items, box) {
  const shown = items.filter((item) => item.size > 0);
  const total = shown.reduce((sum, item) => sum + item.size, 0);
  if (!total || box.width <= 0 || box.height <= 0) return [];
  const scale = (box.width * box.height) / total;
  const placed = [];
  let y = box.y;
  for (let start = 0; start < shown.length;) {
    const end = stripEnd(shown, start, box.width, scale);
    const strip = shown.slice(start, end);
    const height = (scale * strip.reduce((sum, item) => sum + item.size, 0)) / box.width;
    let x = box.x;
    for (const item of strip) {
      const width = height > 0 ? (item.size * scale) / height : 0;
      placed.push({ item, x, y, width, height });
      x += width;
    }
    y += height;
    start = end;
  }
  return placed;
}

// How far a strip goes before its rectangles are, on average, further from squares.
function stripEnd(items, start, width, scale) {
  let sum = 0, inverse = 0, last = Infinity;
  for (let end = start; end < items.length; end++) {
    const area = items[end].size * scale;
    sum += area;
    inverse += 1 / area;
    const count = end - start + 1, height = sum / width;
    // Of each, width / height or its inverse, whichever is above 1; both on average, which needs two sums and no list.
    const average = Math.max(sum / (height * height), inverse * height * height) / count;
    if (average > last) return end;
    last = average;
  }
  return items.length;
}
