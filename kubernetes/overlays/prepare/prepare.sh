#!/usr/bin/env bash
# `ganbert prepare` with the arguments given; that some pairs were refused is no failure of the Job.
set -uo pipefail
refused=65

# The first process of a container gets no signal that it does not ask for: hand SIGTERM on.
prepare=""
told=0
hand_on() {
    told=1
    # It may have ended by itself meanwhile.
    [[ -z "$prepare" ]] || kill -TERM "$prepare" 2>/dev/null
}
trap hand_on TERM
ganbert prepare "$@" &
prepare=$!
((told == 0)) || hand_on
# `wait` also ends when a signal comes, with 143: ask again, and bash tells the code of the command.
while :; do
    told=0
    wait "$prepare"
    code=$?
    ((told)) || break
done
if ((code == refused)); then
    echo "ganbert: done; the refused pairs stand in prepare-report.tsv of the output folder"
    exit 0
fi
exit "$code"
