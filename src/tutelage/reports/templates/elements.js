"use strict";
const SVG = "http://www.w3.org/2000/svg";

/** An element with attributes and children; text is always set as text, never as markup. */
function el(tag, attributes = {}, ...children) {
  const [name, ...classes] = tag.split(".");
  const node = ["svg", "rect", "title", "image"].includes(name) ? document.createElementNS(SVG, name) : document.createElement(name);
  if (classes.length) node.setAttribute("class", classes.join(" "));
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children.flat().filter((child) => child != null && child !== false));
  return node;
}
const text = (value) => (value == null ? "–" : typeof value === "string" ? value : JSON.stringify(value));

/** A step's text with its variable, module and strings told apart. */
function source(line) {
  const parts = String(line).split(/("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|\b[A-Z_]+(?=\())/);
  return el("code.source", {}, parts.map((part, i) => (i % 2 ? el(/^["']/.test(part) ? "i" : "b", {}, part) : part)));
}
