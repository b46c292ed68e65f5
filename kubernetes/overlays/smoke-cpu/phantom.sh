#!/usr/bin/env bash
# Makes and prepares a phantom cohort in the pod of number 0; the others wait for it.
#   JOB_COMPLETION_INDEX   number of this pod
#   GANBERT_DATA_FOLDER    where to (default: /data)
set -euo pipefail
trap 'exit 143' TERM
data=${GANBERT_DATA_FOLDER:-/data}

if [[ ${JOB_COMPLETION_INDEX:?} == 0 && ! -e $data/ready ]]; then
    rm -rf "$data/bids" "$data/prepared"
    # In the background: `wait` is interrupted by a signal, a command in the foreground is not. One process:
    # by default one a core of the node, which 2 GiB are not enough for where those are many.
    ganbert phantom "$data/bids" --subjects 16 --tracer AV45 --size tiny --seed 1 --jobs 1 &
    wait "$!"
    ganbert prepare "$data/bids" "$data/prepared" --size tiny --jobs 1 &
    wait "$!"
    touch "$data/ready"
fi
until [[ -e $data/ready ]]; do
    sleep 2
done
