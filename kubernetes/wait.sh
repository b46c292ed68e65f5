#!/usr/bin/env bash
# Waits until a Job has ended, either way (`kubectl wait` knows one condition, and a failed Job never meets
# "complete"):  wait.sh NAMESPACE JOB [SECONDS BETWEEN LOOKS]
# Exit code: 0 complete; 1 failed, with the reason and what its pods said last; 2 no such Job, or no kubectl.
set -euo pipefail
if (($# < 2)); then
    echo "wait.sh: error: expected NAMESPACE and JOB, found $# words; kubernetes/wait.sh ganbert ganbert-train" >&2
    exit 2
fi
if ! command -v kubectl >/dev/null; then
    echo "wait.sh: error: kubectl: expected on the PATH, found none; install it" >&2
    exit 2
fi
namespace=$1 job=$2 pause=${3:-10}
ended='{range .status.conditions[?(@.status=="True")]}{.type}: {.reason} {.message}{"\n"}{end}'
said='{range .items[*]}{.metadata.name}: {.status.initContainerStatuses[*].state.terminated.message}'
said+=' {.status.containerStatuses[*].state.terminated.message}{"\n"}{end}'

look() { kubectl -n "$namespace" get "$@" 2>&1; }

while :; do
    # A server that does not answer for a while is no end of a training of days.
    if ! answer=$(look job "$job" -o "jsonpath=$ended"); then
        if [[ $answer == *NotFound* ]]; then
            echo "wait.sh: error: $namespace: expected the Job $job, found none; apply it first" >&2
            exit 2
        fi
        echo "wait.sh: ${answer##*$'\n'}; asking again" >&2
    elif grep -q '^Complete:' <<<"$answer"; then
        echo "$job: complete"
        exit 0
    elif grep -q '^Failed:' <<<"$answer"; then
        grep '^Failed:' <<<"$answer" >&2
        look pods -l "batch.kubernetes.io/job-name=$job" -o "jsonpath=$said" >&2 || true
        exit 1
    fi
    sleep "$pause"
done
