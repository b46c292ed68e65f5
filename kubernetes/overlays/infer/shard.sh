#!/usr/bin/env bash
# The share of one pod in `ganbert infer`:  shard.sh BIDS OUT participant [options]
#   JOB_COMPLETION_INDEX, GANBERT_SHARDS   which share, of how many
#   GANBERT_WAIT_SECONDS                   for the first share (default: 300)
# Subject k of the sorted list is of share k mod GANBERT_SHARDS. Exit code 2: a mistake, told in one line.
set -euo pipefail
trap 'exit 143' TERM # until `ganbert` has taken this process over

fail() {
    echo "ganbert: error: $*" >&2
    exit 2
}

(($# >= 2)) || fail "shard.sh: expected BIDS and OUT, found $# words; mend its command"
bids=$1 out=$2
index=${JOB_COMPLETION_INDEX:-} shards=${GANBERT_SHARDS:-} wait=${GANBERT_WAIT_SECONDS:-300}
[[ $shards =~ ^[1-9][0-9]*$ ]] ||
    fail "GANBERT_SHARDS: expected a positive number, found '$shards'; set it to the Job's completions"
[[ $index =~ ^(0|[1-9][0-9]*)$ && $index -lt $shards ]] ||
    fail "JOB_COMPLETION_INDEX: expected 0 to $((shards - 1)), found '$index';" \
        "GANBERT_SHARDS is the Job's completions, and the Job Indexed"
[[ $wait =~ ^(0|[1-9][0-9]*)$ ]] ||
    fail "GANBERT_WAIT_SECONDS: expected whole seconds, found '$wait'; mend it in the manifest"

shopt -s nullglob
LC_ALL=C
subjects=("$bids"/sub-*/)
((${#subjects[@]} > 0)) || fail "$bids: expected folders sub-*, found none; mount the dataset there"
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
