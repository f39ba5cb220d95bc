#!/bin/bash
# Times strake beside its peers (docker.io, podman, skopeo from Debian's
# packages) on the same work in one run, and prints medians and ratios.
# usage: bench/bench.sh [CASE…]   cases: version images rebuild copy run push pull builders memory scale
# As root on Debian 12. RUNS=5 sets the counted runs; WORK a place with 20 GB.
. "$(dirname "${BASH_SOURCE[0]}")/../setup.sh"
need dockerd=docker.io iptables=iptables skopeo=skopeo podman=podman docker-registry=docker-registry \
	buildah=buildah time=time mmdebstrap=mmdebstrap busybox=busybox-static python3=python3 ip=iproute2 sha256sum=coreutils
build
RUNS=${RUNS:-5}
WORK=${WORK:-$(mktemp -d /var/tmp/strake-bench.XXXXXX)}
strake=$PWD/bin/strake
docker=/usr/bin/docker # Debian's, whose BuildKit client is built in
export DOCKER_HOST=unix://$WORK/docker.sock STRAKE_ROOT=$WORK/strake DOCKER_CONFIG=$WORK/config
mkdir -p "$WORK/config" "$WORK/log"
pids=()
finish() {
	for p in "${pids[@]}"; do kill "$p" 2>/dev/null || true; wait "$p" 2>/dev/null || true; done
	rm -rf --one-file-system "$WORK"
	ip link del br-strakebench 2>/dev/null || true
}
trap finish EXIT

# ms COMMAND…: wall milliseconds of one run; its output goes to the log.
ms() {
	local t0 t1
	t0=${EPOCHREALTIME/[.,]/} # microseconds; a date(1) would be counted with it
	"$@" >>"$WORK/log/out" 2>&1 || { echo "failed: $*" >&2; tail -n 5 "$WORK/log/out" >&2; return 1; }
	t1=${EPOCHREALTIME/[.,]/}
	echo $((t1 - t0)) | awk '{printf "%.2f\n", $1/1000}'
}
median() { sort -n | awk '{v[NR]=$1} END {print NR % 2 ? v[(NR+1)/2] : (v[NR/2]+v[NR/2+1])/2}'; }
# row TITLE MINE THEIRS PEER: one line of the table, in milliseconds.
row() { printf '| %-44s | %10s | %10s | %-26s | %6s |\n' "$1" "$2" "$3" "$4" "$(awk -v a="$2" -v b="$3" 'BEGIN {printf "%.2f", a/b}')"; }
# many N COMMAND…: the median of N runs.
many() { local n=$1 i; shift; for ((i = 0; i < n; i++)); do ms "$@"; done | median; }
sh_() { bash -c "$1"; }

engine() { # a private docker engine without network of its own
	ip link add br-strakebench type bridge 2>/dev/null || true
	ip addr add 172.31.79.1/24 dev br-strakebench 2>/dev/null || true
	ip link set br-strakebench up
	/usr/sbin/dockerd --data-root "$WORK/dockerd" --exec-root "$WORK/dockerx" -p "$WORK/dockerd.pid" -H "$DOCKER_HOST" \
		--bridge br-strakebench --iptables=false --ip6tables=false >"$WORK/log/dockerd" 2>&1 &
	pids+=($!)
	for _ in $(seq 100); do $docker version >/dev/null 2>&1 && return; sleep 0.2; done
	tail "$WORK/log/dockerd" >&2; return 1
}
registry() { # Debian's docker-registry on loopback
	cat >"$WORK/registry.yml" <<-Y
		version: 0.1
		storage: {filesystem: {rootdirectory: $WORK/registry}, delete: {enabled: true}}
		http: {addr: "127.0.0.1:5078"}
	Y
	docker-registry serve "$WORK/registry.yml" >"$WORK/log/registry" 2>&1 &
	pids+=($!)
	for _ in $(seq 100); do (exec 3<>/dev/tcp/127.0.0.1/5078) 2>/dev/null && return; sleep 0.1; done
}
dbuild() { DOCKER_BUILDKIT=1 $docker build -q "$@"; }
sbuild() { $strake build -q "$@"; }

bases() {
	[ -s "$WORK/debian.tar" ] || mmdebstrap -q --variant=minbase bookworm "$WORK/debian.tar"
	$strake import -c 'CMD ["bash"]' "$WORK/debian.tar" debian:bookworm >/dev/null
	$docker import -c 'CMD ["bash"]' "$WORK/debian.tar" debian:bookworm >/dev/null
}

case_version() {
	row "version" "$(many 20 "$strake" version)" "$(many 20 $docker version)" "docker version"
}
case_images() {
	local i
	for i in $(seq 10); do $strake tag debian:bookworm "img$i:1"; $docker tag debian:bookworm "img$i:1"; done
	row "images, ten names" "$(many 20 "$strake" images)" "$(many 20 $docker images)" "docker images"
}
case_rebuild() {
	local d=$WORK/rebuild i
	mkdir -p "$d"
	{ echo FROM debian:bookworm; for i in $(seq 6); do echo "RUN echo $i >/r$i"; echo "COPY f$i /f$i"; echo $i >"$d/f$i"; done; echo ENV A=b; } >"$d/Dockerfile"
	sbuild -t rebuild "$d" >/dev/null; dbuild -t rebuild "$d" >/dev/null
	row "rebuild, 14 steps, nothing changed" "$(many 20 sbuild -t rebuild "$d")" "$(many 20 dbuild -t rebuild "$d")" "docker build (BuildKit)"
}
case_copy() {
	local d=$WORK/copy mine theirs tarsum i
	mkdir -p "$d"
	python3 - "$d" <<-'P'
		import os, sys, random
		r = random.Random(1)
		for i in range(20000):
		    p = f"{sys.argv[1]}/d{i//200}"
		    os.makedirs(p, exist_ok=True)
		    open(f"{p}/f{i}", "wb").write(r.randbytes(21000))
	P
	printf 'FROM debian:bookworm\nCOPY . /data\n' >"$d/Dockerfile"
	row "COPY 20,000 files, 420 MB, first" "$(ms sbuild -t copy "$d")" "$(ms dbuild -t copy "$d")" "docker build (BuildKit)"
	mine=$(for i in $(seq "$RUNS"); do echo "$i" >"$d/d7/f1400"; ms sbuild -t copy "$d"; done | median)
	theirs=$(for i in 1 2 3; do echo "x$i" >"$d/d7/f1400"; ms dbuild -t copy "$d"; done | median)
	tarsum=$(many "$RUNS" sh_ "tar -C $d -cf - . | sha256sum")
	row "the same, one file changed" "$mine" "$theirs" "docker build (BuildKit)"
	row "the same, one file changed" "$mine" "$tarsum" "tar | sha256sum"
	row "the same, nothing changed" "$(many 10 sbuild -t copy "$d")" "$(many 10 dbuild -t copy "$d")" "docker build (BuildKit)"
}
case_run() {
	local d=$WORK/run i mine theirs
	mkdir -p "$d"
	mine=$(for i in $(seq "$RUNS"); do { echo FROM debian:bookworm; for j in $(seq 10); do echo "RUN true $i $j"; done; } >"$d/Dockerfile"; ms sbuild "$d"; done | median)
	theirs=$(for i in $(seq "$RUNS"); do { echo FROM debian:bookworm; for j in $(seq 10); do echo "RUN true x$i $j"; done; } >"$d/Dockerfile"; ms dbuild "$d"; done | median)
	row "ten RUN true, all together" "$mine" "$theirs" "docker build (BuildKit)"
	row "run --rm true" "$(many 10 "$strake" run --rm debian:bookworm true)" "$(many 5 $docker run --rm --network none debian:bookworm true)" "docker run"
}
big_image() { # four layers, about 900 MB plain, a third of it random
	local d=$WORK/big
	mkdir -p "$d"
	python3 - "$d" <<-'P'
		import os, sys, random
		r = random.Random(2)
		text = b" ".join(b"%d" % r.randrange(10**6) for _ in range(30000))
		for l in range(3):
		    for i in range(600):
		        p = f"{sys.argv[1]}/l{l}/d{i//50}"
		        os.makedirs(p, exist_ok=True)
		        k = r.randrange(100)
		        open(f"{p}/f{i}", "wb").write(r.randbytes(130000) + text[k:] + text[:260000])
	P
	printf 'FROM debian:bookworm\nCOPY l0 /l0\nCOPY l1 /l1\nCOPY l2 /l2\n' >"$d/Dockerfile"
	sbuild -t 127.0.0.1:5078/big:s "$d" >/dev/null
	dbuild -t 127.0.0.1:5078/big:d "$d" >/dev/null
}
case_push() {
	big_image
	row "push, 900 MB, freshly built" "$(ms "$strake" push -q 127.0.0.1:5078/big:s)" "$(ms $docker push -q 127.0.0.1:5078/big:d)" "docker push"
	row "save, 900 MB" "$(many 3 "$strake" save -o "$WORK/s.tar" 127.0.0.1:5078/big:s)" "$(many 3 $docker save -o "$WORK/d.tar" 127.0.0.1:5078/big:d)" "docker save"
	mine=$(for _ in 1 2 3; do ms "$strake" --root "$WORK/load" load -q -i "$WORK/s.tar"; rm -rf "$WORK/load"; done | median)
	theirs=$(for _ in 1; do $docker rmi 127.0.0.1:5078/big:d debian:bookworm >/dev/null; $docker builder prune -af >/dev/null; ms $docker load -q -i "$WORK/d.tar"; done | median)
	row "load, 900 MB" "$mine" "$theirs" "docker load"
}
case_pull() { # of the image that case_push pushed
	[ -d "$WORK/big" ] || case_push
	local r=127.0.0.1:5078/big:s mine theirs
	mine=$(for _ in $(seq "$RUNS"); do ms "$strake" --root "$WORK/pull" pull -q $r; rm -rf "$WORK/pull"; done | median)
	theirs=$(for _ in $(seq "$RUNS"); do ms skopeo copy -q --src-tls-verify=false docker://$r oci:"$WORK/oci:x"; rm -rf "$WORK/oci"; done | median)
	row "pull from a local registry" "$mine" "$theirs" "skopeo copy to oci:"
	mine=$(for _ in $(seq "$RUNS"); do ms sh_ "$strake --root $WORK/pull pull -q $r && $strake --root $WORK/pull run --rm $r true"; rm -rf "$WORK/pull"; done | median)
	theirs=$(for _ in 1 2 3; do ms $docker pull -q $r; $docker rmi -f $r >/dev/null; done | median)
	row "pull and first run, against its pull alone" "$mine" "$theirs" "docker pull"
}

. bench/builders.sh
. bench/scale.sh
engine; registry; bases
echo "strake $($strake version --format '{{.Client.Version}}' 2>/dev/null), docker $($docker version --format '{{.Server.Version}}'), $(skopeo --version), $(nproc) cores, $(uname -r)"
printf '| %-44s | %10s | %10s | %-26s | %6s |\n' work "strake ms" "peer ms" peer ratio
echo '|---|--:|--:|---|--:|'
for c in ${@:-version images rebuild copy run push pull builders memory}; do "case_$c"; done
