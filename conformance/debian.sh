# Sourced by the scripts here: Debian's archive as this machine reaches it, without touching its configuration.
# shellcheck shell=bash

# The archive's address, from the machine's own apt sources; DEBIAN_MIRROR overrides it.
debian_mirror() {
  local mirror=${DEBIAN_MIRROR:-}
  if [ -z "$mirror" ]; then
    # shellcheck disable=SC2016
    mirror=$(apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
      awk -v release="$(debian_release)" '$1 == release && $2 == "main" && !seen { print $3; seen = 1 }')
  fi
  if [ -z "$mirror" ]; then
    echo "no Debian archive is configured here for $(debian_release): set DEBIAN_MIRROR" >&2
    return 1
  fi
  echo "${mirror%/}"
}

debian_release() { (. /etc/os-release && echo "$VERSION_CODENAME"); }

# debian_apt_with FOLDER SUITE...: sets the array `apt` to an apt-get that sees these suites only and keeps its lists in FOLDER.
debian_apt_with() {
  local folder=$1 mirror suite
  shift
  mirror=$(debian_mirror)
  mkdir -p "$folder/lists"
  for suite in "$@"; do echo "deb $mirror $suite main"; done >"$folder/sources"
  # shellcheck disable=SC2034
  apt=(apt-get -qq -o APT::Sandbox::User=root -o "Dir::Etc::SourceList=$folder/sources" -o Dir::Etc::SourceParts=/dev/null
    -o "Dir::State::Lists=$folder/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=)
  "${apt[@]}" update
}
