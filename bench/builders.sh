#!/bin/bash
# The builders beside strake's: today's BuildKit (buildkitd, buildctl, made of
# the Go module that go.mod names), docker through buildx, buildah and podman.
# Sourced by bench.sh.
peers=${PEERS_BIN:-${XDG_CACHE_HOME:-$HOME/.cache}/strake-bench}

# module PROGRAM PACKAGE VERSION: builds a program of another module, once.
module() {
	[ -x "$peers/$1" ] && return
	local d
	d=$(mktemp -d) && mkdir -p "$peers"
	(cd "$d" && go mod init peers && GOFLAGS=-mod=mod go get -tool "$2@$3" && GOFLAGS=-mod=mod CGO_ENABLED=0 go build -o "$peers/" "$2") >>"$WORK/log/peers" 2>&1 ||
		{ tail -n 3 "$WORK/log/peers" >&2; return 1; }
	rm -rf "$d"
}
buildkit() { # a buildkitd that finds docker.io in the bench's registry
	[ -S "$WORK/buildkitd.sock" ] && return
	local v
	v=$(go list -m -f '{{.Version}}' github.com/moby/buildkit)
	module buildctl github.com/moby/buildkit/cmd/buildctl "$v"
	module buildkitd github.com/moby/buildkit/cmd/buildkitd "$v"
	module buildx github.com/docker/buildx/cmd/buildx v0.31.1
	mkdir -p "$DOCKER_CONFIG/cli-plugins" && cp "$peers/buildx" "$DOCKER_CONFIG/cli-plugins/docker-buildx"
	cat >"$WORK/buildkitd.toml" <<-T
		root = "$WORK/buildkit"
		[grpc]
		  address = ["unix://$WORK/buildkitd.sock"]
		[worker.containerd]
		  enabled = false
		[worker.oci]
		  enabled = true
		  networkMode = "host"
		[registry."docker.io"]
		  mirrors = ["127.0.0.1:5078"]
		[registry."127.0.0.1:5078"]
		  http = true
	T
	"$peers/buildkitd" --config "$WORK/buildkitd.toml" >"$WORK/log/buildkitd" 2>&1 &
	pids+=($!)
	for _ in $(seq 50); do "$peers/buildctl" --addr "unix://$WORK/buildkitd.sock" debug workers >/dev/null 2>&1 && break; sleep 0.2; done
	$strake tag debian:bookworm 127.0.0.1:5078/library/debian:bookworm
	$strake push -q 127.0.0.1:5078/library/debian:bookworm >/dev/null
	$strake rmi 127.0.0.1:5078/library/debian:bookworm >/dev/null
	$strake save -o "$WORK/debian-image.tar" debian:bookworm
	podman_ load -q -i "$WORK/debian-image.tar" >/dev/null
}
bkbuild() { "$peers/buildctl" --addr "unix://$WORK/buildkitd.sock" build --frontend dockerfile.v0 --local context="$1" --local dockerfile="$1" --output type=image,name=bench; }
xbuild() { DOCKER_API_VERSION=1.41 $docker buildx build -q -t xbench "$1"; }
# crun of Debian 12 refuses a hybrid cgroup mount: chroot isolation is the
# fastest that buildah and podman have.
podman_() { podman --root "$WORK/podman" --runroot "$WORK/podmanrun" "$@"; }
pbuild() { podman_ build -q --layers --isolation chroot --network host -t pbench "$1"; }
ahbuild() { buildah --root "$WORK/podman" --runroot "$WORK/podmanrun" build -q --layers --isolation chroot --network host -t abench "$1"; }

# fresh N DIR: a Dockerfile in DIR of ten RUN that no builder has seen.
fresh() { { echo FROM debian:bookworm; for j in $(seq 10); do echo "RUN true $1 $j"; done; } >"$2/Dockerfile"; }

case_builders() {
	buildkit || { echo "no BuildKit to compare with: see $WORK/log/peers" >&2; return; }
	local d=$WORK/builders mine b n=0
	mkdir -p "$d"
	{ echo FROM debian:bookworm; for i in $(seq 6); do echo "RUN echo $i >/r$i"; echo "COPY f$i /f$i"; echo "$i" >"$d/f$i"; done; echo ENV A=b; } >"$d/Dockerfile"
	for b in sbuild bkbuild xbuild pbuild ahbuild; do "$b" "$d" >/dev/null 2>&1; done
	mine=$(many 20 sbuild -t builders "$d")
	row "rebuild, 14 steps, nothing changed" "$mine" "$(many 10 xbuild "$d")" "docker buildx build"
	row "the same" "$mine" "$(many 20 bkbuild "$d")" "buildctl (BuildKit 0.33)"
	row "the same" "$mine" "$(many 3 pbuild "$d")" "podman build"
	row "the same" "$mine" "$(many 3 ahbuild "$d")" "buildah build"
	mine=$(for i in $(seq "$RUNS"); do fresh "s$i" "$d"; ms sbuild "$d"; done | median)
	for b in bkbuild pbuild ahbuild; do
		row "ten RUN true, all together" "$mine" "$(for i in 1 2 3; do fresh "$b$i" "$d"; ms "$b" "$d"; done | median)" "$b"
	done
	printf 'FROM debian:bookworm AS a\nRUN sleep 1; echo $RANDOM >/a\nFROM debian:bookworm AS b\nRUN sleep 1; echo >/b\nFROM debian:bookworm\nCOPY --from=a /a /\nCOPY --from=b /b /\n' >"$d/Dockerfile"
	row "two stages of one second each" "$(ms sbuild --no-cache "$d")" "$(ms bkbuild "$d")" "buildctl (BuildKit 0.33)"
	[ -d "$WORK/copy" ] || case_copy
	d=$WORK/copy
	bkbuild "$d" >/dev/null 2>&1; sbuild "$d" >/dev/null
	mine=$(for i in $(seq "$RUNS"); do echo "m$i" >"$d/d7/f1400"; ms sbuild "$d"; done | median)
	b=$(for i in 1 2 3; do echo "b$i" >"$d/d7/f1400"; ms bkbuild "$d"; done | median)
	row "20,000 files, 420 MB, one file changed" "$mine" "$b" "buildctl (BuildKit 0.33)"
	mine=$(many 10 sbuild "$d")
	row "the same, nothing changed" "$mine" "$(many 5 bkbuild "$d")" "buildctl (BuildKit 0.33)"
}

# case_memory prints kilobytes, not milliseconds: the peak of a build's process.
case_memory() {
	local d=$WORK/memory
	mkdir -p "$d" && head -c 2000000000 /dev/urandom >"$d/big"
	printf 'FROM debian:bookworm\nCOPY big /big\n' >"$d/Dockerfile"
	/usr/bin/time -o "$WORK/rss" -f %M "$strake" build -q "$d" >/dev/null
	echo "peak RSS of a build with a COPY of 2 GB: $(($(cat "$WORK/rss") / 1024)) MB"
	rm -rf "$d"
}
