"use strict";
// What the panels are made of: the parts of a sum, large maps, grids of numbers, and a cell that moves.
const Pieces = (() => {
  const { make, number } = Draw;

  // -- the parts of a sum ---------------------------------------------------------------------------------------------

  let kept = { key: null, parts: null };

  /** A weighted sum split by input map: name, weight, product and, for a linear layer, the total of each part. */
  const parts = (layer, data, view, columns) => {
    const key = `${data.id}:${view.column}:${view.unit}`;
    if (kept.key !== key)
      kept = { key, parts: layer.type === "conv" ? convParts(layer, data, view, columns) : linearParts(layer, data, view, columns) };
    return kept.parts;
  };

  const convParts = (layer, data, { column, unit }, columns) => {
    const before = columns[column].before,
      k = layer.shape[2],
      area = k * k,
      [, OH, OW] = layer.outputShape;
    const maps = Engine.products(data.values[before], layer, unit);
    const productLimit = Math.max(...maps.map((map) => Draw.largest(map)));
    const weights = layer.weight.subarray(unit * maps.length * area, (unit + 1) * maps.length * area),
      weightLimit = Draw.largest(weights);
    return maps.map((product, i) => ({
      name: Stage.name(before, i),
      weight: weights.subarray(i * area, (i + 1) * area),
      weightShape: [k, k],
      weightLimit,
      product,
      productShape: [OH, OW],
      productLimit,
    }));
  };

  const linearParts = (layer, data, { column, unit }, columns) => {
    const before = columns[columns[column].before],
      n = layer.shape[1],
      values = data.values[before.index];
    const weights = layer.weight.subarray(unit * n, (unit + 1) * n),
      weightLimit = Draw.largest(weights);
    const wide = Math.ceil(Math.sqrt(n)),
      shape = before.maps ? before.shape.slice(1) : [Math.ceil(n / wide), wide];
    const area = before.maps ? shape[0] * shape[1] : n,
      count = n / area;
    const found = Array.from({ length: count }, (_, i) => {
      const own = Float64Array.from({ length: area }, (_, j) => weights[i * area + j] * values[i * area + j]);
      const total = own.reduce((a, b) => a + b, 0),
        cut = (all) => all.subarray(i * area, (i + 1) * area);
      return {
        name: before.maps ? Stage.name(before.index, i) : before.name,
        values: cut(values),
        weight: cut(weights),
        product: own,
        total,
        shape,
        weightShape: shape,
        productShape: shape,
        weightLimit,
        limit: data.limits[before.index],
        from: i * area,
        shared: before.maps,
      };
    });
    const productLimit = Math.max(...found.map((part) => Draw.largest(part.product)));
    return found.map((part) => ({ ...part, productLimit }));
  };

  // -- elements -------------------------------------------------------------------------------------------------------

  /** A large map with a frame over some of its cells; onCell(row, column) follows the pointer, onMove(dr, dc) the arrows. */
  const big = ({ values, offset = 0, h, w, limit, kind = "map", label, onCell, onMove }) => {
    const canvas = make("canvas"),
      frame = make("i", { className: "frame" });
    Draw.paint(canvas, values, offset, h, w, limit, kind);
    const box = make(
      "div",
      {
        className: "big",
        tabIndex: 0,
        attributes: { role: "img", "aria-label": `${label}, ${h} × ${w}; arrow keys move the cell` },
        style: { "--ratio": w / h },
      },
      canvas,
      frame,
    );
    box.addEventListener("pointermove", (event) => {
      const { left, top, width, height } = canvas.getBoundingClientRect();
      onCell(Math.floor(((event.clientY - top) / height) * h), Math.floor(((event.clientX - left) / width) * w));
    });
    box.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
      if (!move) return;
      event.preventDefault();
      onMove(...move);
    });
    const mark = (row, column, high, wide) => {
      Object.assign(frame.style, {
        left: `${(100 * column) / w}%`,
        top: `${(100 * row) / h}%`,
        width: `${(100 * wide) / w}%`,
        height: `${(100 * high) / h}%`,
      });
    };
    return { element: make("figure", { className: "map" }, box, make("figcaption", { textContent: `${label} · ${h} × ${w}` })), mark };
  };

  /** A grid of numbers in their colours. */
  const grid = (k, label) => {
    const cells = Array.from({ length: k * k }, () => make("span"));
    const side = Math.max(20, Math.min(44, 150 / k));
    const element = make(
      "figure",
      { className: `numbers${k > 5 ? " dense" : ""}` },
      make("div", { style: { "grid-template-columns": `repeat(${k}, ${side}px)`, "--side": `${side}px` } }, ...cells),
      make("figcaption", { textContent: label }),
    );
    const fill = (values, limit, kind, best = null) =>
      cells.forEach((cell, i) => {
        const color = Draw.color(values[i], limit, kind);
        Object.assign(cell.style, { background: `rgb(${color})`, color: Draw.ink(color) });
        cell.textContent = k > 7 ? "" : number(values[i]);
        cell.classList.toggle("best", i === best);
      });
    return { element, fill };
  };

  const link = (about, text) => make("a", { href: `#about-${about}`, textContent: text });
  const sign = (text) => make("span", { className: "sign", textContent: text });
  const title = (text) => make("h3", { textContent: text });
  const text = (...children) => make("p", {}, ...children);
  const formula = () => make("p", { className: "formula" });

  /** Values, colours and size of one map of a column, as it is drawn; gray for a channel of the picture. */
  const mapOf = (data, columns, c, unit) => {
    const column = columns[c],
      [, h = 1, w = 1] = column.shape,
      area = h * w;
    const values =
      column.type === "picture" ? data.values[c + 1].subarray(0, area) : data.values[c].subarray(unit * area, (unit + 1) * area);
    if (column.type !== "input" && column.type !== "picture") return { values, shown: values, h, w, kind: "map", limit: data.limits[c] };
    return {
      values,
      shown: Float32Array.from(data.pixels.subarray(unit * area, (unit + 1) * area), (value) => value / 255),
      h,
      w,
      kind: "gray",
      limit: 1,
    };
  };

  /** A cell of h x w that wraps round nothing: it stays inside, and calls show for every move. */
  const mover = (h, w, show) => {
    let r = Math.floor(h / 2),
      c = Math.floor(w / 2);
    const to = (row, column) => {
      [r, c] = [Math.max(0, Math.min(h - 1, row)), Math.max(0, Math.min(w - 1, column))];
      show(r, c);
    };
    const down = Math.max(1, Math.round(h / 9));
    return {
      to,
      by: (dr, dc) => to(r + dr, c + dc),
      start: () => to(r, c),
      step: () => (c + 1 < w ? to(r, c + 1) : to(r + down < h ? r + down : 0, 0)),
    };
  };

  return { parts, big, grid, link, sign, title, text, formula, mapOf, mover };
})();
