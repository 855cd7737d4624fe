"use strict";
// The formulas: what one cell, one sum or one probability is made of. A panel has a cell that the pointer, the arrow keys
// or the animation moves; everything in it follows.
const Panels = (() => {
  const { make, number, signed } = Draw;

  // -- the parts of a sum ---------------------------------------------------------------------------------------------

  let kept = { key: null, parts: null };

  /** A weighted sum split by input map: name, weight, product and, for a linear layer, the total of each part. */
  const parts = (layer, data, view, columns) => {
    const key = `${data.id}:${view.column}:${view.unit}`;
    if (kept.key !== key) kept = { key, parts: layer.type === "conv" ? convParts(layer, data, view, columns) : linearParts(layer, data, view, columns) };
    return kept.parts;
  };

  const convParts = (layer, data, { column, unit }, columns) => {
    const before = columns[column].before, k = layer.shape[2], area = k * k, [, OH, OW] = layer.outputShape;
    const maps = Engine.products(data.values[before], layer, unit);
    const productLimit = Math.max(...maps.map((map) => Draw.largest(map)));
    const weights = layer.weight.subarray(unit * maps.length * area, (unit + 1) * maps.length * area), weightLimit = Draw.largest(weights);
    return maps.map((product, i) => ({
      name: Stage.name(before, i), weight: weights.subarray(i * area, (i + 1) * area), weightShape: [k, k], weightLimit, product, productShape: [OH, OW], productLimit,
    }));
  };

  const linearParts = (layer, data, { column, unit }, columns) => {
    const before = columns[columns[column].before], n = layer.shape[1], values = data.values[before.index];
    const weights = layer.weight.subarray(unit * n, (unit + 1) * n), weightLimit = Draw.largest(weights);
    const wide = Math.ceil(Math.sqrt(n)), shape = before.maps ? before.shape.slice(1) : [Math.ceil(n / wide), wide];
    const area = before.maps ? shape[0] * shape[1] : n, count = n / area;
    const found = Array.from({ length: count }, (_, i) => {
      const own = Float64Array.from({ length: area }, (_, j) => weights[i * area + j] * values[i * area + j]);
      const total = own.reduce((a, b) => a + b, 0), cut = (all) => all.subarray(i * area, (i + 1) * area);
      return { name: before.maps ? Stage.name(before.index, i) : before.name, values: cut(values), weight: cut(weights), product: own, total, shape, weightShape: shape, productShape: shape, weightLimit, limit: data.limits[before.index], from: i * area };
    });
    const productLimit = Math.max(...found.map((part) => Draw.largest(part.product)));
    return found.map((part) => ({ ...part, productLimit }));
  };

  // -- elements -------------------------------------------------------------------------------------------------------

  /** A large map with a frame over some of its cells; onCell(row, column) follows the pointer, onMove(dr, dc) the arrows. */
  const big = ({ values, offset = 0, h, w, limit, kind = "map", label, onCell, onMove }) => {
    const canvas = make("canvas"), frame = make("i", { className: "frame" });
    Draw.paint(canvas, values, offset, h, w, limit, kind);
    const box = make("div", { className: "big", tabIndex: 0, attributes: { role: "img", "aria-label": `${label}, ${h} × ${w}; arrow keys move the cell` }, style: { "--ratio": w / h } }, canvas, frame);
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
      Object.assign(frame.style, { left: `${(100 * column) / w}%`, top: `${(100 * row) / h}%`, width: `${(100 * wide) / w}%`, height: `${(100 * high) / h}%` });
    };
    return { element: make("figure", { className: "map" }, box, make("figcaption", { textContent: `${label} · ${h} × ${w}` })), mark };
  };

  /** A grid of numbers in their colours. */
  const grid = (k, label) => {
    const cells = Array.from({ length: k * k }, () => make("span"));
    const side = Math.max(20, Math.min(44, 150 / k));
    const element = make("figure", { className: `numbers${k > 5 ? " dense" : ""}` }, make("div", { style: { "grid-template-columns": `repeat(${k}, ${side}px)`, "--side": `${side}px` } }, ...cells), make("figcaption", { textContent: label }));
    const fill = (values, limit, kind, best = null) => cells.forEach((cell, i) => {
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
    const column = columns[c], [, h = 1, w = 1] = column.shape, area = h * w;
    const values = column.type === "picture" ? data.values[c + 1].subarray(0, area) : data.values[c].subarray(unit * area, (unit + 1) * area);
    if (column.type !== "input" && column.type !== "picture") return { values, shown: values, h, w, kind: "map", limit: data.limits[c] };
    return { values, shown: Float32Array.from(data.pixels.subarray(unit * area, (unit + 1) * area), (value) => value / 255), h, w, kind: "gray", limit: 1 };
  };

  /** A cell of h x w that wraps round nothing: it stays inside, and calls show for every move. */
  const mover = (h, w, show) => {
    let r = Math.floor(h / 2), c = Math.floor(w / 2);
    const to = (row, column) => {
      [r, c] = [Math.max(0, Math.min(h - 1, row)), Math.max(0, Math.min(w - 1, column))];
      show(r, c);
    };
    const down = Math.max(1, Math.round(h / 9));
    return { to, by: (dr, dc) => to(r + dr, c + dc), start: () => to(r, c), step: () => (c + 1 < w ? to(r, c + 1) : to(r + down < h ? r + down : 0, 0)) };
  };

  // -- panels ---------------------------------------------------------------------------------------------------------

  const convPart = (panel, { data, view, columns, layer, part, i }) => {
    const { stride, pad } = layer, k = layer.shape[2], source = mapOf(data, columns, columns[view.column].before, i);
    const [H, W] = [source.h + 2 * pad, source.w + 2 * pad], flat = (values) => Engine.padded(values, [1, source.h, source.w], pad);
    const values = flat(source.values), shown = flat(source.shown), [OH, OW] = part.productShape;
    const patch = grid(k, "window"), kernel = grid(k, "kernel"), sum = formula();
    kernel.fill(part.weight, part.weightLimit, "weight");
    const cell = mover(OH, OW, (r, c) => {
      const window = [], tinted = [];
      for (let y = 0; y < k; y++) for (let x = 0; x < k; x++) {
        window.push(values[(r * stride + y) * W + c * stride + x]);
        tinted.push(shown[(r * stride + y) * W + c * stride + x]);
      }
      patch.fill(window, source.limit, "map");
      input.mark(r * stride, c * stride, k, k);
      output.mark(r, c, 1, 1);
      const products = window.map((value, j) => value * part.weight[j]), result = part.product[r * OW + c];
      sum.textContent = k <= 3 ? `${products.map((value, j) => (j ? signed(value) : number(value))).join(" ")} = ${number(result)}` : `sum of ${k * k} products = ${number(result)}`;
    });
    const put = (r, c) => cell.to(Math.floor((r - Math.floor(k / 2)) / stride), Math.floor((c - Math.floor(k / 2)) / stride));
    const input = big({ ...source, values: shown, h: H, w: W, label: pad ? `${part.name}, with padding` : part.name, onCell: put, onMove: cell.by });
    const output = big({ values: part.product, h: OH, w: OW, limit: part.productLimit, label: "product", onCell: cell.to, onMove: cell.by });
    panel.append(title(`${part.name} times its kernel`), text("The window slides over the map. Its numbers are multiplied by those of the kernel, one by one, and added up. ", link("conv", "Convolution")),
      make("div", { className: "flow four" }, input.element, patch.element, sign("×"), kernel.element, sign("→"), output.element), sum);
    return cell;
  };

  const convSum = (panel, { data, view, columns, layer, all, name }) => {
    const own = mapOf(data, columns, view.column, view.unit), bias = layer.bias[view.unit], [OH, OW] = [own.h, own.w];
    const bars = all.map((part) => make("li", {}, make("span", { textContent: part.name.replace(/^.*, | of \d+$/g, "") }), make("i"), make("b")));
    const sum = formula(), limit = Math.max(...all.map((part) => Draw.largest(part.product))) || 1;
    const cell = mover(OH, OW, (r, c) => {
      output.mark(r, c, 1, 1);
      let total = 0;
      all.forEach((part, i) => {
        const value = part.product[r * OW + c];
        total += value;
        bar(bars[i], value, limit);
      });
      sum.textContent = `${number(total)} ${signed(bias)} = ${number(own.values[r * OW + c])}`;
    });
    const output = big({ ...own, label: name, onCell: cell.to, onMove: cell.by });
    panel.append(title(`${name} is a sum`), text(`Each of the ${all.length} input maps goes through a kernel of its own. The products are added up, cell by cell, and the bias is added. Choose a row on the left to watch one of them. `, link("conv", "Convolution")),
      make("div", { className: "flow aligned" }, output.element, make("div", { className: "beside" }, make("p", { className: "small", textContent: "At this cell, each product gives" }), make("ul", { className: `shares${bars.length > 12 ? " many" : ""}` }, ...bars), sum)));
    return cell;
  };

  const bar = (item, value, limit) => {
    const share = Math.min(1, Math.abs(value) / limit);
    item.children[1].style.setProperty("--from", value < 0 ? 0.5 - share / 2 : 0.5);
    item.children[1].style.setProperty("--part", share / 2);
    item.children[1].className = value < 0 ? "less" : "more";
    item.children[2].textContent = number(value);
  };

  const onePart = (panel, { data, view, columns, layer, name }) => {
    const column = columns[view.column], kind = column.type, source = mapOf(data, columns, column.before, kind === "input" ? 0 : view.unit), own = mapOf(data, columns, view.column, view.unit);
    const input = kind === "input" ? { ...own } : source, size = kind === "pool" ? layer.size : 1, stride = kind === "pool" ? layer.stride : 1, line = formula();
    const patch = kind === "pool" ? grid(size, "window") : null;
    const cell = mover(own.h, own.w, (r, c) => {
      const value = own.values[r * own.w + c];
      first.mark(kind === "mean" ? 0 : r * stride, kind === "mean" ? 0 : c * stride, kind === "mean" ? source.h : size, kind === "mean" ? source.w : size);
      second?.mark(r, c, 1, 1);
      if (kind === "relu") line.textContent = `max(0, ${number(source.values[r * own.w + c])}) = ${number(value)}`;
      else if (kind === "mean") line.textContent = `sum of ${source.h * source.w} cells ÷ ${source.h * source.w} = ${number(value)}`;
      else if (kind === "input") line.textContent = `row ${r}, column ${c}: ${data.pixels[view.unit * own.h * own.w + r * own.w + c]} of 255, which the network is given as ${number(value)}`;
      else {
        const window = [];
        for (let y = 0; y < size; y++) for (let x = 0; x < size; x++) window.push(source.values[(r * stride + y) * source.w + c * stride + x]);
        patch.fill(window, source.limit, "map", window.indexOf(value));
        line.textContent = size <= 3 ? `max(${window.map(number).join(", ")}) = ${number(value)}` : `the largest of ${size * size} is ${number(value)}`;
      }
    });
    const first = big({ ...input, values: input.shown, label: kind === "input" ? name : Stage.name(column.before, view.unit), onCell: (r, c) => cell.to(Math.floor(r / stride), Math.floor(c / stride)), onMove: cell.by });
    const second = kind === "input" || kind === "mean" || !column.maps ? null : big({ ...own, values: own.shown, label: name, onCell: cell.to, onMove: cell.by });
    const about = { relu: "A negative number becomes 0, any other stays as it is. ", pool: `Of each window of ${size} × ${size} cells only the largest number is kept. `, mean: "The whole map becomes one number, its mean. ", input: "How much of this colour every pixel has: black is 0, white is 1. " }[kind];
    panel.append(title(name), text(about, link(kind, "More")), make("div", { className: "flow" }, first.element, patch?.element ?? "", second ? sign("→") : "", second?.element ?? ""), line);
    return cell;
  };

  const linearPart = (panel, { data, view, layer, part, name }) => {
    const [h, w] = part.shape, n = layer.shape[1], line = formula(), total = formula();
    const strip = make("div", { className: "strip", attributes: { "aria-hidden": "true" } }, make("canvas"), make("i"));
    Draw.paint(strip.firstChild, data.flat(view.column), 0, 1, n, part.limit, "map");
    const cell = mover(h, w, (r, c) => {
      const j = Math.min(r * w + c, part.values.length - 1);
      for (const map of [input, weight, product]) map.mark(r, c, 1, 1);
      strip.lastChild.style.left = `${(100 * (part.from + j + 0.5)) / n}%`;
      line.textContent = `place ${part.from + j} of ${n}: ${number(part.values[j])} × ${number(part.weight[j])} = ${number(part.product[j])}`;
    });
    const map = (values, limit, kind, label) => big({ values, h, w, limit, kind, label, onCell: cell.to, onMove: cell.by });
    const input = map(part.values, part.limit, "map", part.name), weight = map(part.weight, part.weightLimit, "weight", "weights"), product = map(part.product, part.productLimit, "map", "products");
    total.textContent = `all of ${part.name} together: ${number(part.total)}`;
    panel.append(title(`${part.name} for ${name}`), text("The maps are written into one list, row by row, map by map. Every place of it has a weight of its own. ", link("flatten", "Flatten"), " · ", link("linear", "Linear layer")),
      make("div", { className: "flow three" }, input.element, sign("×"), weight.element, sign("="), product.element), make("p", { className: "small", textContent: `the list of ${n} values` }), strip, line, total);
    return cell;
  };

  const softmaxPanel = (panel, { data, view, model, all, layer, name }) => {
    const { terms, probabilities, sum, top } = data.softmax, logits = data.values[view.column], order = [...probabilities.keys()];
    const line = formula(), body = make("tbody"), most = Math.max(...terms);
    const show = (unit) => {
      [...body.children].forEach((row, i) => row.classList.toggle("chosen", i === unit));
      line.replaceChildren(`exp(${number(logits[unit])}) ÷ sum of all exp = ${number(terms[unit] * Math.exp(top))} ÷ ${number(sum * Math.exp(top))} = `, make("b", { textContent: Draw.percent(probabilities[unit]) }));
    };
    for (const unit of order) {
      const meter = (share) => make("i", { className: "meter", style: { "--share": share } });
      const row = make("tr", { attributes: unit === view.unit ? { "aria-current": "true" } : {} }, make("th", { scope: "row", textContent: model.classes[unit] }), make("td", { textContent: number(logits[unit]) }),
        make("td", {}, meter(terms[unit] / most), number(terms[unit] * Math.exp(top))), make("td", {}, meter(probabilities[unit]), Draw.percent(probabilities[unit])));
      row.addEventListener("pointerenter", () => show(unit));
      row.addEventListener("pointerleave", () => show(view.unit));
      body.append(row);
    }
    const head = make("thead", {}, make("tr", {}, ...["class", "logit", "exp(logit)", "probability"].map((heading) => make("th", { scope: "col", textContent: heading }))));
    const total = all.reduce((value, part) => value + part.total, 0), bias = layer.bias[view.unit];
    panel.append(title(`How probable is ${name}?`), text(`The products of ${all.length > 1 ? `all ${all.length} maps` : "all values"} sum to ${number(total)}; with the bias the logit is ${number(total)} ${signed(bias)} = ${number(logits[view.unit])}. The softmax turns the logits of all classes into probabilities. Choose a row on the left to see its part. `, link("softmax", "Softmax")),
      make("div", { className: "scroll" }, make("table", { className: "softmax" }, head, body)), line);
    show(view.unit);
    return null;
  };

  const unitSum = (panel, { data, view, all, layer, name }) => {
    const total = all.reduce((value, part) => value + part.total, 0), line = formula();
    line.textContent = `${number(total)} ${signed(layer.bias[view.unit])} = ${number(data.values[view.column][view.unit])}`;
    panel.append(title(`${name} is a sum`), text("Every input value is multiplied by a weight of its own; the products and the bias are added up. Choose a row to see them. ", link("linear", "Linear layer")), line);
    return null;
  };

  /** Fill the panel for a view; returns what the animation steps, or null. */
  const build = (panel, { data, view, columns, model }) => {
    panel.replaceChildren();
    const column = columns[view.column], layer = data.model.layers[column.layer], name = Stage.name(view.column, view.unit), i = view.part;
    const weighted = ["conv", "linear", "output"].includes(column.type), all = weighted ? parts(layer, data, view, columns) : null;
    const given = { data, view, columns, model, layer, name, all, part: all?.[i], i };
    const kind = !weighted ? onePart : i === null ? { conv: convSum, linear: unitSum, output: softmaxPanel }[column.type] : column.type === "conv" ? convPart : linearPart;
    const cell = kind(panel, given);
    cell?.start();
    return cell;
  };

  return { parts, build };
})();
