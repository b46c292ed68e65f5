#!/usr/bin/env bash
# Copies a prepared folder to the node's disk, whole or not at all:  stage.sh FROM TO
set -euo pipefail
# Seen at once, because `wait` is interrupted by it; a copy in the foreground would first be finished.
trap 'exit 143' TERM
from=${1:?} to=${2:?}
if [[ ! -e $from/index.json ]]; then
    echo "ganbert: error: $from: expected the output of \`ganbert prepare\`, found no index.json;" \
        "run overlays/prepare first" >&2
    exit 2
fi
[[ -e $to ]] && exit 0 # a container that starts again in the same pod
rm -rf "$to.partial"
# Times stay: they are part of how a file is known. Owner and mode are this user's.
cp -r --preserve=timestamps "$from" "$to.partial" &
wait "$!"
mv "$to.partial" "$to"
echo "ganbert: $(du -sh "$to" | cut -f1) from $from to $to"
