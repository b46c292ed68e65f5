#!/usr/bin/env bash
# Copies a prepared folder to the node's disk, whole or not at all:  stage.sh FROM TO
# Exit code 2: a mistake, told in one line, that another try does not mend.
set -euo pipefail
# Seen at once, because `wait` is interrupted by it; a copy in the foreground would first be finished.
trap 'exit 143' TERM

fail() {
    echo "ganbert: error: $*" >&2
    exit 2
}

(($# == 2)) || fail "stage.sh: expected two folders, FROM and TO, found $# words; mend its command"
from=$1 to=$2
[[ -e $from/index.json ]] ||
    fail "$from: expected the output of \`ganbert prepare\`, found no index.json; run overlays/prepare first"
[[ -e $to ]] && exit 0 # a container that starts again in the same pod
{ rm -rf "$to.partial" && mkdir "$to.partial"; } 2>/dev/null ||
    fail "$to: expected a folder that user $(id -u) can make, found that it cannot; mount a volume there"
# Times stay: they are part of how a file is known. Owner and mode are this user's.
cp -r --preserve=timestamps "$from/." "$to.partial" &
wait "$!"
mv "$to.partial" "$to"
echo "ganbert: $(du -sh "$to" | cut -f1) from $from to $to"
