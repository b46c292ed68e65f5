#!/usr/bin/env bash
# Writes DeepSpeed's list of hosts from two numbers and a pattern, and waits for those hosts.
# Runs before the training in each of its pods; exit code 2 ends the Job (a person must mend it).
#   GANBERT_NODES, GANBERT_SLOTS   pods, and ranks in each
#   GANBERT_HOSTS                  name of a pod, with INDEX where its number stands
#   POD_IP                         this pod's address
#   GANBERT_HOSTFILE               where to (default: /job/hostfile)
set -euo pipefail
# The first process of a container gets no signal that it does not ask for. 143: nothing to save.
trap 'exit 143' TERM

fail() {
    echo "ganbert: error: $*" >&2
    exit 2
}

nodes=${GANBERT_NODES:-} slots=${GANBERT_SLOTS:-}
for number in "GANBERT_NODES: $nodes" "GANBERT_SLOTS: $slots"; do
    [[ $number =~ :\ [1-9][0-9]*$ ]] ||
        fail "${number%: *}: expected a positive number, found '${number#*: }'; set it in ganbert-size"
done
pattern=${GANBERT_HOSTS:-} address=${POD_IP:-}
[[ $pattern == *INDEX* ]] ||
    fail "GANBERT_HOSTS: expected a name with INDEX in it, found '$pattern'; set it in the manifest"
[[ -n $address ]] ||
    fail "POD_IP: expected this pod's address, found ''; set it from status.podIP in the manifest"

hosts=()
for ((k = 0; k < nodes; k++)); do
    hosts+=("${pattern/INDEX/$k}")
done
hostfile=${GANBERT_HOSTFILE:-/job/hostfile}
{ printf "%s slots=$slots\n" "${hosts[@]}" >"$hostfile"; } 2>/dev/null ||
    fail "$hostfile: expected a file that user $(id -u) can write, found none; mount a volume there"

# The first is the one that a program takes.
addresses_of() { getent ahosts "$1" | awk '!seen[$1]++ { print $1 }'; }

# Were it loopback, gloo would offer the others an address that leads nowhere, and none would start.
own=$(addresses_of "$HOSTNAME" || true)
first=${own%%$'\n'*}
# In a cluster of two families of addresses a pod has one of each, and POD_IP need not be the first.
has_both() { [[ $'\n'$own$'\n' == *$'\n'"$address"$'\n'* && $first != 127.* && $first != ::1 ]]; }
[[ $first == "$address" ]] || has_both ||
    fail "$HOSTNAME: expected this pod's own name to lead to $address, found '${own//$'\n'/ }';" \
        "give the pod a hostname and a subdomain, or mend /etc/hosts"

# Without a limit: a node that the cluster does not have yet is no accident of this pod.
waiting=0
for host in "${hosts[@]}"; do
    until [[ -n $(addresses_of "$host" || true) ]]; do
        ((waiting % 30 == 0)) && echo "ganbert: waiting for the pod $host (${waiting} s)"
        sleep 2
        waiting=$((waiting + 2))
    done
done
echo "ganbert: $nodes nodes of $slots ranks:" "${hosts[@]}"
