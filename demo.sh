#!/bin/bash
# The whole way round, in stores of its own below a temporary directory: a
# Debian base, a multi-stage build, a registry, a pull into an empty store, a
# run whose page is fetched. usage: ./demo.sh
. "$(dirname "$0")/setup.sh"
need mmdebstrap=mmdebstrap curl=curl
build

work=$(mktemp -d "${TMPDIR:-/tmp}/strake-demo.XXXXXX")
pids=()
finish() {
	for p in "${pids[@]}"; do kill "$p" 2>/dev/null || true; wait "$p" 2>/dev/null || true; done
	rm -rf --one-file-system "$work"
}
trap finish EXIT
strake=$PWD/bin/strake
say() { printf '\n\033[1m$ %s\033[0m\n' "$*"; }
run() { say "$@"; "$@"; }
export STRAKE_ROOT=$work/here
registry=127.0.0.1:5077

if ! $strake pull -q debian:bookworm 2>/dev/null; then
	# No registry of the outside can be reached: make the base from Debian's packages.
	say mmdebstrap --variant=minbase bookworm debian.tar
	mmdebstrap -q --variant=minbase bookworm "$work/debian.tar"
	run $strake import -c 'CMD ["bash"]' "$work/debian.tar" debian:bookworm
fi

run $strake build --progress=plain -t $registry/demo/web:1 demo
say "the same again: nothing changed"
time $strake build -q -t $registry/demo/web:1 demo
run $strake images

say "strake --root registry registry serve --addr $registry &"
$strake --root "$work/registry" registry serve --addr $registry &
pids+=($!)
curl -s -o /dev/null --retry 50 --retry-delay 0 --retry-connrefused "http://$registry/v2/"
run $strake push $registry/demo/web:1

export STRAKE_ROOT=$work/elsewhere
run $strake pull $registry/demo/web:1
say "strake run --rm --network host $registry/demo/web:1 8078 page.html &"
$strake run --rm --network host $registry/demo/web:1 8078 page.html &
pids+=($!)
say curl http://127.0.0.1:8078/
page=$(curl -s --retry 100 --retry-delay 0 --retry-connrefused http://127.0.0.1:8078/)
echo "$page"
grep -q 'hello from strake' <<<"$page"
printf '\nThe image went all the way round.\n'
