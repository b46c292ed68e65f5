#!/usr/bin/env bash
# `ganbert prepare` with the arguments given; that some pairs were refused is no failure of the Job.
set -uo pipefail
refused=65

# The first process of a container gets no signal that it does not ask for: hand SIGTERM on.
ganbert prepare "$@" &
prepare=$!
trap 'kill -TERM "$prepare"' TERM
code=0
# `wait` also ends when a signal comes.
while kill -0 "$prepare" 2>/dev/null; do
    wait "$prepare"
    code=$?
done
if ((code == refused)); then
    echo "ganbert: done; the refused pairs stand in prepare-report.tsv of the output folder"
    exit 0
fi
exit "$code"
