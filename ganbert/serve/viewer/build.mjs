// Bundle the page into the folder that is given: whole, or not at all.
//
//     node build.mjs DESTINATION
import { cp, mkdir, readdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { build } from "esbuild";

const destination = process.argv[2];
const partial = `${destination}.partial`;
await rm(partial, { recursive: true, force: true });
await mkdir(partial, { recursive: true });

await build({
  entryPoints: ["src/main.js", "src/docs.js"],
  bundle: true,
  format: "esm",
  target: "es2022",
  minify: true,
  legalComments: "none",
  outdir: partial,
  logLevel: "warning",
});
for (const name of ["index.html", "docs.html", "style.css"]) {
  await cp(join("src", name), join(partial, name));
}
const swagger = join("node_modules", "swagger-ui-dist");
for (const name of ["swagger-ui.css", "swagger-ui-bundle.js"]) {
  await cp(join(swagger, name), join(partial, name));
}
await writeFile(join(partial, "THIRD_PARTY.txt"), await licences());
await rm(destination, { recursive: true, force: true });
await mkdir(dirname(destination), { recursive: true });
await rename(partial, destination);

// What is bundled is distributed: its licences travel with it.
async function licences() {
  const lock = JSON.parse(await readFile("package-lock.json", "utf8"));
  const texts = [];
  for (const [folder, entry] of Object.entries(lock.packages)) {
    if (!folder || entry.dev || entry.devOptional || !existsSync(folder)) continue;
    const name = folder.split("node_modules/").at(-1);
    texts.push(`${name} ${entry.version} (${entry.license ?? "see its repository"})`);
    for (const file of (await readdir(folder)).filter((f) => /^(licen[cs]e|notice)/i.test(f))) {
      texts.push((await readFile(join(folder, file), "utf8")).trim());
    }
    texts.push("-".repeat(80));
  }
  return texts.join("\n\n") + "\n";
}
