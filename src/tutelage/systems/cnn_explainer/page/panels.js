"use strict";
// The formulas: what one cell, one sum or one probability is made of. A panel has a cell that the pointer, the arrow keys
// or the animation moves; everything in it follows.
const Panels = (() => {
  const { make, number, signed } = Draw;
  const { parts, big, grid, link, sign, title, text, formula, mapOf, mover } = Pieces;

  // -- panels ---------------------------------------------------------------------------------------------------------

  const convPart = (panel, { data, view, columns, layer, part, i }) => {
    const { stride, pad } = layer,
      k = layer.shape[2],
      source = mapOf(data, columns, columns[view.column].before, i);
    const [H, W] = [source.h + 2 * pad, source.w + 2 * pad],
      flat = (values) => Engine.padded(values, [1, source.h, source.w], pad);
    const values = flat(source.values),
      shown = flat(source.shown),
      [OH, OW] = part.productShape;
    const patch = grid(k, "window"),
      kernel = grid(k, "kernel"),
      sum = formula();
    kernel.fill(part.weight, part.weightLimit, "weight");
    const cell = mover(OH, OW, (r, c) => {
      const window = [],
        tinted = [];
      for (let y = 0; y < k; y++)
        for (let x = 0; x < k; x++) {
          window.push(values[(r * stride + y) * W + c * stride + x]);
          tinted.push(shown[(r * stride + y) * W + c * stride + x]);
        }
      patch.fill(window, source.limit, "map");
      input.mark(r * stride, c * stride, k, k);
      output.mark(r, c, 1, 1);
      const products = window.map((value, j) => value * part.weight[j]),
        result = part.product[r * OW + c];
      sum.textContent =
        k <= 3
          ? `${products.map((value, j) => (j ? signed(value) : number(value))).join(" ")} = ${number(result)}`
          : `sum of ${k * k} products = ${number(result)}`;
    });
    const put = (r, c) => cell.to(Math.floor((r - Math.floor(k / 2)) / stride), Math.floor((c - Math.floor(k / 2)) / stride));
    const input = big({
      ...source,
      values: shown,
      h: H,
      w: W,
      label: pad ? `${part.name}, with padding` : part.name,
      onCell: put,
      onMove: cell.by,
    });
    const output = big({
      values: part.product,
      h: OH,
      w: OW,
      limit: part.productLimit,
      label: "product",
      onCell: cell.to,
      onMove: cell.by,
    });
    panel.append(
      title(`${part.name} times its kernel`),
      text(
        "The window slides over the map. Its numbers are multiplied by those of the kernel, one by one, and added up. ",
        link("conv", "Convolution"),
      ),
      make("div", { className: "flow four" }, input.element, patch.element, sign("×"), kernel.element, sign("→"), output.element),
      sum,
    );
    return cell;
  };

  const convSum = (panel, { data, view, columns, layer, all, name }) => {
    const own = mapOf(data, columns, view.column, view.unit),
      bias = layer.bias[view.unit],
      [OH, OW] = [own.h, own.w];
    const bars = all.map((part) =>
      make("li", {}, make("span", { textContent: part.name.replace(/^.*, | of \d+$/g, "") }), make("i"), make("b")),
    );
    const sum = formula(),
      limit = Math.max(...all.map((part) => Draw.largest(part.product))) || 1;
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
    panel.append(
      title(`${name} is a sum`),
      text(
        `Each of the ${all.length} input maps goes through a kernel of its own. The products are added up, cell by cell, and the bias is added. Choose a row on the left to watch one of them. `,
        link("conv", "Convolution"),
      ),
      make(
        "div",
        { className: "flow aligned" },
        output.element,
        make(
          "div",
          { className: "beside" },
          make("p", { className: "small", textContent: "At this cell, each product gives" }),
          make("ul", { className: `shares${bars.length > 12 ? " many" : ""}` }, ...bars),
          sum,
        ),
      ),
    );
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
    const column = columns[view.column],
      kind = column.type,
      source = mapOf(data, columns, column.before, kind === "input" ? 0 : view.unit),
      own = mapOf(data, columns, view.column, view.unit);
    const input = kind === "input" ? { ...own } : source,
      size = kind === "pool" ? layer.size : 1,
      stride = kind === "pool" ? layer.stride : 1,
      line = formula();
    const patch = kind === "pool" ? grid(size, "window") : null;
    const cell = mover(own.h, own.w, (r, c) => {
      const value = own.values[r * own.w + c];
      first.mark(
        kind === "mean" ? 0 : r * stride,
        kind === "mean" ? 0 : c * stride,
        kind === "mean" ? source.h : size,
        kind === "mean" ? source.w : size,
      );
      second?.mark(r, c, 1, 1);
      if (kind === "relu") line.textContent = `max(0, ${number(source.values[r * own.w + c])}) = ${number(value)}`;
      else if (kind === "mean") line.textContent = `sum of ${source.h * source.w} cells ÷ ${source.h * source.w} = ${number(value)}`;
      else if (kind === "input")
        line.textContent = `row ${r}, column ${c}: ${data.pixels[view.unit * own.h * own.w + r * own.w + c]} of 255, which the network is given as ${number(value)}`;
      else {
        const window = [];
        for (let y = 0; y < size; y++)
          for (let x = 0; x < size; x++) window.push(source.values[(r * stride + y) * source.w + c * stride + x]);
        patch.fill(window, source.limit, "map", window.indexOf(value));
        line.textContent =
          size <= 3 ? `max(${window.map(number).join(", ")}) = ${number(value)}` : `the largest of ${size * size} is ${number(value)}`;
      }
    });
    const first = big({
      ...input,
      values: input.shown,
      label: kind === "input" ? name : Stage.name(column.before, view.unit),
      onCell: (r, c) => cell.to(Math.floor(r / stride), Math.floor(c / stride)),
      onMove: cell.by,
    });
    const second =
      kind === "input" || kind === "mean" || !column.maps
        ? null
        : big({ ...own, values: own.shown, label: name, onCell: cell.to, onMove: cell.by });
    const about = {
      relu: "A negative number becomes 0, any other stays as it is. ",
      pool: `Of each window of ${size} × ${size} cells only the largest number is kept. `,
      mean: "The whole map becomes one number, its mean. ",
      input: "How much of this colour every pixel has: black is 0, white is 1. ",
    }[kind];
    panel.append(
      title(name),
      text(about, link(kind, "More")),
      make("div", { className: "flow" }, first.element, patch?.element ?? "", second ? sign("→") : "", second?.element ?? ""),
      line,
    );
    return cell;
  };

  const linearPart = (panel, { data, view, layer, part, name }) => {
    const [h, w] = part.shape,
      n = layer.shape[1],
      line = formula(),
      total = formula();
    const strip = make("div", { className: "strip", attributes: { "aria-hidden": "true" } }, make("canvas"), make("i"));
    Draw.paint(strip.firstChild, data.flat(view.column), 0, 1, n, part.limit, "map");
    const cell = mover(h, w, (r, c) => {
      const j = Math.min(r * w + c, part.values.length - 1);
      for (const map of [input, weight, product]) map.mark(r, c, 1, 1);
      strip.lastChild.style.left = `${(100 * (part.from + j + 0.5)) / n}%`;
      line.textContent = `place ${part.from + j} of ${n}: ${number(part.values[j])} × ${number(part.weight[j])} = ${number(part.product[j])}`;
    });
    const map = (values, limit, kind, label) => big({ values, h, w, limit, kind, label, onCell: cell.to, onMove: cell.by });
    const input = map(part.values, part.limit, "map", part.name),
      weight = map(part.weight, part.weightLimit, "weight", "weights"),
      product = map(part.product, part.productLimit, "map", "products");
    total.textContent = `all of ${part.name} together: ${number(part.total)}`;
    panel.append(
      title(`${part.name} for ${name}`),
      text(
        ...(part.shared
          ? [
              "The maps are written into one list, row by row, map by map. Every place of it has a weight of its own. ",
              link("flatten", "Flatten"),
              " · ",
            ]
          : ["Every value has a weight of its own. "]),
        link("linear", "Linear layer"),
      ),
      make("div", { className: "flow three" }, input.element, sign("×"), weight.element, sign("="), product.element),
      make("p", { className: "small", textContent: `the list of ${n} values` }),
      strip,
      line,
      total,
    );
    return cell;
  };

  const softmaxPanel = (panel, { data, view, model, all, layer, name }) => {
    const { terms, probabilities, sum, top } = data.softmax,
      logits = data.values[view.column],
      order = [...probabilities.keys()];
    const line = formula(),
      body = make("tbody"),
      most = Math.max(...terms);
    const show = (unit) => {
      [...body.children].forEach((row, i) => row.classList.toggle("chosen", i === unit));
      line.replaceChildren(
        `exp(${number(logits[unit])}) ÷ sum of all exp = ${number(terms[unit] * Math.exp(top))} ÷ ${number(sum * Math.exp(top))} = `,
        make("b", { textContent: Draw.percent(probabilities[unit]) }),
      );
    };
    for (const unit of order) {
      const meter = (share) => make("i", { className: "meter", style: { "--share": share } });
      const row = make(
        "tr",
        { attributes: unit === view.unit ? { "aria-current": "true" } : {} },
        make("th", { scope: "row", textContent: model.classes[unit] }),
        make("td", { textContent: number(logits[unit]) }),
        make("td", {}, meter(terms[unit] / most), number(terms[unit] * Math.exp(top))),
        make("td", {}, meter(probabilities[unit]), Draw.percent(probabilities[unit])),
      );
      row.addEventListener("pointerenter", () => show(unit));
      row.addEventListener("pointerleave", () => show(view.unit));
      body.append(row);
    }
    const head = make(
      "thead",
      {},
      make(
        "tr",
        {},
        ...["class", "logit", "exp(logit)", "probability"].map((heading) => make("th", { scope: "col", textContent: heading })),
      ),
    );
    const total = all.reduce((value, part) => value + part.total, 0),
      bias = layer.bias[view.unit];
    panel.append(
      title(`How probable is ${name}?`),
      text(
        `The products of ${all.length > 1 ? `all ${all.length} maps` : "all values"} sum to ${number(total)}; with the bias the logit is ${number(total)} ${signed(bias)} = ${number(logits[view.unit])}. The softmax turns the logits of all classes into probabilities. Choose a row on the left to see its part. `,
        link("softmax", "Softmax"),
      ),
      make("div", { className: "scroll" }, make("table", { className: "softmax" }, head, body)),
      line,
    );
    show(view.unit);
    return null;
  };

  const unitSum = (panel, { data, view, all, layer, name }) => {
    const total = all.reduce((value, part) => value + part.total, 0),
      line = formula();
    line.textContent = `${number(total)} ${signed(layer.bias[view.unit])} = ${number(data.values[view.column][view.unit])}`;
    panel.append(
      title(`${name} is a sum`),
      text(
        "Every input value is multiplied by a weight of its own; the products and the bias are added up. Choose a row to see them. ",
        link("linear", "Linear layer"),
      ),
      line,
    );
    return null;
  };

  /** Fill the panel for a view; returns what the animation steps, or null. */
  const build = (panel, { data, view, columns, model }) => {
    panel.replaceChildren();
    const column = columns[view.column],
      layer = data.model.layers[column.layer],
      name = Stage.name(view.column, view.unit),
      i = view.part;
    const weighted = ["conv", "linear", "output"].includes(column.type),
      all = weighted ? parts(layer, data, view, columns) : null;
    const given = { data, view, columns, model, layer, name, all, part: all?.[i], i };
    const kind = !weighted
      ? onePart
      : i === null
        ? { conv: convSum, linear: unitSum, output: softmaxPanel }[column.type]
        : column.type === "conv"
          ? convPart
          : linearPart;
    const cell = kind(panel, given);
    cell?.start();
    return cell;
  };

  return { build };
})();
