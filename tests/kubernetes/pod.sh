#!/usr/bin/env bash
# Process 1 of a pod (sandbox.py): makes the root out of this machine's programs and the pod's volumes,
# locks it, and becomes the container's user and its command:
#   pod.sh ROOT BINDS USER [NAME=VALUE...] COMMAND
# BINDS has a line a mount: ro or rw, from, to.
set -euo pipefail
root=$1 binds=$2 user=$3
shift 3
mount --make-rprivate /
mount -t tmpfs -o mode=755 tmpfs "$root"
for name in bin sbin lib lib32 lib64 libx32 usr dev sys; do
    if [[ -L /$name ]]; then
        cp -P "/$name" "$root/$name"
    elif [[ -d /$name ]]; then
        mkdir "$root/$name"
        mount --rbind "/$name" "$root/$name"
        [[ $name == dev || $name == sys ]] || mount -o remount,bind,ro "$root/$name"
    fi
done
cp -a /etc "$root/etc" # a copy: volumes are mounted in it
echo "ganbert:x:$user:$user::/tmp:/bin/bash" >>"$root/etc/passwd" # as in the image
mkdir "$root/proc"
mount -t proc proc "$root/proc"
while IFS=$'\t' read -r mode from to; do
    mkdir -p "$root$to" 2>/dev/null || true
    mount --bind "$from" "$root$to"
    [[ $mode == rw ]] || mount -o remount,bind,ro "$root$to"
done <"$binds"
mount -o remount,ro "$root"
cd "$root"
exec chroot . setpriv --reuid "$user" --regid "$user" --groups "$user" --no-new-privs \
    --inh-caps=-all --bounding-set=-all env -i "$@"
