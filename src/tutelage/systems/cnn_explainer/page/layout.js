"use strict";
// Which columns there are, and where everything stands: numbers only, nothing is drawn here.
const Layout = (() => {
  /** The columns of the overview. Each knows its layer (-1: the input, -2: the picture), count and shape, and the column before it. */
  const columns = (model) => {
    const { channels, size } = model.input;
    const found = channels > 1 ? [{ layer: -2, type: "picture", name: "picture", count: 1, shape: [1, size, size] }] : [];
    found.push({ layer: -1, type: "input", name: "input", count: channels, shape: [channels, size, size] });
    model.layers.forEach((layer, i) => {
      if (layer.type === "flatten") return;
      const last = i === model.layers.length - 1,
        bare = /^\d+$/.test(layer.name); // a layer of nn.Sequential has a number for a name
      found.push({
        layer: i,
        type: last ? "output" : layer.type,
        name: last ? "output" : bare ? `${layer.type} ${layer.name}` : layer.name,
        count: layer.output[0],
        shape: layer.output,
        note: layer.note,
      });
    });
    return found.map((column, i) => ({ ...column, index: i, maps: column.shape.length === 3, before: i > 0 ? i - 1 : null }));
  };

  /** For each column a number of its group of colours: a layer with what follows it unchanged, a block up to a pooling, or all. */
  const groups = (found, scale) => {
    let group = 0,
      closed = false;
    return found.map(({ type }) => {
      const starts = { layer: ["conv", "linear", "output"].includes(type), block: type === "output" || closed, network: false }[scale];
      if (type === "picture" || type === "input") return 0;
      if (starts || group === 0) group++;
      closed = type === "pool" || type === "mean";
      return group;
    });
  };

  const PHONE = 860,
    LABEL = 44,
    CLASS_WIDTH = 176,
    GAP = 8;

  /** The place {x, y, size} of every node of every column, a label {x, y, width} each, and the height of it all. */
  const overview = (found, width) => (width < PHONE ? downwards(found, width) : sidewards(found, width));

  const sidewards = (found, width) => {
    const rows = Math.min(12, Math.max(8, ...found.filter((column) => column.maps).map((column) => column.count)));
    const spans = found.map((column) => (column.type === "output" ? 0 : Math.ceil(column.count / rows)));
    const pitch = (width - CLASS_WIDTH) / spans.reduce((sum, span) => sum + Math.sqrt(span), 0);
    const size = Math.max(14, Math.min(50, pitch * 0.5));
    const blocks = found.map((column, i) => {
      const span = spans[i];
      const wide = pitch * Math.sqrt(span);
      const single = column.maps && span === 1;
      const own = column.type === "picture" ? Math.min(size * 1.5, wide - 16) : single ? size : Math.min(size, (wide * 0.72) / span - 3);
      const step = own + (single ? GAP : 4);
      const high = Math.min(rows, column.count);
      return { span, wide, own, step, high, height: column.type === "output" ? 26 * column.count : high * step - (step - own) };
    });
    const height = Math.max(320, ...blocks.map((block) => block.height));
    let x = 0;
    const placed = found.map((column, i) => {
      if (column.type === "output") return classes(column, width - CLASS_WIDTH, LABEL, CLASS_WIDTH, height);
      const { span, wide, own, step, high, height: filled } = blocks[i];
      const left = i === 0 ? 0 : x + (wide - span * (own + 3)) / 2;
      const top = LABEL + (height - filled) / 2;
      const nodes = Array.from({ length: column.count }, (_, n) => ({
        x: left + Math.floor(n / high) * (own + 3),
        y: top + (n % high) * step,
        size: own,
      }));
      const label = { x: i === 0 ? 0 : x, y: 0, width: i === 0 ? own : wide };
      x += wide;
      return { nodes, label };
    });
    return { placed, height: LABEL + height + 34, sideways: true };
  };

  const downwards = (found, width) => {
    let y = 0;
    const placed = found.map((column) => {
      if (column.type === "output") {
        const label = { x: 0, y, width };
        const output = classes(column, 0, y + 26, width, column.count * 34);
        y += 26 + column.count * 34;
        return { ...output, label };
      }
      const across = Math.min(column.count, column.maps ? 10 : 16),
        lines = Math.ceil(column.count / across);
      const size = column.type === "picture" ? 72 : Math.min(column.maps ? 44 : 22, (width - 4 * (across - 1)) / across);
      const left = (width - across * (size + 4) + 4) / 2,
        top = y + 24;
      const nodes = Array.from({ length: column.count }, (_, n) => ({
        x: left + (n % across) * (size + 4),
        y: top + Math.floor(n / across) * (size + 4),
        size,
      }));
      const label = { x: 0, y, width };
      y = top + lines * (size + 4) + 10;
      return { nodes, label };
    });
    return { placed, height: y + 8, sideways: false };
  };

  const classes = (column, x, y, width, height) => {
    const step = Math.min(54, Math.max(26, height / column.count)),
      top = y + Math.max(0, (height - step * column.count) / 2);
    const nodes = Array.from({ length: column.count }, (_, n) => ({ x, y: top + n * step, size: Math.min(40, step - 4), width }));
    return { nodes, label: { x, y: y - LABEL, width } };
  };

  /** One neuron: its sources in rows with room for weights and products, the sum, and the neuron itself at the right. */
  const neuron = (rows, width, withWeights) => {
    const phone = width < PHONE,
      whole = phone ? width : Math.min(540, width * 0.42);
    const step = Math.max(30, Math.min(58, 620 / rows)),
      size = withWeights ? step - 8 : Math.min(120, whole * 0.3);
    const top = LABEL,
      high = withWeights ? rows * step : size;
    const out = Math.min(phone ? 84 : 112, whole * 0.22),
      at = (share) => share * whole;
    const columns = withWeights
      ? { source: 6, weight: at(0.2), product: at(0.38), sum: at(phone ? 0.65 : 0.62), out: whole - out }
      : { source: 6, out: whole - size };
    return {
      rows: Array.from({ length: rows }, (_, i) => top + i * step),
      step,
      size,
      columns,
      out: withWeights ? out : size,
      middle: top + high / 2,
      height: top + high + 16,
      whole,
      phone,
    };
  };

  return { columns, groups, overview, neuron, CLASS_WIDTH, PHONE };
})();
