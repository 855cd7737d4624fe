"use strict";
// Colours, canvases and small elements. Zero is always the middle colour; only the ends of a range change.
const Draw = (() => {
  const STEPS = 256;
  const tables = new Map();

  const rgb = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));

  /** Colours of a scale, 2 STEPS + 1 of them from the negative end over zero to the positive one, as the theme has them. */
  const table = (kind) => {
    if (tables.has(kind)) return tables.get(kind);
    const style = getComputedStyle(document.documentElement);
    const [low, zero, high] = ["low", "zero", "high"].map((end) => rgb(style.getPropertyValue(`--${kind}-${end}`).trim()));
    const colors = new Uint8ClampedArray(3 * (2 * STEPS + 1));
    for (let i = 0; i <= 2 * STEPS; i++) {
      const share = Math.abs(i - STEPS) / STEPS,
        end = i < STEPS ? low : high,
        eased = share ** 0.85;
      for (let c = 0; c < 3; c++) colors[3 * i + c] = zero[c] + (end[c] - zero[c]) * eased;
    }
    tables.set(kind, colors);
    return colors;
  };

  const index = (value, limit) => STEPS + Math.round(STEPS * Math.max(-1, Math.min(1, limit ? value / limit : 0)));

  /** The colour of one value, as [r, g, b]. */
  const color = (value, limit, kind) => Array.from(table(kind).slice(3 * index(value, limit), 3 * index(value, limit) + 3));

  /** Paint values [h, w] from offset on, -limit..limit, into a canvas of that size. */
  const paint = (canvas, values, offset, h, w, limit, kind) => {
    if (canvas.width !== w || canvas.height !== h) Object.assign(canvas, { width: w, height: h });
    const context = canvas.getContext("2d"),
      image = context.createImageData(w, h),
      colors = table(kind);
    for (let i = 0; i < h * w; i++) {
      const at = 3 * index(values[offset + i], limit);
      image.data[4 * i] = colors[at];
      image.data[4 * i + 1] = colors[at + 1];
      image.data[4 * i + 2] = colors[at + 2];
      image.data[4 * i + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  };

  /** Paint pixels 0..255 [channels, size, size]: all channels as a picture, or one of them in gray. */
  const picture = (canvas, pixels, channels, size, only = null) => {
    if (canvas.width !== size) Object.assign(canvas, { width: size, height: size });
    const context = canvas.getContext("2d"),
      image = context.createImageData(size, size),
      area = size * size;
    for (let i = 0; i < area; i++) {
      for (let c = 0; c < 3; c++) image.data[4 * i + c] = pixels[(only ?? Math.min(c, channels - 1)) * area + i];
      image.data[4 * i + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  };

  const legend = (canvas, kind) => {
    const values = Float32Array.from({ length: 101 }, (_, i) => i / 50 - 1);
    paint(canvas, values, 0, 1, 101, 1, kind);
  };

  /** An element with properties, attributes under `attributes`, styles under `style`, and children. */
  const make = (tag, { attributes = {}, style = {}, ...properties } = {}, ...children) => {
    const element = document.createElement(tag);
    Object.assign(element, properties);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    for (const [name, value] of Object.entries(style)) element.style.setProperty(name, value);
    element.append(...children.filter((child) => child !== null));
    return element;
  };

  /** A number for people: a true minus sign, two decimals, more for small ones, none for large ones. */
  const number = (value) => {
    const size = Math.abs(value);
    const text =
      size === 0
        ? "0"
        : size >= 1e5
          ? size.toExponential(1)
          : size >= 100
            ? size.toFixed(0)
            : size >= 0.095
              ? size.toFixed(2)
              : size >= 0.0005
                ? size.toFixed(3)
                : size.toExponential(0).replace("-", "−");
    return value < 0 ? `−${text}` : text;
  };
  const signed = (value) => (value < 0 ? `− ${number(-value)}` : `+ ${number(value)}`);
  const percent = (share) =>
    share >= 0.0995 ? `${(100 * share).toFixed(0)} %` : share >= 0.001 ? `${(100 * share).toFixed(1)} %` : "< 0.1 %";

  /** Black or white text, whichever is legible on a colour. */
  const ink = ([r, g, b]) => (0.299 * r + 0.587 * g + 0.114 * b > 140 ? "#16181a" : "#ffffff");

  const largest = (values, from = 0, to = values.length) => {
    let most = 0;
    for (let i = from; i < to; i++) most = Math.max(most, Math.abs(values[i]));
    return most;
  };

  return { paint, picture, legend, color, ink, make, number, signed, percent, largest, forget: () => tables.clear() };
})();
