#!/usr/bin/env bash
# Ends the Job (exit code 2), in one line, where NCCL could not use InfiniBand.
#   GANBERT_VERBS   folder of the devices (default: /dev/infiniband)
set -euo pipefail
verbs=${GANBERT_VERBS:-/dev/infiniband}
ipc_lock=14 # number of the capability

fail() {
    echo "ganbert: error: $*" >&2
    exit 2
}

compgen -G "$verbs/uverbs*" >/dev/null ||
    fail "$verbs: expected a device of the RDMA plugin, found none;" \
        "name the plugin's resource in components/infiniband/job.yaml"
effective=$(awk '/^CapEff/ { print $2 }' /proc/self/status)
[[ $(ulimit -l) == unlimited ]] || (((16#$effective >> ipc_lock) & 1)) ||
    fail "memlock: expected no limit or the capability IPC_LOCK in effect, found $(ulimit -l) KiB as" \
        "user $(id -u); run as user 0 with IPC_LOCK, or set LimitMEMLOCK=infinity for containerd"
echo "ganbert: InfiniBand can be used: $(compgen -G "$verbs/uverbs*" | wc -l) adapters"
