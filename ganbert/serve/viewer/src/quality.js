// What to beware of in one result, in words for people who know neither the code nor the network.

// name -> [title, what it may mean]; without the second the flag's own text is plain enough
const WORDS = {
  "field-of-view": ["A part of the head is missing"],
  resolution: ["Coarse voxels"],
  contrast: [
    "Does not look like the T1w images of the training",
    "It may be another sequence (T2w, FLAIR), a brain without its skull, or a part of a head.",
  ],
  intensity: [
    "Brightness unlike the training images",
    "It may be cropped, without its skull, noisy around the head, or of another size.",
  ],
  tracer: ["Another tracer than asked for"],
  tokens: [
    "Brighter than what the model was trained with",
    "Where T1w or PET are brightest, the model has nothing to go by.",
  ],
  range: ["PET values outside of the tracer's range"],
  unknown: ["Cannot be compared with the training images"],
};
const SEVERITIES = { warning: "Warning", note: "Note" };

// flags: of the job, warnings first
export function showQuality(flags) {
  const place = document.getElementById("quality");
  const count = flags.filter((flag) => flag.severity === "warning").length;
  place.classList.toggle("warned", count > 0);
  document.getElementById("flags").replaceChildren(...group(flags).map(item));
  document.getElementById("quality-title").textContent = title(count, flags.length);
  document.getElementById("quality-rules").textContent = flags.length
    ? "Flags are coarse: they say what stands out, not whether the PET is right."
    : "Nothing about this T1w or its PET stands out. That is no promise that the PET is right.";
  place.hidden = false;
}

function title(numWarnings, numFlags) {
  if (numWarnings) return "Look before you use this image";
  return numFlags ? "Worth knowing" : "No flags";
}

// One entry a name: several measures may say the same.
function group(flags) {
  const found = new Map();
  for (const flag of flags) {
    const entry = found.get(flag.name) ?? { ...flag, texts: [] };
    entry.texts.push(flag.text);
    found.set(flag.name, entry);
  }
  return [...found.values()];
}

function item({ name, severity, texts }) {
  const [title, meaning] = WORDS[name] ?? [name];
  const entry = document.createElement("li");
  entry.append(element("strong", `${SEVERITIES[severity] ?? severity}: ${title}`));
  const lines = texts.map((text) => element("span", `${text[0].toUpperCase()}${text.slice(1)}.`));
  if (meaning) {
    const details = document.createElement("details");
    details.append(element("summary", "What was measured"), ...lines);
    entry.append(element("span", meaning), details);
  } else {
    entry.append(...lines);
  }
  return entry;
}

function element(kind, text) {
  const made = document.createElement(kind);
  made.textContent = text;
  return made;
}
