#!/usr/bin/env bash
# Waits until a Job has ended, either way (`kubectl wait` knows one condition, and a failed Job never meets
# "complete"):  wait.sh NAMESPACE JOB [SECONDS BETWEEN LOOKS]
# Meanwhile it says, at each change, what the Job waits for: a node, a volume, an image, leave to make pods, a
# queue; and once more when it is ended itself: `timeout 10m kubernetes/wait.sh ...`.
# Exit code: 0 complete; 1 failed, with the reason and what its pods said last; 2 a mistake: no such Job, say.
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
if [[ ! $pause =~ ^[0-9]+(\.[0-9]+)?$ ]]; then
    echo "wait.sh: error: expected seconds between looks, found '$pause'; leave them out" >&2
    exit 2
fi
ended='{range .status.conditions[?(@.status=="True")]}{.type}: {.reason} {.message}{"\n"}{end}'
ended+='pods: {.status.active}'
said='{range .items[*]}{.metadata.name}: {.status.initContainerStatuses[*].state.terminated.message}'
said+=' {.status.containerStatuses[*].state.terminated.message}{"\n"}{end}'

# Of a pod: its name, when a container of it began, what it waits for. While it only starts there is no message. What the
# cluster says may have several lines, so other characters stand between fields and pods.
field=$'\x1f' end=$'\x1e'
held='{range .items[?(@.status.phase=="Pending")]}{.metadata.name}{"'$field'"}'
held+='{.status.initContainerStatuses[*].state.running.startedAt}'
held+='{.status.initContainerStatuses[*].state.terminated.finishedAt}{"'$field'"}'
held+='{.status.conditions[?(@.type=="PodScheduled")].reason} '
held+='{.status.conditions[?(@.type=="PodScheduled")].message}'
for of in initContainerStatuses containerStatuses; do
    held+="{range .status.${of}[?(@.state.waiting.message)]}"
    held+=' {.state.waiting.reason} {.state.waiting.message}{end}'
done
held+='{"'$end'"}{end}'
happened='{range .items[*]}{.involvedObject.name}{"'$field'"}{.type}{"'$field'"}{.reason} {.message}{"'$end'"}{end}'
warned='{range .items[*]}{.reason}: {.message}{"\n"}{end}'

look() { kubectl -n "$namespace" get "$@" 2>&1; }
records() { tr '\n'"$end" ' \n' <<<"$1" | tr -s ' '; }

# A volume that cannot be attached or mounted, and an address that cannot be had, stand in the pod's events alone. The
# newest counts: where it is no warning, the pod has come further.
newest_warning() {
    local pod kind text found=""
    while IFS=$field read -r pod kind text; do
        if [[ $pod == "$1" ]]; then
            found=""
            [[ $kind != Warning ]] || found=$text
        fi
    done <<<"$2"
    echo "$found"
}

what_pods_wait_for() {
    local pod began why events="" asked=""
    while IFS=$field read -r pod began why; do
        if [[ ! $why =~ [^\ ] && -z $began && $pod =~ [^\ ] ]]; then
            if [[ -z $asked ]]; then
                asked=yes
                events=$(look events --field-selector involvedObject.kind=Pod \
                    --sort-by=.lastTimestamp -o "jsonpath=$happened") || events=""
                events=$(records "$events")
            fi
            why=$(newest_warning "$pod" "$events")
        fi
        why=${why# } why=${why% }
        [[ -z $why ]] || echo "$pod: $why"
    done <<<"$1" | sort -s -u -k2,2 # pods of one reason are one line
}

what_it_waits_for() {
    local found
    if grep '^Suspended:' <<<"$1"; then
        return
    elif grep -q '^pods: [1-9]' <<<"$1"; then
        found=$(look pods -l "batch.kubernetes.io/job-name=$job" -o "jsonpath=$held") || return
        what_pods_wait_for "$(records "$found")"
    else # a level of PodSecurity, a quota, no account: there are no pods that could say it
        found=$(look events --field-selector "involvedObject.name=$job,type=Warning" \
            --sort-by=.metadata.creationTimestamp -o "jsonpath=$warned") || return
        tail -n 1 <<<"$found"
    fi
}
last=""

leave() {
    echo "$job has not ended${last:+ and waits: $last}" >&2
    exit "$1"
}
trap 'leave 130' INT
trap 'leave 143' TERM

while :; do
    # A server that does not answer for a while is no end of a training of days.
    if ! answer=$(look job "$job" -o "jsonpath=$ended"); then
        if [[ $answer == *NotFound* ]]; then
            echo "wait.sh: error: $namespace: expected the Job $job, found none; apply it first" >&2
            exit 2
        elif [[ $answer == *"(Forbidden)"* ]]; then
            echo "wait.sh: error: ${answer##*$'\n'}; expected leave to get jobs in $namespace, found none; ask for it" >&2
            exit 2
        elif [[ $answer =~ Unauthorized|"does not exist"|"did you specify the right host"|"the server doesn't have a resource type" ]]; then
            echo "wait.sh: error: ${answer##*$'\n'}; expected a kubectl that knows the cluster and you; log in, or choose its context" >&2
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
    else
        now=$(what_it_waits_for "$answer" || true)
        [[ -z $now || $now == "$last" ]] || echo "$job waits: $now" >&2
        last=$now
    fi
    sleep "$pause" >/dev/null 2>&1 &
    wait $! # a signal does not wait for the end of it
done
