// Reads an AsyncAPI document with the parser of its authors. Prints how much it describes; exit
// code 1 if the parser finds an error. CommonJS, because NODE_PATH counts for nothing else.
"use strict";

const { Parser, fromFile } = require("@asyncapi/parser");

async function main(path) {
  const parser = new Parser();
  const { document, diagnostics } = await fromFile(parser, path).parse();
  const errors = diagnostics.filter(({ severity }) => severity === 0);
  for (const { message, path, range } of errors) {
    console.error(`line ${range.start.line + 1}, ${path.join(".")}: ${message}`);
  }
  if (errors.length > 0 || !document) return 1;
  const count = (what) => document[what]().all().length;
  console.log(`${count("channels")} channels, ${count("operations")} operations, ${count("messages")} messages`);
  return 0;
}

main(process.argv[2]).then(
  (code) => { process.exitCode = code; },
  (error) => { console.error(error); process.exitCode = 1; },
);
