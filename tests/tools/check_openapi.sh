#!/bin/sh
# Holds the API documents against the gateway, and tries what others make of them.
#
# `./dev test openapi` runs it with the tools of tests/requirements.txt and tests/package.json on
# the path; FIELDPOST_BIN names the gateway. FIELDPOST_PROVE_SEED repeats a run.
set -eu
cd "$(dirname "$0")/../.."
: "${FIELDPOST_BIN:?names the fieldpost program; ./dev test openapi sets it}"
exec python3 tests/tools/openapi/check.py
