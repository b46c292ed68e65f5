#!/usr/bin/env bash
# `ganbert prepare` with the arguments given; that some pairs were refused is no failure of the Job.
set -uo pipefail
refused=65
code=0
ganbert prepare "$@" || code=$?
if ((code == refused)); then
    echo "ganbert: done; the refused pairs stand in prepare-report.tsv of the output folder"
    exit 0
fi
exit "$code"
