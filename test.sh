#!/bin/bash
# All tests, as root on Debian 12 with Go: installs what they need, builds the
# binary, runs everything. With CI set, no test may skip. usage: ./test.sh
. "$(dirname "$0")/setup.sh"
need busybox=busybox-static mmdebstrap=mmdebstrap docker-registry=docker-registry skopeo=skopeo \
	curl=curl xz=xz-utils zstd=zstd bzip2=bzip2 gcc=gcc unshare=util-linux newuidmap=uidmap \
	pasta=passt slirp4netns=slirp4netns ip=iproute2 python3=python3-minimal script=bsdutils git=git \
	qemu-aarch64-static=qemu-user-static
# The rootless tests run as an ordinary user with subordinate ids.
id strake-test >/dev/null 2>&1 || useradd --system --no-create-home --shell /bin/sh strake-test
for f in /etc/subuid /etc/subgid; do
	grep -q '^strake-test:' $f 2>/dev/null || echo strake-test:2000000000:65536 >>$f
done
build
unformatted=$(gofmt -l $(git ls-files '*.go'))
[ -z "$unformatted" ] || { echo "gofmt would change: $unformatted"; exit 1; }
go vet ./...
out=$(mktemp)
trap 'rm -f "$out"' EXIT
# -a: what tests print may hold bytes that are no text.
go test -count=1 -timeout 30m "$@" -v ./... >"$out" 2>&1 && ok=1 || ok=
grep -aE '^(ok|FAIL|---? FAIL|panic:|\?)' "$out" || true
if grep -aE '^ *--- SKIP' "$out"; then
	grep -aB3 -E '^ *--- SKIP' "$out" | grep -av '^=== ' || true
	[ -z "${CI:-}" ] || { echo "a test skipped; in CI none may"; exit 1; }
fi
[ -n "$ok" ] || grep -aE -B30 '^ *--- FAIL' "$out" | grep -avE '^ *--- PASS' | head -n 400
[ -n "$ok" ] || { grep -avE '^(=== |ok|--- PASS| *--- PASS)' "$out" | tail -n 400; exit 1; }
