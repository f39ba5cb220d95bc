# Many images: sourced by bench.sh. IMAGES=10000 is what strake's store has,
# PEER_IMAGES=1000 what docker and podman load from one archive (a store of
# strake's with as many is beside them).

# archive N FILE: N images of one tiny layer of their own over a common one, as
# docker save writes them.
archive() {
	python3 - "$1" "$2" <<-'P'
		import hashlib, io, json, sys, tarfile
		def tar(name, text):
		    b = io.BytesIO()
		    with tarfile.open(fileobj=b, mode="w", format=tarfile.USTAR_FORMAT) as t:
		        i = tarfile.TarInfo(name); i.size = len(text); i.mtime = 1700000000
		        t.addfile(i, io.BytesIO(text))
		    return b.getvalue()
		def sha(b): return hashlib.sha256(b).hexdigest()
		with tarfile.open(sys.argv[2], "w", format=tarfile.USTAR_FORMAT) as out:
		    def add(name, b):
		        i = tarfile.TarInfo(name); i.size = len(b); out.addfile(i, io.BytesIO(b))
		    base = tar("base", b"base"); add(sha(base) + "/layer.tar", base)
		    manifest = []
		    for n in range(int(sys.argv[1])):
		        own = tar("own", b"%d" % n); add(sha(own) + "/layer.tar", own)
		        config = json.dumps({"architecture": "amd64", "os": "linux", "created": "2024-01-01T00:00:00Z",
		            "config": {"Cmd": ["sh"], "Labels": {"number": str(n)}},
		            "rootfs": {"type": "layers", "diff_ids": ["sha256:" + sha(base), "sha256:" + sha(own)]}}).encode()
		        add(sha(config) + ".json", config)
		        manifest.append({"Config": sha(config) + ".json", "RepoTags": ["team%d/app%d:v%d" % (n % 10, n % 100, n)],
		            "Layers": [sha(base) + "/layer.tar", sha(own) + "/layer.tar"]})
		    add("manifest.json", json.dumps(manifest).encode())
	P
}
# peak COMMAND…: the largest resident set of one run, in MB.
peak() { command time -f %M -o "$WORK/rss" "$@" >/dev/null 2>&1; awk '{printf "%.0f", $1/1024}' "$WORK/rss"; }
# alone TITLE N COMMAND…: a row without a peer: milliseconds and memory.
alone() { local title=$1 n=$2; shift 2; printf '| %-44s | %10s | %7s MB |\n' "$title" "$(many "$n" "$@")" "$(peak "$@")"; }

case_scale() {
	local n=${IMAGES:-10000} m=${PEER_IMAGES:-1000} s="$strake --root $WORK/many" p="podman --root $WORK/podman --runroot $WORK/podmanrun --storage-driver vfs"
	go run ./bench/scale "$WORK/many" "$n"
	printf '\n| %-44s | %10s | %10s |\n|---|--:|--:|\n' "with $n images, strake alone" "ms" "peak"
	alone "images" 7 $s images
	alone "images -q" 7 $s images -q
	alone "images -q --filter reference=team1/app1:v101" 7 $s images -q --filter reference=team1/app1:v101
	alone "image prune --dry-run" 3 $s image prune --dry-run
	alone "image prune -a --dry-run" 3 $s image prune -a --dry-run
	alone "system df" 3 $s system df
	alone "undo --list" 3 $s undo --list
	local i mine
	mine=$(for i in 1 2 3 4 5 6 7; do ms $s rmi "team$i/app$i:v$i"; done | median)
	printf '| %-44s | %10s | %10s |\n' "rmi of one" "$mine" ""

	archive "$m" "$WORK/many.tar"
	printf '\n| %-44s | %10s | %10s | %-26s | %6s |\n|---|--:|--:|---|--:|\n' "with $m images" "strake ms" "peer ms" peer ratio
	local few="$strake --root $WORK/few"
	row "load of them" "$(ms $few load -q -i "$WORK/many.tar")" "$(ms $docker load -q -i "$WORK/many.tar")" "docker load"
	command podman --version >/dev/null && ms $p load -q -i "$WORK/many.tar" >"$WORK/podman.ms" || rm -f "$WORK/podman.ms"
	[ -s "$WORK/podman.ms" ] && row "load of them" "$(ms $strake --root "$WORK/few2" load -q -i "$WORK/many.tar")" "$(cat "$WORK/podman.ms")" "podman load, vfs"
	local theirs
	for i in "images" "images -q" "images -q --filter reference=team1/app1:v101"; do
		mine=$(many 7 $few $i)
		row "$i" "$mine" "$(many 5 $docker $i)" "docker $(docker_version)"
		[ -s "$WORK/podman.ms" ] && row "$i" "$mine" "$(many 3 $p $i)" "podman"
	done
	mine=$(for i in 1 2 3 4 5; do ms $few rmi "team$i/app$i:v$i"; done | median)
	row "rmi of one" "$mine" "$(for i in 1 2 3 4 5; do ms $docker rmi "team$i/app$i:v$i"; done | median)" "docker"
	[ -s "$WORK/podman.ms" ] && row "rmi of one" "$mine" "$(for i in 1 2 3; do ms $p rmi "team$i/app$i:v$i"; done | median)" "podman"
	row "prune of all the others" "$(ms $few image prune -a -f --now)" "$(ms $docker image prune -a -f --filter label=number)" "docker image prune -a"
}
docker_version() { $docker version --format '{{.Server.Version}}' | cut -d+ -f1; }
