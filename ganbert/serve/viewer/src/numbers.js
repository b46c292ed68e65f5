// Numbers as the page shows them, with a real minus sign.

export function digits(value) {
  return value === undefined ? "–" : Number(value.toPrecision(4)).toString().replace("-", "−");
}

// Rounded first: what comes to nothing has no sign.
export function millimetres(value) {
  const tenths = Math.round(10 * value) || 0;
  return (tenths / 10).toFixed(1).replace("-", "−");
}
