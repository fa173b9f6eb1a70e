#!/bin/bash
# Serves the test images read-only with Debian's docker-registry, in the foreground.
#
# usage: serve.sh [ADDRESS [IMAGES]]     ADDRESS: 127.0.0.1:5000    IMAGES: the folder that make-images.sh wrote
# Run it as the client's mirror: every registry host -> http://ADDRESS.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
address=${1:-127.0.0.1:5000}
images=${2:-${CARGO_TARGET_DIR:-$here/../../target}/conformance/images}
[ -d "$images/registry" ] || { echo "serve: no images in $images; run make-images.sh" >&2; exit 1; }
images=$(cd "$images" && pwd)
exec docker-registry serve <(cat <<X
version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: $images/registry}
  maintenance: {readonly: {enabled: true}, uploadpurging: {enabled: false}}
http: {addr: "$address"}
X
)
