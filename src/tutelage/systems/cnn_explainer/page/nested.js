"use strict";
// The same network the obvious way, as nested arrays of numbers: what the typed arrays are timed against. No page holds it.
globalThis.Nested = (() => {
  const zeros = (h, w) => Array.from({ length: h }, () => Array(w).fill(0));

  /** A flat [C, H, W] as nested arrays. */
  const nest = (flat, [C, H, W]) =>
    Array.from({ length: C }, (_, c) => Array.from({ length: H }, (_, y) => Array.from(flat.slice((c * H + y) * W, (c * H + y + 1) * W))));

  const pad = (map, p) =>
    p === 0 ? map : zeros(map.length + 2 * p, map[0].length + 2 * p).map((row, y) => row.map((_, x) => map[y - p]?.[x - p] ?? 0));

  const convolve = (map, kernel, stride, OH, OW) => {
    const out = zeros(OH, OW);
    for (let y = 0; y < OH; y++)
      for (let x = 0; x < OW; x++)
        for (let ky = 0; ky < kernel.length; ky++)
          for (let kx = 0; kx < kernel.length; kx++) out[y][x] += map[y * stride + ky][x * stride + kx] * kernel[ky][kx];
    return out;
  };

  const add = (a, b) => a.map((row, y) => row.map((value, x) => value + b[y][x]));

  const conv = (maps, { kernels, bias, stride, pad: p, outputShape: [, OH, OW] }) => {
    const inputs = maps.map((map) => pad(map, p));
    return kernels.map((row, o) => {
      const parts = inputs.map((map, c) => convolve(map, row[c], stride, OH, OW));
      return parts.reduce(add, zeros(OH, OW)).map((line) => line.map((value) => value + bias[o]));
    });
  };

  const relu = (maps) => maps.map((map) => map.map((row) => row.map((value) => Math.max(0, value))));

  const pool = (maps, { size, stride, outputShape: [, OH, OW] }) =>
    maps.map((map) =>
      zeros(OH, OW).map((row, y) =>
        row.map((_, x) =>
          Math.max(...map.slice(y * stride, y * stride + size).flatMap((line) => line.slice(x * stride, x * stride + size))),
        ),
      ),
    );

  const mean = (maps) => maps.map((map) => map.flat().reduce((a, b) => a + b, 0) / map.flat().length);
  const linear = (values, { rows, bias }) => rows.map((row, o) => row.reduce((sum, weight, i) => sum + weight * values[i], bias[o]));

  const COMPUTE = {
    conv,
    pool,
    mean,
    linear,
    relu: (x) => (Array.isArray(x[0]) ? relu(x) : x.map((value) => Math.max(0, value))),
    flatten: (maps) => maps.flat(2),
  };

  /** A prepared model of the engine with its weights as nested arrays. */
  const prepare = (model) => ({
    ...model,
    layers: model.layers.map((layer) => {
      if (layer.type === "linear") {
        const n = layer.shape[1];
        return { ...layer, rows: Array.from({ length: layer.shape[0] }, (_, o) => Array.from(layer.weight.slice(o * n, (o + 1) * n))) };
      }
      if (layer.type !== "conv") return layer;
      const [O, C, k] = layer.shape;
      return {
        ...layer,
        kernels: Array.from({ length: O }, (_, o) => nest(layer.weight.slice(o * C * k * k, (o + 1) * C * k * k), [C, k, k])),
      };
    }),
  });

  const forward = (model, input) => {
    const outputs = [];
    let maps = nest(input, model.layers[0].inputShape);
    for (const layer of model.layers) {
      maps = COMPUTE[layer.type](maps, layer);
      outputs.push(maps);
    }
    return outputs;
  };

  return { nest, prepare, forward };
})();
