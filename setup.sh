#!/bin/bash
# What demo.sh and test.sh share: install what is missing on a Debian 12 with
# Go, and build bin/strake, static, without cgo. Sourced, not run.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

# need PROGRAM=PACKAGE …: install the packages whose program is not there.
need() {
	local missing=()
	for p in "$@"; do
		command -v "${p%%=*}" >/dev/null || [ -e "/usr/sbin/${p%%=*}" ] || missing+=("${p#*=}")
	done
	[ ${#missing[@]} -eq 0 ] && return
	echo "installing ${missing[*]}" >&2
	local sudo=
	[ "$(id -u)" = 0 ] || sudo=sudo
	$sudo apt-get update -qq >&2
	DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

build() {
	CGO_ENABLED=0 go build -trimpath -buildvcs=auto -tags "netgo osusergo" -ldflags "-s -w" -o bin/strake .
}
