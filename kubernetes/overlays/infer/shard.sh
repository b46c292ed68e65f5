#!/usr/bin/env bash
# The share of one pod in `ganbert infer`:  shard.sh BIDS OUT participant [options]
#   JOB_COMPLETION_INDEX, GANBERT_SHARDS   which share, of how many
#   GANBERT_WAIT_SECONDS                   for the first share (default: 300)
# Subject k of the sorted list is of share k mod GANBERT_SHARDS.
set -euo pipefail
bids=${1:?} out=${2:?}
index=${JOB_COMPLETION_INDEX:?} shards=${GANBERT_SHARDS:?} wait=${GANBERT_WAIT_SECONDS:-300}
trap 'exit 143' TERM # until `ganbert` has taken this process over

shopt -s nullglob
LC_ALL=C
subjects=("$bids"/sub-*/)
if ((${#subjects[@]} == 0)); then
    echo "ganbert: error: $bids: expected folders sub-*, found none; mount the dataset there" >&2
    exit 2
fi
labels=()
for ((k = index; k < ${#subjects[@]}; k += shards)); do
    subject=$(basename "${subjects[k]}")
    images=("$bids/$subject"/anat/*_T1w.nii* "$bids/$subject"/ses-*/anat/*_T1w.nii*)
    if ((${#images[@]} == 0)); then
        echo "ganbert: no T1w, left out: $subject" >&2
    else
        labels+=("--participant-label=${subject#sub-}")
    fi
done
if ((${#labels[@]} == 0)); then
    echo "ganbert: no subject for share $index of $shards"
    exit 0
fi
# The first share writes what describes the whole dataset; until then the folder could be anybody's. If
# that one does not come (a mistake in the arguments, say), this one goes on, and says so itself.
for ((waited = 0; index > 0 && waited < wait; waited += 2)); do
    [[ -e $out/dataset_description.json ]] && break
    sleep 2
done
echo "ganbert: share $index of $shards: ${#labels[@]} of ${#subjects[@]} subjects"
exec ganbert infer "$@" "${labels[@]}"
